"""The forward loop: pieces go through the model in micro-batches, and rows of numbers come back in their order.

    forward_pieces([[101, 7592, 102], [101, …, 102]], forward, …) ->
        Forwarded(values_PD=[[0.1, …], [0.3, …]], failures={}, tokens=40, padding_tokens=34)

Shapes: P pieces, B of them in a micro-batch, L its longest, D numbers for each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from pipeline.batching import micro_batches, padding
from pipeline.errors import RunError
from pipeline.quarantine import Failure, Reason
from pipeline.tokens import Ids
from pipeline.workers import Device

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`forward(input_ids_BL, attention_mask_BL) -> values_BD`, float32."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


@dataclass(slots=True)
class Forwarded:
    """What the model said of P pieces; a failed one holds NaN."""

    values_PD: npt.NDArray[np.float32]
    failures: dict[int, Failure] = field(default_factory=dict)  # by piece
    tokens: int = 0
    padding_tokens: int = 0


def forward_pieces(
    ids_P: Sequence[Ids],
    forward: Forward,
    *,
    width: int,
    token_budget: int,
    pad_id: int,
    device: Device,
    about_to_run: Callable[[Sequence[int]], None] | None = None,
) -> Forwarded:
    """Send every piece through `forward`, which gives `width` numbers for each.

    `about_to_run` is told the pieces of each micro-batch before it goes. A micro-batch that fails is halved until the
    piece at fault stands alone; it never raises for one piece. It raises what breaks the device for good.
    """
    lengths_P = np.array([len(ids) for ids in ids_P], np.int64)
    batches = micro_batches(lengths_P, token_budget)
    done = Forwarded(np.full((len(ids_P), width), np.nan, np.float32))
    done.tokens, done.padding_tokens = int(lengths_P.sum()), padding(lengths_P, batches)
    with torch.inference_mode():
        waiting = batches[::-1]
        while waiting:
            batch = waiting.pop()
            if about_to_run is not None:
                about_to_run(batch.tolist())
            try:
                done.values_PD[batch] = _values(ids_P, batch, forward, pad_id, device)
            except torch.AcceleratorError as fault:
                if not _is_memory(fault):  # the device is unusable from here on: every later row would be blamed
                    reason = str(fault).strip().splitlines()[0]
                    raise RunError(f"{device} gave up: {reason}; the same command goes on") from fault
                _divide(batch, fault, waiting, done)
            except Exception as fault:  # noqa: BLE001 - whatever a model raises, the other rows go on
                _divide(batch, fault, waiting, done)
    for piece in np.flatnonzero(~np.isfinite(done.values_PD).all(axis=1)):
        wrong = int((~np.isfinite(done.values_PD[piece])).sum())
        detail = f"{wrong} of {width} numbers that the model gave are not finite"
        done.failures.setdefault(int(piece), Failure(Reason.NON_FINITE_OUTPUT, detail))
    done.values_PD[list(done.failures)] = np.nan
    return done


def _values(
    ids_P: Sequence[Ids], batch: npt.NDArray[np.intp], forward: Forward, pad_id: int, device: Device
) -> npt.NDArray[np.float32]:
    lengths_B = [len(ids_P[piece]) for piece in batch]
    shape = (len(batch), max(lengths_B))
    input_ids_BL, mask_BL = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    for row, (piece, length) in enumerate(zip(batch, lengths_B, strict=True)):
        input_ids_BL[row, :length] = ids_P[piece]
        mask_BL[row, :length] = 1
    values_BD = forward(torch.from_numpy(input_ids_BL).to(device), torch.from_numpy(mask_BL).to(device))
    found: npt.NDArray[np.float32] = values_BD.float().cpu().numpy()
    return found


def _divide(
    batch: npt.NDArray[np.intp], fault: Exception, waiting: list[npt.NDArray[np.intp]], done: Forwarded
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
    done.failures[int(batch[0])] = Failure(reason, f"{type(fault).__name__}: {first_line}")


def _is_memory(fault: Exception) -> bool:
    """Whether memory ran out; torch says so in several ways."""
    if isinstance(fault, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(fault, RuntimeError) and any(words in str(fault).lower() for words in _OUT_OF_MEMORY)
