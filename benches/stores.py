"""Kernels on disk: rate against RAM, resuming, workers, verifying, and memory over time.

Four outer leaves with d_in = d_out = 256 (widths sum to 2,048), float32, factors in a store, tiles
of 4,096 (8,192 for .npy where the limit allows: its rows are then written in longer runs). The rate
in RAM is taken before and after each case, at an N whose kernel fits, and ratios are to the better
of the two: machines drift. Files are removed after each case.

    python benches/stores.py [--fast] [--only "rate*npy" ...] [--tally FILE] [--record]
                             [--plot docs/stores-memory.png]

A long series may be made in pieces: with `--tally FILE` the next run adds to the rows of this one.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import fnmatch
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import record

import entk
from entk._bench import random_factors, useful_flops

WIDTH, SUM_OF_WIDTHS, TILE, WIDE_TILE = 256, 2048, 4096, 8192
MIB = 2**20
# What must hold; `verify` and `processes` are rates too.
FLOORS = {
    "rate 1GiB": 0.80,
    "rate 256MiB": 0.60,
    "processes": 0.85,
    "verify warm": 0.50,
    "verify cold": 0.50,
}
CEILINGS = {"resume": 0.15}
SAMPLES_A_SECOND = 50


def in_ram(n):
    """Flops a second of a kernel in RAM."""
    factors = random_factors(n, WIDTH, SUM_OF_WIDTHS)
    started = time.perf_counter()
    entk.assemble(factors, tile=TILE)
    return useful_flops(factors) / (time.perf_counter() - started)


def to_disk(out, **options):
    """Seconds and flops a second of a kernel on disk, its factors on disk too."""
    flops = useful_flops(entk.open("F.entk"))
    started = time.perf_counter()
    entk.assemble("F.entk", out=out, **options)
    seconds = time.perf_counter() - started
    return seconds, flops / seconds


def remove(name):
    """Remove a kernel, finished or not, and what is beside it."""
    for path in Path().glob(f"{name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class Sampler:
    """The anonymous memory of this process over time, above what it was at the start."""

    def __init__(self):
        self.seconds, self.bytes = array.array("d"), array.array("q")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._start, self._base = time.perf_counter(), anonymous()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(1 / SAMPLES_A_SECOND):
            self.seconds.append(time.perf_counter() - self._start)
            self.bytes.append(anonymous() - self._base)


def anonymous():
    """Bytes of the process that no file stands behind (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def rate(fmt, n, fits, limit):
    """Rate on disk under a limit, against the better one in RAM before and after it."""
    random_factors(n, WIDTH, SUM_OF_WIDTHS).save("F.entk")
    before = fresh(in_ram, fits)
    tile = WIDE_TILE if (fmt, limit) == ("npy", "1GiB") else TILE
    got = fresh(disk_run, f"K.{fmt}", limit, tile)
    remove("K")
    beside = max(before, fresh(in_ram, fits))
    return {
        "tile": tile,
        "seconds": got["seconds"],
        "rate": got["rate"] / 1e9,
        "against": beside / 1e9,
        "ratio": got["rate"] / beside,
        "peak_mib": got["peak"] / MIB,
        "planned_mib": got["planned"] / MIB,
        "trace": got["trace"],
    }


def disk_run(out, limit, tile):
    """Write one kernel and watch the memory."""
    factors = random_factors(64, WIDTH, SUM_OF_WIDTHS)
    entk.assemble(factors, out=f"small-{out}")  # code is loaded: no part of what a call adds
    remove("small-")
    planned = entk.plan("F.entk", out=out, tile=tile, memory=limit).peak_bytes
    with Sampler() as sampler:
        seconds, rate = to_disk(out, memory=limit, tile=tile)
    return {
        "seconds": seconds,
        "rate": rate,
        "planned": planned,
        "peak": max(sampler.bytes),
        "trace": [list(sampler.seconds), list(sampler.bytes)],
    }


def resume(fmt, n, _fits):
    """What the last tenth of a kernel takes, against all of it."""
    random_factors(n, WIDTH, SUM_OF_WIDTHS).save("F.entk")
    tile = n // 20  # 210 tiles: a tenth of them is a tenth of the work
    clean, again = fresh(resume_run, f"K.{fmt}", tile)
    return {"tile": tile, "seconds": again, "against": clean, "ratio": again / clean}


class Enough(Exception):
    """Nine tenths are done."""


def resume_run(out, tile):
    """Seconds of a clean run, and of one that goes on where nine tenths were done."""
    started = time.perf_counter()
    entk.assemble("F.entk", out=out, tile=tile)
    clean = time.perf_counter() - started
    remove(out)

    def stop(done, total):
        if done >= 0.9 * total:
            raise Enough

    with contextlib.suppress(Enough):
        entk.assemble("F.entk", out=out, tile=tile, progress=stop)
    started = time.perf_counter()
    entk.assemble("F.entk", out=out, tile=tile, resume=True)
    return clean, time.perf_counter() - started


def processes(fmt, n, _fits):
    """Two worker processes against two threads."""
    random_factors(n, WIDTH, SUM_OF_WIDTHS).save("F.entk")
    alone, together = fresh(worker_run, f"K.{fmt}")
    return {"seconds": together, "against": alone, "ratio": alone / together}


def worker_run(out):
    """Seconds of one process with two threads, and of two processes (started before)."""
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(abs, range(100)))
        alone = to_disk(out, threads=2)[0]
        remove(out)
        together = to_disk(out, threads=2, executor=pool)[0]
    return alone, together


