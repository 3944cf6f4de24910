from pathlib import Path

import pytest

from pipeline.corpus.apart import check_apart
from pipeline.corpus.source import CorpusSettings
from pipeline.errors import OutputError


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`corpus/a.parquet` in the current folder; nothing here is opened."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.parquet").touch()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("path", "output", "why"),
    [
        ("corpus", "corpus", "is the corpus itself"),
        ("link", "corpus", "is the corpus itself"),
        ("corpus", "link/out", "lies inside the corpus"),
        ("corpus", ".", "lies inside output.path"),
        (["corpus/a.parquet", "corpus"], "corpus/out", "lies inside the corpus"),
        (["corpus/a.parquet"], "corpus", "lies inside output.path"),
        ("corpus/a.parquet", "corpus", "lies inside output.path"),
        ("corpus/*.parquet", "corpus", "lies inside output.path"),
        ("corpus/*.parquet", ".", "lies inside output.path"),
        ("corpus/**/*.parquet", "corpus/out", "looks for files; name one that it does not match"),
        ("corpus/**/*.parquet", "link/out", "looks for files"),
        ("corpus/*", "corpus/out", "looks for files"),
        ("*/data/*.parquet", "out", "looks for files"),
        ("*/data/section=*/*.parquet", "out", "looks for files"),
    ],
)
def test_an_output_that_would_be_read_as_a_corpus_is_refused(
    corpus: Path, path: str | list[str], output: str, why: str
) -> None:
    with pytest.raises(OutputError, match=why):
        check_apart(CorpusSettings(path=path), str(Path(output).absolute()))


def test_a_corpus_by_uri_is_a_folder_like_any_other(corpus: Path) -> None:
    with pytest.raises(OutputError, match="lies inside the corpus"):
        check_apart(CorpusSettings(path=corpus.as_uri()), str(corpus / "out"))


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("corpus", "corpus-2"),
        ("corpus", "out"),
        ("corpus/*.parquet", "corpus/out"),
        ("corpus/**/*.parquet", "corpus/_out"),
        ("*/data/*.parquet", "deeper/down/out"),
        ("corpus/a.parquet", "corpus/out"),
        ("first/data", "second"),
        (["corpus", "first/data/*.parquet"], "second"),
        ("s3://bucket/corpus?region=eu-west-1", "out"),
    ],
)
def test_neighbours_and_other_file_systems_are_no_reason(corpus: Path, path: str | list[str], output: str) -> None:
    check_apart(CorpusSettings(path=path), str(Path(output).absolute()))
