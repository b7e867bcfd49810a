"""Peak memory: measured growth <= plan().peak_bytes <= memory=.

Five limits, three problems, three sinks.

Each case runs in a process of its own: what a process has touched once, it may keep. The growth is
that of the peak resident set between the moment before the call and its return.

    python benches/memory.py [--fast] [--only outer ...] [--record]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import record

import entk
from entk._bench import random_factors
from entk._measure import Cost

MIB = 2**20
WIDTH, SUM_OF_WIDTHS, TILE = 256, 1024, 1024
ON_DISK = (32, 48, 64, 128, 256)
LIMITS = {"ram": (96, 112, 128, 192, 256), "npy": ON_DISK, "zarr": ON_DISK}  # MiB
POSITIONS, NARROW = 16, 32


def outer(n):
    """Weights of layers with one position: products of two Gram matrices."""
    return random_factors(n, WIDTH, SUM_OF_WIDTHS)


def positions(n):
    """A weight that is used at many positions."""
    rng = np.random.default_rng(0)
    shape = (n, POSITIONS, NARROW)
    acts, cots = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    return entk.Factors({"weight": entk.Outer(acts, cots)})


def dense(n):
    """A Jacobian, wider than the panels of a pass may be."""
    rng = np.random.default_rng(0)
    jac = rng.standard_normal((n, SUM_OF_WIDTHS), dtype=np.float32)
    return entk.Factors({"weight": entk.Dense(jac)})


PROBLEMS = {"outer": outer, "positions": positions, "dense": dense}


def child(problem, n, sink, limit):
    """Assemble once under the limit; print what was planned and what was measured."""
    factors = PROBLEMS[problem](n)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        # Loads code and the interpreter's own memory: not part of what a call adds.
        warm = None if sink == "ram" else str(Path(folder) / f"small.{sink}")
        entk.assemble(factors.take(slice(64)), out=warm)
        out = None if sink == "ram" else str(Path(folder) / f"K.{sink}")
        given = {"tile": TILE, "out": out, "memory": limit * MIB}
        planned = entk.plan(factors, **given).peak_bytes
        with Cost() as cost:
            entk.assemble(factors, **given)
    print(json.dumps({"planned": planned, "measured": cost.peak_bytes, "seconds": cost.seconds}))


def run_case(problem, n, sink, limit):
    """Run one case in a fresh process; one row."""
    command = [sys.executable, __file__, "--child", problem, str(n), sink, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{problem}, {sink}, {limit} MiB: {done.stderr}")
    got = json.loads(done.stdout.splitlines()[-1])
    return {
        "problem": problem,
        "sink": sink,
        "n": n,
        "limit_mib": limit,
        "planned_mib": f"{got['planned'] / MIB:.1f}",
        "measured_mib": f"{got['measured'] / MIB:.1f}",
        "measured_of_limit": f"{got['measured'] / MIB / limit:.2f}",
        "seconds": f"{got['seconds']:.2f}",
        "ok": got["measured"] <= got["planned"] <= limit * MIB,
    }


def main():
    """Run all cases; fail when one broke its promise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="smaller kernels")
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, help="some of the problems")
    parser.add_argument("--record", action="store_true", help="keep the figures in records/")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        problem, n, sink, limit = options.child
        child(problem, int(n), sink, int(limit))
        return
    on_disk = 4096 if options.fast else 8192
    rows = []
    for problem in options.only or PROBLEMS:
        for sink, limits in LIMITS.items():
            n = 4096 if sink == "ram" else on_disk
            rows += [run_case(problem, n, sink, limit) for limit in limits]
    record.write("memory", rows, record=options.record)
    if not all(row["ok"] for row in rows):
        sys.exit("a measured peak was above the plan, or a plan above its limit")


if __name__ == "__main__":
    main()
