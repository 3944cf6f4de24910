import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.corpus.source import Corpus, CorpusSettings, list_files, open_corpus
from pipeline.errors import CorpusError
from pipeline.quarantine import Reason

TABLE = pa.table({"id": [1, 2], "text": ["a", "b"]})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(*paths: str, table: pa.Table = TABLE) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def opened(path: str | list[str]) -> Corpus:
    return open_corpus(CorpusSettings(path=path))


def found(path: str | list[str]) -> tuple[str, list[str]]:
    listing = list_files(CorpusSettings(path=path))
    return os.path.relpath(listing.root), [file.path for file in listing.files]


def refused(path: str | list[str]) -> str:
    with pytest.raises(CorpusError) as error:
        opened(path)
    return str(error.value)


def test_what_a_path_means(here):
    put("data/b.parquet", "data/a/x.parquet", "data/a/y.parquet", "data/c/z.parquet", "odd.data")
    everything = ["a/x.parquet", "a/y.parquet", "b.parquet", "c/z.parquet"]
    assert found("data") == found("data/") == found(str(here / "data")) == ("data", everything)
    assert found(f"file://{here}/data") == ("data", everything)
    assert found("data/b.parquet") == ("data", ["b.parquet"])
    assert found("odd.data") == (".", ["odd.data"])
    assert found("data/a/*.parquet") == ("data/a", ["x.parquet", "y.parquet"])
    assert found("data/?/[!z].parquet") == ("data", ["a/x.parquet", "a/y.parquet"])
    assert found("data/**/x.parquet") == ("data", ["a/x.parquet"])
    assert found("data/**/*.parquet") == ("data", everything)
    assert found("data/[ac]") == ("data", ["a/x.parquet", "a/y.parquet", "c/z.parquet"])
    assert found("*.data") == (".", ["odd.data"])
    assert found(["data/a"]) == found("data/a")
    assert found(["data/c", "data/a", "data/a/x.parquet"]) == ("data", ["a/x.parquet", "a/y.parquet", "c/z.parquet"])
    assert found(["data/b.parquet", "odd.data"]) == (".", ["data/b.parquet", "odd.data"])


def test_a_name_with_glob_characters_that_exists_is_itself(here):
    put("a[1].parquet", "a1.parquet")
    assert found("a[1].parquet") == (".", ["a[1].parquet"])


def test_other_endings_are_ignored_and_told(here):
    put("data/a.parquet")
    Path("data/README.md").touch()
    Path("data/z.csv").touch()
    expected = ("2 files ignored that do not end in .parquet, .parq, .pq, for example README.md",)
    assert opened("data").notes == expected
    assert opened("data/*").notes == expected


def test_a_corpus_has_one_schema_with_the_partition_columns_last(here):
    put("d/k=1/a.parquet", table=pa.table({"k": ["1"], "id": pa.array([1], pa.int8())}))
    put("d/k=2/b.parquet", table=pa.table({"id": [1], "text": pa.array(["x"])}))
    corpus = opened("d")
    assert corpus.schema == pa.schema([("id", pa.int64()), ("text", pa.string()), ("k", pa.int64())])
    assert corpus.partition == ("k",)
    assert [fragment.path for fragment in corpus.fragments] == ["k=1/a.parquet", "k=2/b.parquet"]
    assert corpus.notes == ()


def test_hive_folders_above_the_root_are_no_partitions(here):
    put("year=2024/k=1/a.parquet")
    assert opened("year=2024").partition == ("k",)
    assert opened("year=2024/k=1/*.parquet").partition == ()
    assert opened("year=*/k=1").partition == ("year", "k")


def test_a_hive_key_that_is_a_nested_column_is_refused(here):
    put("d/k=1/a.parquet", table=pa.table({"k": [[1]]}))
    assert refused("d").startswith("'k' is a hive key of the folders and a column of type list<element: int64>")


def test_our_own_output_means_the_parts_that_receipts_name(here):
    put("out/data/section=games/part-1-1.parquet", "out/data/section=games/part-1-0.parquet")
    put("out/quarantine/part-1-1.parquet")
    Path("out/metadata").mkdir()
    Path("out/metadata/plan.json").write_text("{}")
    both = ["section=games/part-1-0.parquet", "section=games/part-1-1.parquet"]
    assert found("out") == ("out/data", both)
    receipts = Path("out/metadata/receipts")
    receipts.mkdir()
    assert refused("out") == "corpus.path 'out' is an output of corpusmill that has no parts yet"
    files = ["data/section=games/part-1-1.parquet", "quarantine/part-1-1.parquet", "data/section=games/gone.parquet"]
    (receipts / "1.json").write_text(json.dumps({"files": [{"path": file} for file in files]}))
    gone, part = opened("out").fragments
    assert part.path == both[1]
    assert gone.problem == (Reason.FILE_MISSING, "No such file or directory")
    (receipts / "2.json").write_text("{")
    assert re.match(r"the receipt .*/2.json is damaged \(.*\), so nobody can tell which parts count", refused("out"))


def test_our_own_output_without_parts_is_told(here):
    Path("out/metadata").mkdir(parents=True)
    Path("out/metadata/plan.json").write_text("{}")
    assert refused("out") == "corpus.path 'out' is an output of corpusmill that has no parts yet"


