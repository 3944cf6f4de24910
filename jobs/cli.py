"""The `corpusmill` command.

    corpusmill run topics.yaml -o annotations.0.dtype=float32 --json

Exit codes: 0 done; 1 the run failed; 2 the job or the command line is wrong; 3 done, but over the quarantine limit;
4 `verify` found a fault or an unfinished output; 5 a trained model did not pass its gate; 130 interrupted. Answers go
to standard output, all else to standard error. This module imports little: `--help` and a misspelt command answer at
once.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.errors import CorpusmillError, Interrupted, JobError, RunError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from jobs.display import LiveBar, PlainLines
    from jobs.kinds import Outcome

UNVERIFIED = 4
"""Exit code of `verify` where the output is faulty or unfinished."""

_BEGAN = time.monotonic()

Job = Annotated[str, typer.Argument(metavar="JOB.yaml", help="The job file.", show_default=False)]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="The folder of an output.", show_default=False)]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--override",
        metavar="KEY.PATH=VALUE",
        help="Change one value of the job, as in annotations.0.dtype=float32; may be given often.",
        show_default=False,
    ),
]
Profile = Annotated[bool, typer.Option("--profile", help="Keep where the time went: metadata/profile.json and .png.")]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]

app = typer.Typer(
    name="corpusmill",
    help="Label and embed Parquet corpora with pinned Hugging Face models. A killed command, given again, goes on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The console entry point: runs one command and answers its exit code; never a bare traceback."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _stop)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="corpusmill")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Interrupted as stopped:
        _complain(f"interrupted: {str(stopped).removeprefix('interrupted: ')}")
        return stopped.exit_code
    except CorpusmillError as error:
        # A message of several lines tells several errors; an indented line goes on with the one above.
        _complain("\n".join(line if line.startswith(" ") else f"error: {line}" for line in str(error).splitlines()))
        for note in getattr(error, "__notes__", ()):
            _complain(note)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last place that could tell it in words
        return _fault(error)
    return 0


def _tell_version(asked: bool) -> None:
    if asked:
        _say(f"corpusmill {_version()}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and end.")
    ] = False,
) -> None:
    """What stands before a command."""


# ----------------------------------------------------------------------------------------------------------- commands


@app.command()
def run(
    job: Job,
    override: Override = None,
    profile: Profile = False,
    as_json: Json = False,
) -> None:
    """Run a job, or go on where it stopped. Ends with 5 where a trained model does not pass its gate."""
    from jobs.ahead import workers_ahead

    with _watched() as watcher, workers_ahead(job, override or []):
        from jobs import kinds

        outcome = kinds.run(job, override or [], watcher, _BEGAN, profile=profile)
    _tell(outcome, as_json)


@app.command()
def preview(
    job: Job,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 10,
    override: Override = None,
) -> None:
    """Show a few rows with their annotations; nothing is written."""
    with _watched("annotating a few rows"):
        from jobs import kinds

        table = kinds.preview(job, override or [], rows)
    from jobs.table import annotations_of, few_rows

    _show(few_rows(table, annotations_of(table.column_names), _width()))


@app.command()
def plan(job: Job, override: Override = None, as_json: Json = False) -> None:
    """Tell what a run would do, and estimate its time."""
    with _watched("planning, and trying a few rows"):
        from jobs import kinds

        found = kinds.plan(job, override or [])
    if as_json:
        _say_json(found)
    else:
        from jobs.summary import planned

        _show(planned(found))


@app.command()
def status(output: Output, as_json: Json = False) -> None:
    """Tell how far an output is."""
    from jobs import status as look

    with _interruptible(None):
        found = asdict(look(output))
    if as_json:
        _say_json(found)
    elif "steps" in found:
        from jobs.trained import standing_training

        _show(standing_training(found))
    else:
        from jobs.summary import standing

        _show(standing(found))


@app.command()
def verify(output: Output, as_json: Json = False) -> None:
    """Prove that no row of an output is lost, doubled or damaged."""
    with _watched(f"verifying {output}"):
        from jobs import verify as prove

        report = prove(output)
    if as_json:
        _say_json(asdict(report))
    else:
        from jobs.summary import verified

        values = {key: value for key, value in asdict(report).items() if key not in {"faults", "finished"}}
        _show(verified(report.faults, report.finished, values))
    if report.faults or not report.finished:
        raise typer.Exit(UNVERIFIED)


@app.command()
def retry(output: Output, override: Override = None, profile: Profile = False, as_json: Json = False) -> None:
    """Run the quarantined rows of an output once more."""
    with _watched() as watcher:
        from jobs import annotate

        outcome = annotate.retry(output, override or [], watcher, _BEGAN, profile)
    _tell(outcome, as_json)


@app.command()
def tasks(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A task, or a file of your own.", show_default=False)
    ] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run the Python of a file of your own.")] = False,
    as_json: Json = False,
) -> None:
    """List the tasks, or tell one's options, columns and model, with a job to copy."""
    from jobs.tasks import catalogue, described, listed, told

    with _interruptible(None):
        try:
            found = catalogue() if name is None else described(name, allow_code)
        except JobError as error:
            if name is not None and name.endswith(".py") and not allow_code:
                error.add_note(f"to look at it here: corpusmill tasks {shlex.quote(name)} --allow-code")
            raise
    if as_json:
        _say_json(found if isinstance(found, dict) else asdict(found))
    elif isinstance(found, dict):
        _show(listed(found))
    else:
        _show(told(found))
        _say(found.job)


