"""Ray Data: units flow through read tasks, actors and commit tasks; what came of them flows back.

    order -> ReadTask (one block = one unit) -> actor (holds the models) -> commit task -> {"state": "done", …}

Where annotations have pools of their own, a unit goes from an actor of one pool to an actor of the next.

The only file of `pipeline` with Ray. Facts about Ray Data (2.60) that it rests on: what one ReadTask yields is one
block; empty blocks never reach a function (an envelope always has one row); `batch_size=1` over blocks of one row gives
a function exactly one unit, with GPUs too; an actor has two units in flight but runs one at a time; maps of two actor
pools are never fused, and all pools start at once (so they have to fit together: see `cluster.placement`).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask, TaskPoolStrategy, read_datasource
from ray.data.block import BlockMetadata

from pipeline.envelope import Envelope
from pipeline.errors import CorpusmillError, RunError, WorkerDiedError
from pipeline.models.memory import keep_products
from pipeline.stages import AnnotateStage, Order, Work, commit, read
from pipeline.workers import Workers

Answer = TypeVar("Answer")

TASK_CPUS = 0.25
"""CPUs asked for one read or commit task: they wait for the disk more than they compute."""

TASK_MEMORY = 0
"""Bytes asked for one. Untold, Ray Data asks for as many as its outputs have; where actors have reserved all memory, it
would wait for them without end."""


class Units(Datasource):
    """One ReadTask an order; the work that all orders share lies once in the object store."""

    def __init__(self, orders: Sequence[Order], work: "ray.ObjectRef[Work]") -> None:
        """Keep the orders; nothing is read before the tasks run."""
        self._orders = orders
        self._work = work
        self._read = _read_block

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known, and not needed: one block is one unit."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - one task an order, however many Ray would like
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: DataContext | None = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """A task for each order."""
        return [
            ReadTask(
                partial(self._read, order, self._work),
                BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None),
            )
            for order in self._orders
        ]


def _read_block(order: Order, work: "ray.ObjectRef[Work]") -> Iterator[pa.Table]:
    yield read(order, _brought(work)).to_block()


_works: dict[str, Work] = {}


def _brought(work: "ray.ObjectRef[Work]") -> Work:
    """The shared work, unpacked once in each process: its fragments may be many."""
    key = work.hex()
    if key not in _works:
        _works.clear()  # an earlier run's
        _works[key] = ray.get(work)
    return _works[key]


class _AnnotateBlocks:
    """The actor that Ray Data makes: a stage over blocks."""

    def __init__(self, work: Work, pool: str | None) -> None:
        self._stage = AnnotateStage(work, pool, own_process=True)

    def __call__(self, block: pa.Table) -> pa.Table:
        return self._stage(Envelope.of_block(block)).to_block()


def _commit_block(block: pa.Table, work: "ray.ObjectRef[Work]") -> pa.Table:
    return pa.table({"told": [json.dumps(commit(Envelope.of_block(block), _brought(work)))]})


def stream(orders: Sequence[Order], work: Work) -> Iterator[dict[str, Any]]:
    """Compute the orders; what the commit of each tells comes as soon as it stands (see `pipeline.stages.commit`).

    Ray must run already. Units come in any order.
    """
    _quiet_context()
    shared = ray.put(work)
    beside = 1 if work.alone else max(2, *(max(each.actors, each.readers) for each in work.pools.values()))
    dataset = read_datasource(
        Units(orders, shared),
        override_num_blocks=len(orders),
        concurrency=beside,
        num_cpus=1 if work.pools_ahead else TASK_CPUS,  # who tokenises computes
        memory=TASK_MEMORY,
    )
    for pool, workers in work.pools.items():
        dataset = dataset.map_batches(
            _AnnotateBlocks,
            fn_constructor_args=(replace(work, fragments=()), pool),  # only readers need fragments
            compute=ActorPoolStrategy(
                size=workers.actors,
                max_concurrent_calls_per_actor=work.units_at_once(pool),
                enable_true_multi_threading=work.units_at_once(pool) > 1,
            ),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=workers.cpus_per_actor,
            num_gpus=workers.gpus_per_actor or None,
            memory=workers.memory_bytes or 0,
        )
    dataset = dataset.map_batches(
        _commit_block,
        fn_kwargs={"work": shared},
        compute=TaskPoolStrategy(size=beside),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS,
        memory=TASK_MEMORY,
    )
    try:
        yield from _told(dataset)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RunError(f"Ray gave up: {reason}; what is committed stays, the same command goes on") from error


def stream_with_suspects(orders: Sequence[Order], work: Work) -> Iterator[dict[str, Any]]:
    """`stream`, then each unit that killed two processes once more, with nothing beside it."""
    by_unit = {order.unit.id: order for order in orders}
    suspects: dict[str, Sequence[Any]] = {}  # and where their time went so far
    for told in stream(orders, work):
        if told["state"] == "suspect":
            suspects[told["unit"]] = told.get("profile", ())
        else:
            yield told
    one_each = {pool: replace(workers, actors=1) for pool, workers in work.pools.items()}
    for unit, spent in suspects.items():
        for told in stream([by_unit[unit]], replace(work, alone=True, pools=one_each)):
            yield told if not spent else {**told, "profile": [*spent, *told["profile"]]}


def on_a_worker(compute: Callable[..., Answer], *given: Any, like: Workers) -> Answer:
    """What the function answers in a process of its own, with an actor's share of a node. Ray must run already.

    Raises WorkerDiedError where the process dies, RunError where the function raises, an error of ours as what it was:
    once is enough.
    """
    answer: Answer = on_workers([partial(compute, *given)], like=like)[0]
    return answer


def on_workers(computes: Sequence[Callable[[], Any]], *, like: Workers) -> list[Any]:
    """What each function answers, as `on_a_worker`: all at once where the nodes have room for as many actors.

    Raises what the first of them raises; the others are ended.
    """
    task = ray.remote(
        num_cpus=like.cpus_per_actor,
        num_gpus=like.gpus_per_actor or None,
        memory=like.memory_bytes or 0,
        max_retries=0,
        max_calls=1,
    )(_called)
    pending = [task.remote(compute) for compute in computes]
    try:
        return list(ray.get(pending))
    except ray.exceptions.RayError as error:
        for each in pending:
            ray.cancel(each, force=True)
        cause = getattr(error, "cause", None)
        if isinstance(cause, CorpusmillError):
            raise cause from error
        raise (WorkerDiedError if isinstance(error, _DEATHS) else RunError)(
            str(error).strip().splitlines()[-1]
        ) from error


_DEATHS = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)


def _called(compute: Callable[[], Answer]) -> Answer:
    keep_products(few=True)  # as an actor that reads: what computes here tries what those will do
    return compute()


def each_unit(
    orders: Sequence[Any], compute: Callable[[Any, Any], dict[str, Any]], work: Any, cpus: float = 1.0
) -> Iterator[dict[str, Any]]:
    """Compute something of each order, any number at a time; what each tells comes as soon as it stands.

    For units that need no actor: `compute(order, work)` is a plain function, and its answer JSON. Ray must run already.
    An error of ours is raised here as what it was.
    """
    _quiet_context()
    dataset = read_datasource(
        _Computed(orders, compute, ray.put(work)), override_num_blocks=len(orders), num_cpus=cpus, memory=TASK_MEMORY
    )
    try:
        yield from _told(dataset)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, CorpusmillError):
            raise cause from error
        reason = str(error).strip().splitlines()[-1]
        raise RunError(f"Ray gave up: {reason}; what is done stays, the same command goes on") from error


class _Computed(Units):
    """One ReadTask an order, whose block is what a function tells of it."""

    def __init__(self, orders: Sequence[Any], compute: Callable[[Any, Any], dict[str, Any]], work: Any) -> None:
        super().__init__(orders, work)
        self._read = partial(_told_block, compute)


def _told_block(compute: Callable[[Any, Any], dict[str, Any]], order: Any, work: Any) -> Iterator[pa.Table]:
    yield pa.table({"told": [json.dumps(compute(order, _brought(work)))]})


def _told(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """What each unit tells, as soon as it stands: `iter_rows` would keep it until the next unit has come."""
    for block in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
        for told in block["told"].to_pylist():
            yield json.loads(told)


def _quiet_context() -> None:
    """Ray Data's settings for this stream: blocks as they are, no bars of its own."""
    context = DataContext.get_current()
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.print_on_execution_start = False