def test_a_path_that_matches_nothing_tells_the_nearest_name(here):
    put("data/corpus/a.parquet")
    folder = f"{here}/data"
    assert refused("data/corpsu") == (
        f"corpus.path 'data/corpsu' matches nothing: there is no 'corpsu' in {folder}; did you mean 'corpus'?"
    )
    assert refused("dta/corpus") == (
        f"corpus.path 'dta/corpus' matches nothing: there is no 'dta' in {here}; did you mean 'data'?"
    )
    assert refused("data/zzz/*.pq") == f"corpus.path 'data/zzz/*.pq' matches nothing: there is no 'zzz' in {folder}"
    assert refused("data/corpus/a.parquet/x") == (
        f"corpus.path 'data/corpus/a.parquet/x' matches nothing: {folder}/corpus/a.parquet is no folder"
    )
    assert refused("data/corpus/b*") == (
        f"corpus.path 'data/corpus/b*' matches nothing: {folder}/corpus holds 1 Parquet file, for example a.parquet"
    )


def test_folders_without_parquet_are_refused_each_in_its_words(here):
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/a.csv").touch()
    put("hidden/_tmp/a.parquet")
    assert refused("empty") == "corpus.path 'empty' is an empty folder"
    assert refused("other") == (
        "corpus.path 'other' holds no Parquet file (.parquet, .parq, .pq), but 1 file of another kind, "
        "for example a.csv"
    )
    assert refused("hidden") == (
        "corpus.path 'hidden' holds only names that begin with _ or . (1), and those are ignored"
    )
    assert refused("other/*").endswith("holds 0 Parquet files; 1 file matched but do not end in .parquet, .parq, .pq")


def test_broken_files_are_told_and_their_neighbours_stay(here):
    put("d/a.parquet")
    Path("d/b.parquet").touch()
    Path("d/c.parquet").symlink_to("nowhere")
    corpus = opened("d")
    assert [fragment.problem and fragment.problem[0] for fragment in corpus.fragments] == [
        None,
        Reason.EMPTY_FILE,
        Reason.FILE_MISSING,
    ]
    assert corpus.notes == (
        "2 files cannot be read and will be quarantined:\n"
        "  b.parquet: empty_file: it has 0 bytes\n"
        "  c.parquet: file_missing: it is a link to nowhere, which cannot be reached",
    )
    assert corpus.schema == TABLE.schema


def test_a_corpus_of_broken_files_alone_is_refused_with_five_of_them(here):
    Path("d").mkdir()
    for number in range(7):
        Path(f"d/{number}.parquet").touch()
    message = refused("d")
    assert message.startswith("no file of the corpus can be read:\n  0.parquet: empty_file: it has 0 bytes\n")
    assert message.endswith("4.parquet: empty_file: it has 0 bytes\n  and 2 more")
    Path("link.parquet").symlink_to("nowhere")
    assert "link.parquet: file_missing" in refused("link.parquet")


def test_drift_that_cannot_be_joined_is_refused(here):
    put("d/a.parquet")
    put("d/b.parquet", table=pa.table({"id": ["x"]}))
    assert "column 'id': int64 in a.parquet (1 file), string in b.parquet (1 file)" in refused("d")


def test_one_corpus_lies_on_one_file_system(here):
    put("a.parquet")
    assert refused(["a.parquet", "mock:///x"]) == (
        "corpus.path mixes file systems: a.parquet, mock:///x; a corpus lies on one"
    )


@pytest.mark.parametrize(
    "wrong", [{"path": ""}, {"path": []}, {"path": 1}, {"path": "x", "sample": 0}, {"path": "x", "filter": ""}], ids=str
)
def test_settings_are_bounded(wrong):
    with pytest.raises(ValidationError):
        CorpusSettings.model_validate(wrong)


AS_NOBODY = """
import sys
from pipeline.corpus.source import CorpusSettings, open_corpus
from pipeline.errors import CorpusError
try:
    print([(each.path, each.problem) for each in open_corpus(CorpusSettings(path=sys.argv[1])).fragments])
except CorpusError as error:
    print(error)
"""


def as_nobody(here: Path, path: str) -> str:
    """Open a corpus as a user who owns nothing."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("needs root and setpriv, to become a user whom permissions bind")
    for folder in (here, *here.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)
    command = [setpriv, "--reuid", "65534", "--clear-groups", sys.executable, "-c", AS_NOBODY, str(here / path)]
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        command, env={"PYTHONPATH": str(root), "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
    )
    if "Permission denied" in ran.stderr and "site" in ran.stderr:
        pytest.skip("the Python of this test run may be read by root alone")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_a_file_that_may_not_be_read_is_a_problem_of_its_own(here):
    put("d/a.parquet", "d/b.parquet")
    Path("d/a.parquet").chmod(0)
    assert as_nobody(here, "d") == (
        "[('a.parquet', (<Reason.PERMISSION_DENIED: 'permission_denied'>, "
        "'the user who runs this may not read it')), ('b.parquet', None)]"
    )


def test_a_folder_that_may_not_be_listed_is_refused(here):
    put("d/a.parquet", "d/sub/b.parquet")
    Path("d/sub").chmod(0)
    assert as_nobody(here, "d").startswith(
        f"the folder {here}/d/sub cannot be listed: permission denied. Give the user"
    )


def test_a_folder_that_may_be_listed_but_not_entered_gives_problems(here):
    put("d/a.parquet", "d/sub/b.parquet")
    Path("d/sub").chmod(0o744)
    assert "its folder may be listed but not entered" in as_nobody(here, "d")
    assert as_nobody(here, "d/sub/b.parquet").endswith("sub/b.parquet cannot be reached: permission denied")
