"""Peak memory: measured growth <= plan().peak_bytes <= memory=, for three limits and three sinks.

Each case runs in a process of its own: what a process has touched once, it may keep. The growth is
that of the peak resident set between the moment before the call and its return.

    python benches/memory.py [--fast] [--record]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import record

import entk
from entk._bench import random_factors
from entk._measure import Cost

MIB = 2**20
WIDTH, SUM_OF_WIDTHS, TILE = 256, 1024, 1024
LIMITS = {"ram": (96, 128, 256), "npy": (32, 64, 128), "zarr": (32, 64, 128)}  # MiB


def child(n, sink, limit):
    """Assemble once under the limit; print what was planned and what was measured."""
    factors = random_factors(n, WIDTH, SUM_OF_WIDTHS)
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


def run_case(n, sink, limit):
    """Run one case in a fresh process; one row."""
    command = [sys.executable, __file__, "--child", str(n), sink, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{sink}, {limit} MiB: {done.stderr}")
    got = json.loads(done.stdout.splitlines()[-1])
    return {
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
    parser.add_argument("--record", action="store_true", help="keep the figures in records/")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(int(options.child[0]), options.child[1], int(options.child[2]))
        return
    on_disk = 4096 if options.fast else 12288
    rows = []
    for sink, limits in LIMITS.items():
        rows += [run_case(4096 if sink == "ram" else on_disk, sink, limit) for limit in limits]
    record.write("memory", rows, record=options.record)
    if not all(row["ok"] for row in rows):
        sys.exit("a measured peak was above the plan, or a plan above its limit")


if __name__ == "__main__":
    main()
