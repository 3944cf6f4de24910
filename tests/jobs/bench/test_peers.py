"""Each peer computes what the reference computes: else its speed says nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from jobs.bench import peers
from jobs.bench.child import measure, token_counts
from jobs.bench.peer import pooled
from jobs.bench.setting import Setting
from pipeline.errors import JobError
from tests.pipeline.families import factory

TEXTS = [f"text number {number} {'of a few more words ' * (number % 7)}." for number in range(70)]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("bench")
    factory.build("bert", "Model", folder / "model")
    pq.write_table(pa.table({"text": TEXTS}), folder / "texts.parquet")
    return Setting(str(folder / "model"), str(folder / "texts.parquet"), len(TEXTS), 24, "mean", True, 1)


@pytest.fixture(scope="module")
def right(setting: Setting) -> np.ndarray[Any, Any]:
    """Of all texts."""
    reference = peers.find("reference")(setting)
    reference.load()
    return reference.vectors(TEXTS)


@pytest.mark.filterwarnings("default")  # other libraries' own
@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_gives_the_vectors_of_the_reference(
    name: str, setting: Setting, right: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    if absent := peers.missing(name):
        pytest.skip(f"{', '.join(absent)} not installed: pip install corpusmill[bench]")
    kind = peers.find(name)
    try:
        found = measure(name, setting, 0.0, tmp_path / "vectors.npy")
    finally:
        if name == "ray.data":
            ray.shutdown()
    vectors = np.load(tmp_path / "vectors.npy")
    cosines = (vectors * right[:: kind.one_in]).sum(1) / np.linalg.norm(vectors, axis=1)
    assert cosines.min() > (0.99 if "bf16" in name else 0.9999)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=0.02)
    texts = TEXTS[:: kind.one_in]
    lengths = token_counts(setting, texts)
    assert lengths.max() == 24
    assert (found["rows"], found["tokens"], found["one_in"]) == (len(texts), lengths.sum(), kind.one_in)
    assert lengths.sum() <= found["padded_tokens"] <= len(texts) * 24
    assert found["seconds"] > 0


@pytest.mark.parametrize(("pooling", "wanted"), [("mean", [2, 3]), ("cls", [1, 2]), ("last", [3, 4]), ("max", [3, 4])])
def test_hidden_states_are_pooled_without_padding(setting: Setting, pooling: Any, wanted: list[float]) -> None:
    hidden = np.array([[[1, 2], [3, 4], [9, 9]]], np.float32)
    asked = Setting("f", "t", 1, 8, pooling, False, 1)
    np.testing.assert_allclose(pooled(hidden, np.array([[1, 1, 0]]), asked), [wanted])
    long = pooled(hidden, np.array([[1, 1, 0]]), Setting("f", "t", 1, 8, pooling, True, 1))
    np.testing.assert_allclose(np.linalg.norm(long), 1, rtol=1e-6)


def test_an_unknown_peer_is_told_with_the_known_ones() -> None:
    with pytest.raises(JobError, match=r"no peer named 'spark'; known: transformers\.pipeline, datasets\.map"):
        peers.find("spark")


def test_a_setting_travels_as_it_is(setting: Setting, tmp_path: Path) -> None:
    setting.write(tmp_path / "setting.json")
    assert Setting.read(tmp_path / "setting.json") == setting
    assert setting.some(8) == TEXTS[::8]
