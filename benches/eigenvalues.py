"""Eigenvalues of a kernel of 32,768 rows, the size at which LAPACK's usual driver fails.

    python benches/eigenvalues.py [--examples 32768] [--folder FOLDER] [--record]

The workspace of `?syevd`, which NumPy calls, overflows 32-bit integers from n = 32,767 on. The
largest eigenvalues are found by Lanczos twice, from the factors of an MLP without a kernel, and
from the kernel itself in a file (float32, 4.3 GB). The two must agree within the file's rounding,
and each pair must satisfy ``K v = lambda v``. A dense solve of all eigenvalues (`?syevr`, 8.6 GB
and some 5e13 flops, half of them at the speed of memory: hours on two cores) is not run here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import record
from lowrank import batches, peak

import entk
import entk.jax
from entk import linalg
from networks import mlp, mlp_init

COUNT = 3


def pairs(kernel: Any) -> tuple[Any, float, float]:
    """Return the largest eigenpairs, their time on all cores, and their largest residual."""
    started = time.process_time()
    found = linalg.eigsh(kernel, COUNT)
    seconds = time.process_time() - started
    off = kernel @ found.vectors - found.vectors * found.values
    return found, seconds, float(np.linalg.norm(off, axis=0).max() / found.values[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=32_768)
    parser.add_argument("--folder", help="where the kernel of 4.3 GB goes for a while")
    parser.add_argument("--record", action="store_true", help="keep the table in benches/records")
    options = parser.parse_args()
    params = mlp_init(jax.random.key(0), 256)
    parts = [entk.jax.factors(mlp, params, x) for x in batches(options.examples)]
    factors = entk.Factors.concatenate(parts)
    rows: list[dict[str, object]] = []
    values = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        started = time.process_time()
        stored = entk.assemble(factors, out=Path(folder) / "K.npy", accumulate="float64")
        seconds = time.process_time() - started
        rows.append(
            {"what": "assemble to K.npy", "n": factors.n, "core_seconds": round(seconds, 1)}
        )
        print(rows[-1], file=sys.stderr, flush=True)
        for what, kernel in (("factors", entk.KernelOperator(factors)), ("K.npy", stored)):
            found, seconds, residual = pairs(kernel)
            values.append(found.values)
            rows.append({"what": f"Lanczos on {what}", "n": factors.n,
                         "core_seconds": round(seconds, 1), "peak_gib": round(peak(), 2),
                         "largest": float(found.values[-1]), "residual": float(f"{residual:.2g}"),
                         "floor": float(f"{found.floor:.3g}")})  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    off = float(np.abs(values[0] - values[1]).max())
    rows.append({"what": "difference", "n": factors.n, "largest": float(f"{off:.2g}")})
    record.write("eigenvalues", rows, record=options.record)
    return 0 if off <= found.floor and residual < 1e-6 else 1


if __name__ == "__main__":
    raise SystemExit(main())
