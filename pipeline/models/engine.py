"""The forward loop: pieces go through the model in micro-batches, and what it says of each comes back in their order.

    run_pieces([[101, 7592, 102], [101, …, 102]], compute, …) ->
        Ran(found_P=[array([…]), array([…])], failures={}, tokens=40, padding_tokens=34, seconds=0.01)

Shapes: P pieces, B of them in a micro-batch, L its longest, D numbers for each.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.batching import micro_batches, padding
from pipeline.errors import RunError
from pipeline.quarantine import Failure, Reason
from pipeline.text.tokens import Ids
from pipeline.workers import Device

Found = TypeVar("Found")

AboutToRun = Callable[[Sequence[int]], None]
"""Told the pieces of a micro-batch before it goes; the crash journal listens."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


@dataclass(frozen=True, slots=True)
class Padded:
    """One micro-batch as a model takes it: B pieces, padded on the right to the longest."""

    pieces_B: npt.NDArray[np.intp]  # which of the P pieces
    lengths_B: tuple[int, ...]  # their real tokens
    input_ids_BL: torch.Tensor
    attention_mask_BL: torch.Tensor
    token_type_ids_BL: torch.Tensor | None = None  # where a piece is of two texts and the model tells them apart

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The keyword arguments of a model's `forward`."""
        inputs = {"input_ids": self.input_ids_BL, "attention_mask": self.attention_mask_BL}
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


def run_batches(
    lengths_P: npt.NDArray[np.integer],
    compute: Callable[[npt.NDArray[np.intp]], Sequence[Found]],
    *,
    token_budget: int,
    device: Device,
    about_to_run: AboutToRun | None = None,
) -> Ran[Found]:
    """Cut P pieces of these lengths into micro-batches and compute each; `compute` answers for its pieces in order.

    A micro-batch that fails is halved until the piece at fault stands alone; it never raises for one piece. It raises
    RunError for what breaks the device for good.
    """
    batches = micro_batches(lengths_P, token_budget)
    ran: Ran[Found] = Ran([None] * len(lengths_P))
    ran.tokens, ran.padding_tokens = int(lengths_P.sum()), padding(lengths_P, batches)
    began = time.perf_counter()
    with torch.inference_mode():
        waiting = batches[::-1]
        while waiting:
            batch = waiting.pop()
            if about_to_run is not None:
                about_to_run(batch.tolist())
            try:
                found_B = compute(batch)
            except torch.AcceleratorError as fault:
                if not _is_memory(fault):  # the device is unusable from here on: every later row would be blamed
                    reason = str(fault).strip().splitlines()[0]
                    raise RunError(f"{device} gave up: {reason}; the same command goes on") from fault
                _divide(batch, fault, waiting, ran.failures)
                continue
            except Exception as fault:  # noqa: BLE001 - whatever a model raises, the other rows go on
                _divide(batch, fault, waiting, ran.failures)
                continue
            for piece, found in zip(batch, found_B, strict=True):
                ran.found_P[piece] = found
    ran.seconds = time.perf_counter() - began
    return ran


def run_pieces(
    ids_P: Sequence[Ids],
    compute: Callable[[Padded], Sequence[Found]],
    *,
    token_budget: int,
    pad_id: int,
    device: Device,
    types_P: Sequence[Ids] | None = None,
    about_to_run: AboutToRun | None = None,
) -> Ran[Found]:
    """Send every piece through `compute`, padded among its like; `types_P` are token types, as long as the ids.

    Faults as `run_batches` treats them.
    """
    return run_batches(
        np.array([len(ids) for ids in ids_P], np.int64),
        lambda batch: compute(pad(ids_P, batch, pad_id, device, types_P)),
        token_budget=token_budget,
        device=device,
        about_to_run=about_to_run,
    )


def forward_pieces(
    ids_P: Sequence[Ids],
    forward: Callable[[Padded], torch.Tensor],
    *,
    width: int,
    token_budget: int,
    pad_id: int,
    device: Device,
    types_P: Sequence[Ids] | None = None,
    about_to_run: AboutToRun | None = None,
) -> Forwarded:
    """Send every piece through `forward`, which gives values_BD: `width` numbers for each piece.

    A piece whose numbers are not all finite has failed. Other faults as `run_batches` treats them.
    """
    ran = run_pieces(
        ids_P,
        lambda padded: list(as_numpy(forward(padded))),
        token_budget=token_budget,
        pad_id=pad_id,
        device=device,
        types_P=types_P,
        about_to_run=about_to_run,
    )
    values_PD = np.full((len(ids_P), width), np.nan, np.float32)
    for piece, values_D in enumerate(ran.found_P):
        if values_D is not None:
            values_PD[piece] = values_D
    for broken in np.flatnonzero(~np.isfinite(values_PD).all(axis=1)).tolist():
        ran.failures.setdefault(broken, not_finite(values_PD[broken]))
    values_PD[list(ran.failures)] = np.nan
    return Forwarded(values_PD, ran.failures, ran.tokens, ran.padding_tokens, ran.seconds)


def pad(
    ids_P: Sequence[Ids],
    batch: npt.NDArray[np.intp],
    pad_id: int,
    device: Device,
    types_P: Sequence[Ids] | None = None,
) -> Padded:
    """The pieces of `batch` side by side, filled up on the right with `pad_id`, on the device."""
    lengths_B = tuple(len(ids_P[piece]) for piece in batch)
    shape = (len(batch), max(lengths_B))
    input_ids_BL, mask_BL = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    types_BL = None if types_P is None else np.zeros(shape, np.int64)
    for row, (piece, length) in enumerate(zip(batch, lengths_B, strict=True)):
        input_ids_BL[row, :length] = ids_P[piece]
        mask_BL[row, :length] = 1
        if types_BL is not None and types_P is not None:
            types_BL[row, :length] = types_P[piece]
    return Padded(
        batch,
        lengths_B,
        torch.from_numpy(input_ids_BL).to(device),
        torch.from_numpy(mask_BL).to(device),
        None if types_BL is None else torch.from_numpy(types_BL).to(device),
    )


def as_numpy(values: torch.Tensor) -> npt.NDArray[np.float32]:
    """The tensor on the host, in float32."""
    found: npt.NDArray[np.float32] = values.float().cpu().numpy()
    return found


def not_finite(values: npt.NDArray[np.float32]) -> Failure:
    """The failure of a piece some of whose numbers are not finite."""
    wrong = int((~np.isfinite(values)).sum())
    return Failure(Reason.NON_FINITE_OUTPUT, f"{wrong} of {values.size} numbers that the model gave are not finite")


def _divide(
    batch: npt.NDArray[np.intp],
    fault: Exception,
    waiting: list[npt.NDArray[np.intp]],
    failures: dict[int, Failure],
) -> None:
    """Both halves wait for another try; a single piece has failed."""
    memory = _is_memory(fault)
    if memory and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) > 1:
        middle = len(batch) // 2
        waiting += [batch[middle:], batch[:middle]]
        return
    reason = Reason.OUT_OF_MEMORY if memory else Reason.MODEL_FAILED
    first_line = (str(fault).strip().splitlines() or [""])[0]
    failures[int(batch[0])] = Failure(reason, f"{type(fault).__name__}: {first_line}")


def _is_memory(fault: Exception) -> bool:
    """Whether memory ran out; torch says so in several ways."""
    if isinstance(fault, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(fault, RuntimeError) and any(words in str(fault).lower() for words in _OUT_OF_MEMORY)
