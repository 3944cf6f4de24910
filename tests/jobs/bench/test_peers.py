"""Each peer computes what the reference computes: else its speed says nothing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import transformers

from jobs.bench import peers, workloads
from jobs.bench.child import measure
from jobs.bench.peer import token_counts
from jobs.bench.peers.c_translate2 import CTranslate2
from jobs.bench.workload import Measured, TextWorkload
from jobs.bench.workloads.encoding import Encoding, pooled
from jobs.bench.workloads.labeling import Classifying, Tagging
from jobs.bench.workloads.training import Training
from jobs.bench.workloads.writing import Writing
from pipeline.errors import JobError
from tests.pipeline.families import factory

TEXTS = [f"text number {number} {'of a few more words ' * (number % 7)}." for number in range(70)]
WINDOW = 24


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextWorkload]:
    """A workload of each kind over the same texts, with tiny models of random weights."""
    folder = tmp_path_factory.mktemp("bench")
    pq.write_table(pa.table({"text": TEXTS}), folder / "texts.parquet")

    def common(family: str, head: str) -> dict[str, Any]:
        factory.build(family, head, folder / head)
        texts = str(folder / "texts.parquet")
        return {"folder": str(folder / head), "rows": len(TEXTS), "max_tokens": WINDOW, "cores": 1, "texts": texts}

    classifier = common("bert", "SequenceClassification")
    labels = list(transformers.AutoConfig.from_pretrained(classifier["folder"]).id2label.values())
    asked = {"max_new_tokens": 6, "num_beams": 1}
    return {
        "encoding": Encoding(**common("bert", "Model"), pooling="mean", normalize=True),
        "classifying": Classifying(**classifier, labels=labels, is_several=False),
        "several": Classifying(**classifier, labels=labels, is_several=True),
        "tagging": Tagging(**common("bert", "TokenClassification"), aggregation="simple"),
        "writing": Writing(**common("t5", "Seq2SeqLM"), column="summary", prefix="sum: ", options=asked),
    }


@pytest.fixture(scope="module")
def right(settings: dict[str, TextWorkload]) -> Callable[[str], list[Any]]:
    """The reference's outputs of all texts."""
    found: dict[str, list[Any]] = {}

    def of(kind: str) -> list[Any]:
        if kind not in found:
            setting = settings[kind]
            assert setting.reference is not None
            reference: Any = peers.at(setting.reference)(setting)
            reference.load()
            found[kind] = list(reference.outputs(setting.some()))
        return found[kind]

    return of


KINDS: Mapping[str, type[TextWorkload]] = {
    "encoding": Encoding,
    "classifying": Classifying,
    "several": Classifying,
    "tagging": Tagging,
    "writing": Writing,
}
# Making a graph takes seconds, and it is the same for all heads.
GRAPHS = {"onnxruntime": ("encoding", "classifying"), "openvino bf16": ("encoding", "tagging")}
EVERY = [
    (kind, name) for kind, workload in KINDS.items() for name in workload.peers if kind in GRAPHS.get(name, (kind,))
]


@pytest.mark.filterwarnings("default")  # other libraries' own
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_peer_gives_what_the_reference_gives(
    kind: str,
    name: str,
    settings: dict[str, TextWorkload],
    right: Callable[[str], list[Any]],
    tmp_path: Path,
) -> None:
    setting = settings[kind]
    if (why := peers.obstacle(type(setting), name)) is not None:
        pytest.skip(why)
    peer = peers.at(setting.peers[name])
    try:
        found = Measured(**measure(setting.peers[name], setting, 0.0, tmp_path / "outputs.parquet"))
    finally:
        if name == "ray.data":
            ray.shutdown()
    outputs = pq.read_table(tmp_path / "outputs.parquet")["output"].to_pylist()
    agreed_R = setting.agreed(outputs, right(kind)[:: peer.one_in])
    if kind == "encoding":
        assert agreed_R.min() > (0.99 if "bf16" in name else 0.9999)
        np.testing.assert_allclose(np.linalg.norm(outputs, axis=1), 1, atol=0.02)
    else:
        # Weights are random, so that scores lie close: in fewer bits, other labels win.
        assert agreed_R.mean() >= (0.1 if "bf16" in name or "int8" in name else 0.95)
    texts = setting.some(peer.one_in)
    lengths = token_counts(setting, texts)
    assert lengths.max() == WINDOW
    assert (found.rows, found.tokens, found.one_in) == (len(texts), lengths.sum(), peer.one_in)
    assert found.padded_tokens is None or lengths.sum() <= found.padded_tokens <= len(texts) * WINDOW
    assert found.seconds > 0


