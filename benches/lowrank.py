"""A kernel of 200,000 examples as a factor of rank 1,000: time, memory, exact error, predictions.

    python benches/lowrank.py [--examples 200000] [--rank 1000] [--small 10000] [--record]

The network is an MLP (64-256-256-10, sum of logits) and the images are scikit-learn's digits, each
shifted by a part of a pixel and with noise added, so that no two are alike. Its factors go batch by
batch to a store in a temporary folder, and randomly pivoted Cholesky runs on the store: the kernel,
320 GB in float64, is never formed. Then

* the trace residual that the result states is compared with the kernel itself on 2,000 examples,
  assembled apart: entry by entry on the diagonal, and the smallest eigenvalue of what is left,
  which must not be negative beyond rounding;
* at 10,000 examples, where the exact kernel fits, ridge regression with the factor is compared
  with that of the exact kernel: relative difference of the predictions, and accuracy, on 2,000
  others; and conjugate gradients, preconditioned by the factor, are run to the exact answer.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import record

import entk
import entk.jax
from entk import linalg, lowrank
from networks import CLASSES, digits, mlp, mlp_init

BATCH = 5_000
CHECKED = 2_000
NOISE = 0.03  # of the standard deviation of a pixel
RIDGES = (1e-1, 1e-2, 1e-3)  # of the mean diagonal


def augmented(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return digits, each shifted by up to a pixel and with a little noise; and their labels."""
    images, labels = digits(1797)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(images), count)
    x = np.pad(images[chosen], ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis in (1, 2):
        shift = rng.uniform(-1.0, 1.0, (count, 1, 1, 1)).astype(np.float32)
        toward = np.where(shift > 0, np.roll(x, 1, axis), np.roll(x, -1, axis))
        x = (1 - np.abs(shift)) * x + np.abs(shift) * toward
    x = x[:, 1:-1, 1:-1] + NOISE * rng.standard_normal((count, 8, 8, 1))
    return x.astype(np.float32), labels[chosen]


def batches(count: int) -> Iterator[np.ndarray]:
    for first in range(0, count, BATCH):
        yield augmented(min(BATCH, count - first), first)[0]


def targets(count: int) -> np.ndarray:
    labels = [augmented(min(BATCH, count - i), i)[1] for i in range(0, count, BATCH)]
    return np.concatenate(labels)


def peak() -> float:
    """Return the largest resident memory so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def verify(factors: entk.Factors, low: Any) -> dict[str, float]:
    """Compare what the factor leaves with the kernel of some examples, assembled apart."""
    chosen = np.sort(np.random.default_rng(1).choice(factors.n, CHECKED, replace=False))
    kernel = entk.assemble(factors.take(chosen), dtype="float64")
    part = low.factor[chosen]
    left = kernel - part @ part.T
    stated = np.array(entk.KernelOperator(factors).diagonal())
    stated -= np.einsum("nk,nk->n", low.factor, low.factor)
    mean = float(np.trace(kernel)) / CHECKED
    inside = np.diag(left)
    return {
        "residual_stated": low.trace_residual / low.trace,
        "residual_summed": float(np.sum(stated)) / low.trace,
        "residual_sample": float(np.mean(inside)) / mean,
        "residual_sample_se": float(np.std(inside) / np.sqrt(CHECKED)) / mean,
        "diagonal_off": float(np.max(np.abs(inside - stated[chosen]))) / mean,
        "smallest_left": float(np.linalg.eigvalsh(left)[0]) / mean,
    }


def ridge_regression(factors: entk.Factors, labels: np.ndarray, n: int, rank: int) -> list[dict]:
    """Compare predictions of the factor with those of the exact kernel."""
    near, far = factors.take(slice(0, n)), factors.take(slice(n, n + CHECKED))
    y = np.eye(CLASSES)[labels[:n]] - 1.0 / CLASSES
    truth = labels[n : n + CHECKED]
    started = time.perf_counter()
    low = lowrank.rpcholesky(near, rank)
    features = low.extend(entk.KernelOperator(far, near).block(slice(None), low.pivots))
    seconds = time.perf_counter() - started
    kernel = entk.assemble(near, dtype="float64")
    cross = entk.assemble(far, near, dtype="float64")
    rows = []
    for share in RIDGES:
        ridge = share * float(np.mean(np.diag(kernel)))
        started = time.perf_counter()
        approximate = features @ (low.factor.T @ low.solve(y, ridge))
        fast = time.perf_counter() - started
        started = time.perf_counter()
        exact = cross @ linalg.solve(kernel, y, ridge)
        took = time.perf_counter() - started
        iterated = linalg.cg(kernel, y, ridge, 1e-8, preconditioner=low)
        size = np.linalg.norm(exact)
        rows.append({
            "what": f"ridge {share:g} mean(diag), N = {n:,}, rank {low.rank:,}",
            "seconds": round(seconds + fast, 2),
            "exact_seconds": round(took, 2),
            "residual_stated": _short(low.trace_residual / low.trace),
            "predictions_off": _short(np.linalg.norm(approximate - exact) / size),
            "cg_iterations": iterated.iterations,
            "cg_predictions_off": _short(np.linalg.norm(cross @ iterated.x - exact) / size),
            "accuracy": _short(np.mean(approximate.argmax(axis=1) == truth)),
            "exact_accuracy": _short(np.mean(exact.argmax(axis=1) == truth)),
        })  # fmt: skip
    return rows


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--rank", type=int, default=1_000)
    parser.add_argument("--small", type=int, default=10_000, help="examples of the exact kernel")
    parser.add_argument("--store", metavar="FOLDER", help="keep the factors here, or reuse them")
    parser.add_argument("--record", action="store_true", help="keep the table in benches/records")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        params = mlp_init(jax.random.key(0), 256)
        factors = entk.jax.write_factors(
            options.store or f"{scratch}/factors", mlp, params, batches(options.examples),
            resume=options.store is not None,
        )  # fmt: skip
        wrote = time.perf_counter() - started
        rows.append({"what": f"factors of N = {factors.n:,}, {factors.nbytes / 2**30:.2f} GiB",
                     "seconds": round(wrote, 1), "peak_gib": round(peak(), 2)})  # fmt: skip
        started = time.perf_counter()
        low = lowrank.rpcholesky(factors, options.rank)
        seconds = time.perf_counter() - started
        rows.append({"what": f"rpcholesky, N = {factors.n:,}, rank {low.rank:,}",
                     "seconds": round(seconds, 1), "peak_gib": round(peak(), 2),
                     "factor_gib": round(low.factor.nbytes / 2**30, 2),
                     **{k: _short(v) for k, v in verify(factors, low).items()}})  # fmt: skip
        found = rows[-1]
        del low
        labels = targets(options.small + CHECKED)
        rows += ridge_regression(factors, labels, options.small, options.rank)
    record.write("lowrank", rows, record=options.record)
    sound = (
        abs(found["residual_stated"] - found["residual_summed"]) < 1e-3 * found["residual_stated"]
        and abs(found["residual_sample"] - found["residual_stated"])
        < 5 * found["residual_sample_se"]
        and found["diagonal_off"] < 1e-9
        and found["smallest_left"] > -1e-9
    )
    return 0 if sound else 1


if __name__ == "__main__":
    raise SystemExit(main())
