"""The forward loop: pieces go through the model in micro-batches, and what it says of each comes back in their order.

    run_pieces([[101, 7592, 102], [101, …, 102]], compute, …) ->
        Ran(found_P=[array([…]), array([…])], failures={}, tokens=40, padding_tokens=34, seconds=0.01)

Shapes: P pieces, B of them in a micro-batch, L its longest, D numbers for each.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from pipeline.batching import TokenBudget, micro_batches, padding
from pipeline.errors import RunError
from pipeline.models.rows import PackedRows, brought
from pipeline.profile import WAITING_FOR_GPU, timed
from pipeline.quarantine import Failure, Reason
from pipeline.text.tokens import Ids
from pipeline.workers import Device

Found = TypeVar("Found")

AboutToRun = Callable[[Sequence[int]], None]
"""Told the pieces of a micro-batch before it goes; the crash journal listens."""

AHEAD = 3
"""Micro-batches that a GPU has before it while the processor makes the next one."""

FIXED_TOKENS = 32
"""What a micro-batch costs on a CPU besides its tokens, in tokens. MiniLM in bfloat16, one thread: nothing that could
be measured where texts have up to 107 tokens, some 40 where they have 256 or 500. 384 texts of 5 to 500 tokens,
log-uniform, took as long as in micro-batches that are full, with 2.2% padding instead of 6.8%."""

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",  # OpenVINO
)


@dataclass(frozen=True, slots=True)
class Padded:
    """One micro-batch as a model takes it: B pieces, padded on the right to the longest."""

    pieces_B: npt.NDArray[np.intp]  # which of the P pieces
    lengths_B: tuple[int, ...]  # their real tokens
    input_ids_BL: torch.Tensor
    attention_mask_BL: torch.Tensor
    token_type_ids_BL: torch.Tensor | None = None  # where a piece is of two texts and the model tells them apart
    rows: PackedRows | None = None  # for a model that computes real tokens alone

    @property
    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of a model's `forward`."""
        inputs: dict[str, Any] = {"input_ids": self.input_ids_BL}
        if self.rows is None:
            inputs["attention_mask"] = self.attention_mask_BL
        else:  # transformers would look whether the mask has gaps, and wait for the GPU to tell
            inputs["rows"] = self.rows
        if self.token_type_ids_BL is not None:
            inputs["token_type_ids"] = self.token_type_ids_BL
        return inputs


@dataclass(slots=True)
class Ran(Generic[Found]):
    """What came of P pieces; a failed one holds None."""

    found_P: list[Found | None]
    failures: dict[int, Failure] = field(default_factory=dict)  # by piece
    tokens: int = 0
    padding_tokens: int = 0
    seconds: float = 0.0  # in micro-batches


@dataclass(slots=True)
class Forwarded:
    """What the model said of P pieces, D numbers each; a failed one holds NaN."""

    values_PD: npt.NDArray[np.float32]
    failures: dict[int, Failure]  # by piece
    tokens: int
    padding_tokens: int
    seconds: float


class Pending(ABC, Generic[Found]):
    """What a device was asked for, and will have after a while."""

    @abstractmethod
    def wait(self) -> Sequence[Found]:
        """What came of the pieces, in order."""


Values = npt.NDArray[np.float32]


class Copied(Pending[Values]):
    """Numbers on their way from a GPU to the host: B rows of them."""

    def __init__(self, values_BD: torch.Tensor) -> None:
        """They are copied as soon as they are there; until then the processor goes on."""
        self._host_BD = torch.empty(values_BD.shape, dtype=torch.float32, pin_memory=True)
        self._host_BD.copy_(values_BD, non_blocking=True)
        self._there: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._there.record()

    def wait(self) -> Sequence[Values]:
        """The numbers of each piece."""
        self._there.synchronize()
        return _each(self._host_BD.numpy())


Compute = Callable[[npt.NDArray[np.intp]], Sequence[Found] | Pending[Found]]
"""What comes of the pieces of a micro-batch, in their order."""


def run_batches(
    lengths_P: npt.NDArray[np.integer],
    compute: Compute[Found],
    *,
    token_budget: int | TokenBudget,
    device: Device,
    packed: bool = False,
    passes: int = 1,
    about_to_run: AboutToRun | None = None,
) -> Ran[Found]:
    """Cut P pieces of these lengths into micro-batches of `passes` times the budget, and compute each.

    Where memory ran out, a `TokenBudget` is lower from then on; a plain number is this call's alone. A micro-batch that
    fails is halved until the piece at fault stands alone; it never raises for one piece. It raises RunError for what
    breaks the device for good.
    """
    found_P: list[Found | None] = [None] * len(lengths_P)

    def keep(batch: npt.NDArray[np.intp], found_B: Sequence[Found]) -> None:
        for piece, found in zip(batch, found_B, strict=True):
            found_P[piece] = found

    loop = _Loop(lengths_P, token_budget, compute, keep, device, packed, about_to_run, passes)
    loop.run()
    return Ran(found_P, loop.failures, loop.tokens, loop.padding_tokens, loop.seconds)