def test_the_reference_says_several_things(right: Callable[[str], list[Any]]) -> None:
    for kind in ("classifying", "several", "tagging", "writing"):
        assert len({str(each) for each in right(kind)}) > 1, kind


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", Training.peers)
def test_a_trainer_counts_the_tokens_of_its_steps(name: str, settings: dict[str, TextWorkload], tmp_path: Path) -> None:
    from datasets import Dataset

    examples = [
        {"input_ids": [2, *[5 + at % 9] * (at % 11), 3], "target": "even" if at % 2 else "odd"} for at in range(96)
    ]
    with pa.OSFile(str(tmp_path / "0-train.arrow"), "wb") as file:
        table = Dataset.from_list(examples).data.table
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    setting = Training(settings["encoding"].folder, 48, WINDOW, 1, str(tmp_path), 4, 1e-3)
    found = Measured(**measure(Training.peers[name], setting, 0.0, tmp_path / "outputs.parquet"))
    assert not (tmp_path / "outputs.parquet").exists()
    assert found.rows == (max(10, 12 // found.one_in) - 5) * 4
    assert found.padded_tokens is not None
    assert found.rows * 2 <= found.tokens <= found.padded_tokens <= found.rows * 12
    assert found.seconds > 0


@pytest.mark.parametrize(("pooling", "wanted"), [("mean", [2, 3]), ("cls", [1, 2]), ("last", [3, 4]), ("max", [3, 4])])
def test_hidden_states_are_pooled_without_padding(pooling: Any, wanted: list[float]) -> None:
    hidden = np.array([[[1, 2], [3, 4], [9, 9]]], np.float32)
    asked = Encoding("f", 1, 8, 1, "t", pooling, False)
    np.testing.assert_allclose(pooled(hidden, np.array([[1, 1, 0]]), asked), [wanted])
    long = pooled(hidden, np.array([[1, 1, 0]]), Encoding("f", 1, 8, 1, "t", pooling, True))
    np.testing.assert_allclose(np.linalg.norm(long), 1, rtol=1e-6)


def test_an_unknown_peer_is_told_with_the_known_ones() -> None:
    with pytest.raises(JobError, match=r"no peer named 'spark'; known: transformers\.pipeline, datasets\.map"):
        peers.asked(Encoding, ["spark"])


def test_a_peer_that_cannot_take_part_says_why() -> None:
    class Absent(CTranslate2):
        packages = ("no_such_package",)

    class OfNoProcessor(CTranslate2):
        compute_type = "float1"

    assert Absent.obstacle() == "pip install no_such_package"
    pytest.importorskip("ctranslate2")
    assert "computes no float1 on this processor" in str(OfNoProcessor.obstacle())
    assert "transformers < 5.6" in str(peers.obstacle(Encoding, "sentence-transformers openvino"))


def test_a_setting_travels_as_it_is(settings: dict[str, TextWorkload], tmp_path: Path) -> None:
    for setting in settings.values():
        setting.write(tmp_path / "setting.json")
        assert workloads.read(tmp_path / "setting.json") == setting
    assert settings["encoding"].some(8) == TEXTS[::8]
    assert settings["writing"].some(8) == [f"sum: {text}" for text in TEXTS[::8]]
