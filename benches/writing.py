"""What the system takes to write a kernel of N = 24,000 (2.3 GB), with no assembly beside it.

A `.npy` gets each tile in runs of one row of the tile, in both halves; a `.zarr` gets it in one
piece, whose pages are dropped when they are safe. Both are synced after each tile. The system time
is added to the core seconds of the same kernel in RAM: what an assembly to the file can reach.

    python benches/writing.py [--examples 24000] [--folder FOLDER] [--rounds 3] [--record]
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import record

import entk
from entk._bench import random_factors

WIDTH, SUM_OF_WIDTHS, ITEM = 256, 2048, 4
IN_RAM = 12_000


def in_ram(n):
    """Core seconds of a kernel of `n` examples in RAM, from those of a smaller one."""
    factors = random_factors(IN_RAM, WIDTH, SUM_OF_WIDTHS)
    started = time.process_time()
    entk.assemble(factors)
    return (time.process_time() - started) * (n / IN_RAM) ** 2


def system_seconds():
    """System time of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_stime


def npy(folder, n, tile, entries):
    """Write all tiles of both halves row by row."""
    with (folder / "K.npy").open("wb") as file:
        file.truncate(n * n * ITEM)
        for i, j in lower(n, tile):
            for rows, cols in {(i, j), (j, i)}:
                length = (min(cols + tile, n) - cols) * ITEM
                for line, row in enumerate(range(rows, min(rows + tile, n))):
                    start = line * length
                    place = (row * n + cols) * ITEM
                    os.pwrite(file.fileno(), entries[start : start + length], place)
            os.fdatasync(file.fileno())


def zarr(folder, n, tile, entries):
    """Write all tiles of both halves as files."""
    for i, j in lower(n, tile):
        for rows, cols in {(i, j), (j, i)}:
            with (folder / f"{rows}.{cols}").open("wb", buffering=0) as file:
                file.write(entries)
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def lower(n, tile):
    """Return the first entries of the tiles of the lower half."""
    corners = range(0, n, tile)
    return [(i, j) for i, j in itertools.product(corners, corners) if i >= j]


def main():
    """Time the ways to write, interleaved with RAM, and print CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=24_000)
    parser.add_argument("--folder", help="on the file system that is asked about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    n, rows = options.examples, []
    for write, tile in ((npy, 4096), (npy, 8192), (zarr, 4096)):
        entries = memoryview(np.ones(tile * tile, np.float32)).cast("B")
        computing, writing = [], []
        for _ in range(options.rounds):
            computing.append(in_ram(n))
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                before = system_seconds()
                write(Path(folder), n, tile, entries)
                writing.append(system_seconds() - before)
        c, w = statistics.median(computing), statistics.median(writing)
        rows.append(
            {
                "format": write.__name__,
                "n": n,
                "tile": tile,
                "computing_core_seconds": round(c, 2),
                "writing_system_seconds": round(w, 2),
                "of_ram_at_most": round(c / (c + w), 2),
            }
        )
    record.write("writing", rows, record=options.record)


if __name__ == "__main__":
    main()