@app.command()
def bench(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB.yaml]",
            help="A finetune job, or one whose first annotation embeds, labels or writes; else the sample.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[int, typer.Option("-n", "--rows", min=8, help="How many texts.")] = 2000,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often all take turns.")] = 3,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="NAME", help="Only this peer; may be given often.", show_default=False),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,…",
            help="corpusmill once more, as in `engine=openvino,dtype=int8`; may be given often.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="For bench.json and bench.png.")] = "out/bench",
    override: Override = None,
    as_json: Json = False,
) -> None:
    """Measure a job beside other libraries, on this machine's CPUs, with your texts; run nothing else."""
    with _watched() as watcher:
        from pathlib import Path

        from jobs.bench.run import bench as measure

        found = measure(
            job,
            override or [],
            rows=rows,
            rounds=rounds,
            peers=peer,
            also=also or [],
            output=Path(to),
            watcher=watcher,
        )
    if as_json:
        _say_json(found)
    else:
        from jobs.bench.shown import compared

        _show(*compared(found, _width()))


# ------------------------------------------------------------------------------------------------------- stop and fail


def _stop(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - the signature of a signal handler
    raise KeyboardInterrupt


@contextlib.contextmanager
def _watched(phase: str | None = None) -> "Iterator[LiveBar | PlainLines]":
    """Somebody looks on, on standard error; what libraries print goes to a log, so that answers stay clean."""
    from jobs.display import watcher
    from jobs.quiet import last_words, quiet

    with quiet() as (terminal, log):
        watching = watcher(terminal)
        try:
            words = contextlib.nullcontext() if phase else last_words(terminal, _killed(log))
            with words, _interruptible(watching), watching, contextlib.redirect_stdout(sys.stderr):
                if phase is not None:
                    watching.phase(phase)
                yield watching
        except RunError as error:
            if log is not None and log.stat().st_size:
                error.add_note(f"what Ray and other libraries had to say is in {log}")
            raise


def _killed(log: "Path | None") -> str:
    where = "" if log is None else f"; what Ray had to say is in {log}"
    return (
        "\nerror: the run was killed, or its Ray node died; what is committed stays, and the same command goes on"
        f"{where}\n"
    )


@contextlib.contextmanager
def _interruptible(watcher: "LiveBar | PlainLines | None") -> Iterator[None]:
    """Ctrl-C and SIGTERM become Interrupted, with what is committed."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != signal.SIGTERM:
            raise
        # Ray puts a handler of its own in our place, which exits with the signal's number.
        done = None if watcher is None else watcher.last
        if done is None:
            raise Interrupted("nothing was lost; the same command goes on") from None
        raise Interrupted(
            f"{done.units_done} of {done.units_total} units are committed; the same command goes on"
        ) from None


def _fault(error: Exception) -> int:
    """Tell of an error that nobody foresaw: one line, and where the traceback lies."""
    trace = f"corpusmill {_version()}, Python {sys.version}\n{sys.argv}\n\n{''.join(traceback.format_exception(error))}"
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The message of an error that came from an actor is its whole traceback: the last line says it.
    _complain(f"error: unexpected {type(error).__name__}: {words[-1] if words else '-'}: this is a fault of corpusmill")
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="corpusmill-fault-", suffix=".txt", delete=False
        ) as file:
            file.write(trace)
        _complain(f"the traceback is in {file.name}: please report it")
    except OSError:
        _complain(trace)
    return 1


# ------------------------------------------------------------------------------------------------------------- answers


def _tell(outcome: "Outcome", as_json: bool) -> None:
    """Answer with what a run did, and end with its exit code."""
    if as_json:
        _say_json(outcome.summary)
    else:
        _show(*outcome.shown(_width()))
    if outcome.exit_code:
        _complain(f"warning: {outcome.warning} (exit code {outcome.exit_code})")
        raise typer.Exit(outcome.exit_code)


def _show(*parts: "RenderableType") -> None:
    from jobs.summary import text

    color = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    _say(text(parts, color, _width()))


def _width() -> int:
    return min(160, max(40, shutil.get_terminal_size((80, 24)).columns))


def _say_json(value: Mapping[str, Any]) -> None:
    _say(json.dumps(value, default=str) + "\n")


def _say(answer: str) -> None:
    """Write to standard output; a reader that went away is no error."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(answer.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(words: str) -> None:
    with contextlib.suppress(OSError):
        print(words, file=sys.stderr, flush=True)


def _version() -> str:
    try:
        return metadata.version("corpusmill")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
