"""The rate of the processor's matrix product, which no model can exceed.

python -m jobs.bench.product bfloat16 2 -> {"flop_per_second": 1.21e12}
"""

import json
import sys
import time

ROWS, INNER, COLUMNS = 4096, 1024, 1024
SECONDS = 2.0


def rate(dtype: str, cores: int) -> float:
    """Multiplications and additions in a second: the best of two seconds of products."""
    import torch

    torch.set_num_threads(cores)
    left, right = (torch.randn(shape).to(getattr(torch, dtype)) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
    best_seconds, end = float("inf"), time.perf_counter() + SECONDS
    with torch.inference_mode():
        left @ right
        while (start := time.perf_counter()) < end:
            left @ right
            best_seconds = min(best_seconds, time.perf_counter() - start)
    return 2 * ROWS * INNER * COLUMNS / best_seconds


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"flop_per_second": rate(sys.argv[1], int(sys.argv[2]))}) + "\n")
