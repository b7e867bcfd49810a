"""Kill assemblies at random times and look at what is left, for tests and `benches/kills.py`."""

import hashlib
import mmap
import os
import signal
import struct
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import entk
from entk import _unfinished

THREADS = 2
# What may be lost beside tiles in flight: one computed, one being written, a group not committed.
MOST_LOST = 2 + 2 * THREADS


# What may be beside an unfinished or finished store after a kill (docs/stores.md).
LISTED = ("", ".entk", ".partial", ".partial.entk", ".partial.lock")


@dataclass
class Tally:
    """What a series of kills did."""

    kills: int = 0
    finished: int = 0
    wrong: int = 0
    unlisted: int = 0
    lost: list = field(default_factory=list)
    overhead_seconds: list = field(default_factory=list)
    resume_seconds: list = field(default_factory=list)

    @property
    def most_lost(self):
        """Largest number of tiles that a kill cost: they are computed twice."""
        return max(self.lost, default=0)


def digest(path):
    """Hash all files of a store, by name and content."""
    found = hashlib.sha256()
    for file in sorted([path, *path.rglob("*")] if path.is_dir() else [path]):
        if file.is_file() and file.name != "zarr.json":
            found.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return found.hexdigest()


def start(factors, path, tile, counter, **options):
    """Assemble in a forked child, which counts its tiles in shared memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child

    def report(done, _total):
        counter[:8] = struct.pack("<q", done)

    status = 1
    try:
        chosen = {"resume": True, "threads": THREADS, **options}
        entk.assemble(factors, out=path, tile=tile, progress=report, **chosen)
        status = 0
    finally:
        os._exit(status)


def computed(counter):
    return struct.unpack("<q", counter[:8])[0]


def look(path, factors, want):
    """Return how many tiles an unfinished store holds; all of them must be right."""
    try:
        kernel = entk.open(path, partial=True)
    except entk.StoreIncompleteError:
        return 0, True
    with kernel:
        sound = all(np.array_equal(t, want[i0:i1, j0:j1]) for (i0, i1, j0, j1), t in kernel.tiles())
        if kernel.complete:
            kernel.verify()
        return kernel.tiles_done, sound


def readable(path):
    """Whether a plain reader takes the final name for a kernel."""
    try:
        if path.suffix == ".npy":
            np.load(path, mmap_mode="r")
        else:
            import zarr

            zarr.open_group(path, mode="r")
    except (OSError, ValueError, LookupError):
        return False
    return True


def unlisted(path):
    """Count names beside a store that the documentation does not list."""
    allowed = {path.name + end for end in LISTED} | {f"clean{path.suffix}", "clean.npy.entk"}
    return sum(
        name not in allowed and not name.endswith(".tmp") for name in os.listdir(path.parent)
    )


def resumed(factors, path, tile):
    """Finish a store; seconds until the first missing tile is begun, and until the end."""
    begun = time.monotonic()
    seen = []

    def report(_done, _total):
        seen.append(time.monotonic() - begun)

    entk.assemble(factors, out=path, tile=tile, resume=True, threads=1, progress=report)
    ended = time.monotonic() - begun
    return (seen[0] if seen else ended), ended


def series(folder, suffix, factors, tile, kills, seed, seconds=float("inf")):
    """Kill runs until there were `kills` kills, up to five in a row for one store.

    Stops earlier, between two stores, when `seconds` have passed.
    """
    dice = np.random.default_rng(seed)
    folder = Path(folder)
    clean = folder / f"clean.{suffix}"
    lengths = []
    for _ in range(2):  # the first one is longer on a cold disk
        begun = time.monotonic()
        entk.assemble(factors, out=clean, tile=tile, threads=THREADS, overwrite=True)
        lengths.append(time.monotonic() - begun)
    length = min(lengths)
    want, hashed = np.asarray(entk.open(clean)), digest(clean)
    counter = mmap.mmap(-1, 8)
    tally = Tally()
    until = time.monotonic() + seconds
    while tally.kills < kills and time.monotonic() < until:
        path = folder / f"K{tally.finished}.{suffix}"
        for _ in range(int(dice.integers(1, 6))):
            counter[:8] = bytes(8)
            child = start(factors, path, tile, counter)
            time.sleep(float(dice.uniform(0, length)))
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            done, sound = look(path, factors, want)
            tally.kills += status == -signal.SIGKILL
            tally.wrong += not sound or (readable(path) and done < (len(want) // tile) ** 2 // 2)
            tally.unlisted += unlisted(path)
            if status == -signal.SIGKILL:
                tally.lost.append(max(0, computed(counter) - done))
        overhead, ended = resumed(factors, path, tile)
        tally.overhead_seconds.append(overhead)
        tally.resume_seconds.append(ended)
        tally.wrong += digest(path) != hashed
        tally.finished += 1
        _unfinished.remove(str(path))
    return tally