_gpu = threading.RLock()
"""One thread of a process at a time has micro-batches on its GPU: together they might not fit."""


@contextmanager
def _turn(device: Device) -> Iterator[None]:
    """This thread's turn on the device."""
    if device == "cpu":
        yield
        return
    with timed(WAITING_FOR_GPU):
        _gpu.acquire()
    try:
        yield
    finally:
        _gpu.release()


class _Loop(Generic[Found]):
    """The micro-batches of some pieces: those that wait, and those that a device is computing."""

    def __init__(
        self,
        lengths_P: npt.NDArray[np.integer],
        token_budget: int | TokenBudget,
        compute: Compute[Found],
        keep: Callable[[npt.NDArray[np.intp], Sequence[Found]], None],
        device: Device,
        packed: bool,
        about_to_run: AboutToRun | None,
        passes: int = 1,
    ) -> None:
        self._budget = TokenBudget(token_budget) if isinstance(token_budget, int) else token_budget
        # A GPU is not busy with less than its budget. What is cut once more has no padding that counts.
        fixed_tokens = FIXED_TOKENS if device == "cpu" and passes == 1 else None
        batches = micro_batches(lengths_P, passes * self._budget.in_force, packed, fixed_tokens)
        self.tokens, self.padding_tokens = int(lengths_P.sum()), 0 if packed else padding(lengths_P, batches)
        self.seconds = 0.0
        self.failures: dict[int, Failure] = {}
        self._lengths_P = lengths_P
        self._of_budget = 2 * passes if packed else passes  # so many times as much is a micro-batch at most
        self._most_tokens = self._at_first = self._of_budget * self._budget.in_force
        self._compute, self._keep, self._device, self._about_to_run = compute, keep, device, about_to_run
        self._ahead = AHEAD if about_to_run is None else 1  # who listens wants to know what killed the process
        self._waiting = batches[::-1]
        self._pending: deque[tuple[npt.NDArray[np.intp], Pending[Found]]] = deque()

    def run(self) -> None:
        """Compute all; `keep` is told what came of each, in any order."""
        with _turn(self._device), timed("forward"), torch.inference_mode():
            began = time.perf_counter()
            while self._waiting or self._pending:
                if self._waiting and len(self._pending) < self._ahead:
                    self._begin(self._waiting.pop())
                else:
                    self._end()
            self.seconds = time.perf_counter() - began
        if self._most_tokens < self._at_first:
            self._budget.lower(self._most_tokens // self._of_budget)

    def _begin(self, batch: npt.NDArray[np.intp]) -> None:
        if len(batch) > 1 and len(batch) * int(self._lengths_P[batch].max()) > self._most_tokens:
            self._halve(batch)  # it was made before memory ran out
            return
        if self._about_to_run is not None:
            self._about_to_run(batch.tolist())
        try:
            computed = self._compute(batch)
        except Exception as fault:  # noqa: BLE001 - whatever a model raises, the other rows go on
            self._failed(batch, fault)
            return
        if isinstance(computed, Pending):
            self._pending.append((batch, computed))
        else:
            self._keep(batch, computed)

    def _end(self) -> None:
        batch, pending = self._pending.popleft()
        try:
            found_B = pending.wait()
        except Exception as fault:  # noqa: BLE001 - as above
            self._failed(batch, fault)
            return
        self._keep(batch, found_B)

    def _failed(self, batch: npt.NDArray[np.intp], fault: Exception) -> None:
        """Both halves wait for another try; a single piece has failed."""
        if isinstance(fault, RunError):  # an engine's own word that it cannot go on
            raise fault
        memory = _is_memory(fault)
        if isinstance(fault, torch.AcceleratorError) and not memory:
            # The device is unusable from here on: every later row would be blamed.
            reason = str(fault).strip().splitlines()[0]
            raise RunError(f"{self._device} gave up: {reason}; the same command goes on") from fault
        if memory:
            while self._pending:  # what is under way holds memory
                self._end()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if len(batch) == 1:
            reason = Reason.OUT_OF_MEMORY if memory else Reason.MODEL_FAILED
            first_line = (str(fault).strip().splitlines() or [""])[0]
            self.failures[int(batch[0])] = Failure(reason, f"{type(fault).__name__}: {first_line}")
            if memory:  # for this one's sake
                self._most_tokens = self._at_first
            return
        if memory:  # the others need as much
            tokens = len(batch) * int(self._lengths_P[batch].max())
            self._most_tokens = min(self._most_tokens, max(1, tokens // 2))
            self._budget.met(self._most_tokens // self._of_budget)
        self._halve(batch)

    def _halve(self, batch: npt.NDArray[np.intp]) -> None:
        middle = len(batch) // 2
        self._waiting += [batch[middle:], batch[:middle]]


def run_pieces(
    ids_P: Sequence[Ids],
    compute: Callable[[Padded], Sequence[Found]],
    *,
    token_budget: int | TokenBudget,
    pad_id: int,
    device: Device,
    types_P: Sequence[Ids] | None = None,
    packed: bool = False,
    about_to_run: AboutToRun | None = None,
) -> Ran[Found]:
    """Send every piece through `compute`, padded among its like; `types_P` are token types, as long as the ids.

    `packed`: for a model that computes real tokens alone. Faults as `run_batches` treats them.
    """
    return run_batches(
        lengths(ids_P),
        lambda batch: compute(pad(ids_P, batch, pad_id, device, types_P, packed)),
        token_budget=token_budget,
        device=device,
        packed=packed,
        about_to_run=about_to_run,
    )


def forward_pieces(
    ids_P: Sequence[Ids],
    forward: Callable[[Padded], torch.Tensor],
    *,
    width: int,
    token_budget: int | TokenBudget,
    pad_id: int,
    device: Device,
    types_P: Sequence[Ids] | None = None,
    packed: bool = False,
    about_to_run: AboutToRun | None = None,
) -> Forwarded:
    """Send every piece through `forward`, which gives values_BD: `width` numbers for each piece.

    A piece whose numbers are not all finite has failed. Other faults as `run_batches` treats them.
    """
    values_PD = np.full((len(ids_P), width), np.nan, np.float32)

    def compute(batch: npt.NDArray[np.intp]) -> Sequence[Values] | Copied:
        values_BD = forward(pad(ids_P, batch, pad_id, device, types_P, packed))
        return Copied(values_BD) if values_BD.is_cuda else _each(as_numpy(values_BD))

    loop = _Loop(lengths(ids_P), token_budget, compute, values_PD.__setitem__, device, packed, about_to_run)
    loop.run()
    failures = loop.failures
    for broken in np.flatnonzero(~np.isfinite(values_PD).all(axis=1)).tolist():
        failures.setdefault(broken, not_finite(values_PD[broken]))
    values_PD[list(failures)] = np.nan
    return Forwarded(values_PD, failures, loop.tokens, loop.padding_tokens, loop.seconds)


def _each(values_BD: Values) -> Sequence[Values]:
    """The array as what it is too, the values of each piece: no copy."""
    return cast("Sequence[Values]", values_BD)


def lengths(ids_P: Sequence[Ids]) -> npt.NDArray[np.int64]:
    """Tokens of each piece."""
    return np.fromiter(map(len, ids_P), np.int64, len(ids_P))


def pad(
    ids_P: Sequence[Ids],
    batch: npt.NDArray[np.intp],
    pad_id: int,
    device: Device,
    types_P: Sequence[Ids] | None = None,
    packed: bool = False,
) -> Padded:
    """The pieces of `batch` side by side, filled up on the right with `pad_id`, on the device."""
    pieces = batch.tolist()
    lengths_B = lengths([ids_P[piece] for piece in pieces])
    real_BL = np.arange(lengths_B.max()) < lengths_B[:, None]

    def side_by_side(values_P: Sequence[Ids], filler: int) -> torch.Tensor:
        values_BL = np.full(real_BL.shape, filler, np.int64)
        values_BL[real_BL] = np.concatenate([values_P[piece] for piece in pieces])
        return brought(values_BL, device)

    return Padded(
        batch,
        tuple(lengths_B.tolist()),
        side_by_side(ids_P, pad_id),
        brought(real_BL.astype(np.int64), device),
        None if types_P is None else side_by_side(types_P, 0),
        PackedRows.of(lengths_B, device) if packed else None,
    )


def as_numpy(values: torch.Tensor) -> npt.NDArray[np.float32]:
    """The tensor on the host, in float32."""
    found: npt.NDArray[np.float32] = values.float().cpu().numpy()
    return found


def not_finite(values: npt.NDArray[np.float32]) -> Failure:
    """The failure of a piece some of whose numbers are not finite."""
    wrong = int((~np.isfinite(values)).sum())
    return Failure(Reason.NON_FINITE_OUTPUT, f"{wrong} of {values.size} numbers that the model gave are not finite")


def _is_memory(fault: Exception) -> bool:
    """Whether memory ran out; torch says so in several ways."""
    if isinstance(fault, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(fault, RuntimeError) and any(words in str(fault).lower() for words in _OUT_OF_MEMORY)
