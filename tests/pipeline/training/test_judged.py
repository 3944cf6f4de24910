"""Lists of tokens become texts with spans, once for each job and state of its corpus."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.source import CorpusSettings, open_corpus
from pipeline.errors import CorpusError
from pipeline.output.storage import Store
from pipeline.training.job import EvaluationData
from pipeline.training.judged import rewritten
from pipeline.training.objectives.tag import Tag


class Listener:
    """Keeps what a user would be told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def phase(self, name: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    words = [["Anna", "in", "York"], ["nobody"], ["Mia"]]
    tags = [["B-PER", "O", "B-LOC"], ["O"], ["B-PER"]]
    pq.write_table(pa.table({"words": words, "tags": tags, "number": [1, 2, 3]}), folder / "a.parquet")
    return folder


def _texts(corpus: Path, store: Store, where: str | None = None) -> list[str]:
    settings = CorpusSettings(path=str(corpus), filter=where)
    data = EvaluationData(path=str(corpus), filter=where, text="words", label="tags")
    objective = Tag(Tag.Config(name="tag"), data)
    objective.look_at(open_corpus(settings).schema)
    found = rewritten(settings, objective, store, Listener())  # type: ignore[arg-type]
    table = pq.read_table(str(found.path))
    assert {"tagged_text", "tagged_spans", "number", "_file", "_row"} <= set(table.column_names)
    return list(table["tagged_text"].to_pylist())


def test_what_is_there_stays_and_other_rows_lie_elsewhere(corpus: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "out"))
    assert _texts(corpus, store) == ["Anna in York", "nobody", "Mia"]
    (first,) = store.full("rows").glob("*/*.parquet")
    written = first.stat().st_mtime_ns
    assert _texts(corpus, store) == ["Anna in York", "nobody", "Mia"]
    assert first.stat().st_mtime_ns == written
    assert _texts(corpus, store, "number > 1") == ["nobody", "Mia"]
    pq.write_table(pq.read_table(corpus / "a.parquet").slice(2), corpus / "a.parquet")
    assert _texts(corpus, store) == ["Mia"]


def test_no_row_is_told(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"data: no row of .* is left to judge"):
        _texts(corpus, Store.at(str(tmp_path / "out")), "number > 7")