def verify(fmt, n, _fits, state):
    """Bytes a second of `verify` against `cat`, both with a cold or both with a warm cache."""
    random_factors(n, WIDTH, SUM_OF_WIDTHS).save("F.entk")
    out = f"K.{fmt}"
    fresh(disk_run, out, "1GiB", TILE)
    size = sum(path.stat().st_size for path in data_files(out))
    ready = forget if state == "cold" else run_cat
    ready(out)
    cat = clock(lambda: run_cat(out))
    ready(out)
    seconds = fresh(verify_run, out)
    return {
        "seconds": seconds,
        "rate": size / seconds / 1e9,
        "against": size / cat / 1e9,
        "ratio": cat / seconds,
    }


def verify_run(out):
    """Seconds of `Kernel.verify`."""
    kernel = entk.open(out)
    return clock(kernel.verify)


def run_cat(out):
    """Read all entries with the system's cat."""
    subprocess.run(["cat", *data_files(out)], stdout=subprocess.DEVNULL, check=True)


def data_files(out):
    """Files that hold entries."""
    path = Path(out)
    return [path] if path.is_file() else [p for p in sorted(path.rglob("c/*/*")) if p.is_file()]


def forget(out):
    """Drop a store's pages from the system's cache."""
    os.sync()
    for path in data_files(out):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def clock(function):
    """Seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def fresh(function, *given):
    """Call in a new process: what one has touched once, it may keep."""
    command = [sys.executable, __file__, "--call", function.__name__, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{function.__name__}{given}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def draw(rows, path):
    """Draw the memory over time of the runs under the smallest limit."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    limited = [row for row in rows if row["case"] == "rate 256MiB"]
    for row in limited:
        seconds, used = row["trace"]
        size = row["n"] ** 2 * 4 / 1e9
        label = f".{row['format']}: {size:.1f} GB written"
        axes.plot(seconds, [b / MIB for b in used], linewidth=0.8, label=label)
    axes.axhline(256, color="black", label="limit")
    planned = max(row["planned_mib"] for row in limited)
    axes.axhline(planned, color="black", linestyle=":", label="planned")
    axes.set_ylim(0, 280)
    axes.set_xlabel("seconds")
    axes.set_ylabel("anonymous memory added, MiB")
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=110)


def broken(row):
    """Say which promise a row breaks; None if it keeps all."""
    case, ratio = row["case"], row["ratio"]
    if ratio < FLOORS.get(case, 0) or ratio > CEILINGS.get(case, float("inf")):
        return f"{case}, {row['format']}: {ratio:.2f}"
    if row.get("peak_mib", 0) > row.get("planned_mib", 0):
        return f"{case}, {row['format']}: {row['peak_mib']:.0f} MiB were used"
    return None


COLUMNS = ["case", "format", "n", "tile", "seconds", "rate", "against", "ratio"]
COLUMNS += ["peak_mib", "planned_mib"]


def shown(row):
    """Round the figures of a row."""
    cells = {name: row.get(name, "") for name in COLUMNS}
    return {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in cells.items()}


CASES = {
    "rate 1GiB": (rate, "1GiB"),
    "rate 256MiB": (rate, "256MiB"),
    "resume": (resume,),
    "processes": (processes,),
    "verify warm": (verify, "warm"),
    "verify cold": (verify, "cold"),
}


def run_case(case, fmt, *, fast):
    """Run one case in a folder of its own; one row."""
    function, *given = CASES[case]
    large, fits = (16384, 8192) if fast else (50_000, 16384)
    n = large if function is rate else fits
    home = Path.cwd()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.chdir(folder)
        try:
            row = {
                "case": case,
                "format": fmt,
                "n": n,
                "tile": TILE,
                **function(fmt, n, fits, *given),
            }
        finally:
            os.chdir(home)
    print(shown(row), file=sys.stderr, flush=True)
    return row


def main():
    """Run the cases; fail when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="smaller kernels")
    parser.add_argument("--only", nargs="+", default=["*"], help="cases, as 'rate 1GiB npy'")
    parser.add_argument("--tally", type=Path, help="add to the rows of this file")
    parser.add_argument("--record", action="store_true", help="keep the figures in records/")
    parser.add_argument("--plot", metavar="FILE", help="draw the memory over time")
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        print(json.dumps(globals()[options.call[0]](*json.loads(options.call[1]))))
        return
    kept = options.tally and options.tally.exists() and json.loads(options.tally.read_text())
    found = {(row["case"], row["format"]): row for row in kept or []}
    for case, fmt in itertools.product(CASES, ("zarr", "npy")):
        if any(fnmatch.fnmatch(f"{case} {fmt}", only) for only in options.only):
            found[case, fmt] = run_case(case, fmt, fast=options.fast)
            if options.tally:
                options.tally.write_text(json.dumps(list(found.values())))
    rows = [found[key] for key in itertools.product(CASES, ("zarr", "npy")) if key in found]
    record.write("stores", [shown(row) for row in rows], record=options.record)
    if options.plot:
        draw(rows, options.plot)
    faults = [fault for fault in map(broken, rows) if fault]
    if faults:
        sys.exit("; ".join(faults))


if __name__ == "__main__":
    main()
