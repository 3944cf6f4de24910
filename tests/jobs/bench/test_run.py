from pathlib import Path

from jobs.bench.rounds import ANNOTATION
from jobs.bench.run import ours


def test_our_run_computes_the_annotation_as_it_is_over_the_texts_that_all_have(tmp_path: Path) -> None:
    first = {"name": "v", "task": "embed", "text": "{a} {b}", "model": "m", "dtype": "float32"}
    document = {
        "kind": "annotate",
        "corpus": {"path": "corpus", "filter": "a = 1", "sample": 9},
        "annotations": [{**first, "where": "a = 1", "gold": "b", "pool": "large"}, {"name": "other"}],
        "cluster": {"actors": 2, "pools": {"large": {"actors": 1}}},
        "output": {"path": "out", "columns": ["a"]},
    }
    assert ours(document, tmp_path) == {
        "kind": "annotate",
        "allow_code": False,
        "corpus": {"path": str(tmp_path)},
        "annotations": [{**first, "name": ANNOTATION, "text": "text"}],
        "repeats": {"once": False},
        "cluster": {"actors": 2, "gpus_per_actor": 0},
    }
