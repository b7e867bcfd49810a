"""How well do kernels of a trained network classify, against the network itself?

    python benches/accuracy.py [--fast] [--record]

An MLP and a CNN are trained on 300 of scikit-learn's digits (Adam on the cross-entropy). For each,
before and after training, ridge regression on one-hot targets with the pNTK (sum of logits), the
trace kernel and the full kernel classifies the other digits. After training, regression starts from
zero, which asks what the kernel alone knows, and from the network's own outputs (`f0`), which asks
what a step of the linearised network on the squared error would make of it: logits of a network
trained on the cross-entropy are no one-hot targets, and being pulled towards them costs accuracy.
The ridge is the one of four with the best leave-one-out accuracy on the training digits; nothing is
chosen on the test digits.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import jax
import numpy as np
import record

import entk
import entk.jax
from entk.regression import KernelRidge
from networks import CLASSES, NETWORKS, digits, train

TRAIN = 300
WIDTH = {"MLP": 256, "CNN": 64}
STEPS = 400
RIDGES = np.array([1e-4, 1e-3, 1e-2, 1e-1])  # of the mean diagonal
KERNELS = ("sum", "trace", "full")


def classify(
    near: entk.Factors, far: entk.Factors, word: str, y: np.ndarray, starts: list[Any]
) -> list[np.ndarray]:
    """Return the classes that ridge regression predicts, for each of the starts."""
    kernel = entk.assemble(near, outputs=word, dtype="float64")
    cross = entk.assemble(far, near, outputs=word, dtype="float64")
    ridges = RIDGES * np.trace(kernel) / len(kernel)
    truth, found = y.argmax(axis=1), []
    for f0, f0_star in starts:
        model = KernelRidge(ridge=ridges).fit(kernel, y, f0=f0)
        right = (model.loo_predictions_.argmax(axis=2) == truth).mean(axis=1)
        found.append(model.predict(cross, f0=f0_star)[int(np.argmax(right))].argmax(axis=1))
    return found


def rows_of(name: str, count: int) -> list[dict[str, object]]:
    """Measure one network before and after training."""
    network, init = NETWORKS[name]
    images, labels = digits(TRAIN + count)
    truth, y = labels[TRAIN:], np.eye(CLASSES)[labels[:TRAIN]]
    fresh = init(jax.random.key(0), WIDTH[name])
    rows = []
    for word, params in (
        ("initial", fresh),
        ("trained", train(network, fresh, images[:TRAIN], labels[:TRAIN], STEPS)),
    ):
        factors = entk.jax.factors(network, params, images, outputs="full")
        scores = np.asarray(network(params, images), np.float64)
        near, far = factors.take(slice(0, TRAIN)), factors.take(slice(TRAIN, None))
        certificate = entk.certify(near, samples=100)
        row = {"network": name, "width": WIDTH[name], "weights": word, "test": len(truth),
               "network_itself": _share(scores[TRAIN:].argmax(axis=1) == truth)}  # fmt: skip
        for kernel in KERNELS:
            starts: list[Any] = [(None, None)]
            if word == "trained":
                starts.append((scores[:TRAIN], scores[TRAIN:]))
            fits = classify(near, far, kernel, y, starts)
            row[kernel] = _share(fits[0] == truth)
            if word == "trained":
                row[f"{kernel}_from_network"] = _share(fits[1] == truth)
        row["frobenius_sum"] = float(f"{certificate.frobenius_sum:.3g}")
        row["frobenius_trace"] = float(f"{certificate.frobenius_trace:.3g}")
        row["certified"] = certificate.ok
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def _share(right: np.ndarray) -> float:
    return round(float(np.mean(right)), 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="the MLP alone, 200 test digits")
    parser.add_argument("--record", action="store_true", help="keep the table in benches/records")
    options = parser.parse_args()
    rows = []
    for name in ("MLP",) if options.fast else ("MLP", "CNN"):
        rows += rows_of(name, 200 if options.fast else 1797 - TRAIN)
    record.write("accuracy", rows[::-1], record=options.record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
