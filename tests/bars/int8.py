"""How fast `embed` in int8 is beside bfloat16, and how near to float32: the public command, in turn, round by round.

    python tests/bars/int8.py ../shared/data/debian --rows 4096 --rounds 2

On the cores that this process may use; nothing else should run. No test: a script whose figures stand in release notes.
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

DTYPES = ("bfloat16", "int8")
LEVEL = 0.99


def _beside() -> Any:
    """The script next to this one, which knows jobs and outputs."""
    spec = importlib.util.spec_from_file_location("embed_bar", Path(__file__).with_name("embed.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print a line a run, then the ratio of the rounds and the cosines of the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    embed = _beside()
    with tempfile.TemporaryDirectory() as name:
        job = embed.write_job(Path(name), options.corpus)

        def run(dtype: str) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
            summary = embed.command(job, options.rows, f"annotations.0.dtype={dtype}", "annotations.0.engine=torch")
            return summary, embed.embeddings(job.parent / "out")[1]

        ratios, vectors = [], {}
        for _ in range(options.rounds):
            speeds = {}
            for dtype in DTYPES:
                summary, vectors[dtype] = run(dtype)
                speeds[dtype] = summary["tokens_per_second"]
                told = summary["annotations"]["d"]
                figures = {"dtype": dtype, "tokens/s": round(speeds[dtype]), "seconds": summary["seconds"]}
                print(
                    figures | {"model_seconds": told["model_seconds"], "agreement": told.get("agreement")}, flush=True
                )
            ratios.append(speeds["int8"] / speeds["bfloat16"])
        _, exact = run("float32")
        print(f"int8 is {median(ratios):.3f} times as fast as bfloat16 (median of {len(ratios)} rounds)")
        for dtype in DTYPES:
            lengths = np.linalg.norm(vectors[dtype], axis=1) * np.linalg.norm(exact, axis=1)
            cosines = (vectors[dtype] * exact).sum(1) / lengths
            print(
                f"{dtype}: cosine to float32 at least {LEVEL} for {np.mean(cosines >= LEVEL):.2%} of {len(cosines):,} "
                f"rows; 99% reach {np.quantile(cosines, 0.01):.4f}, the least {cosines.min():.4f}"
            )


if __name__ == "__main__":
    main()
