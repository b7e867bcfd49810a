"""Runs that stop on the way, and what plain readers see of their stores."""

from pathlib import Path

import numpy as np
import pytest

import entk

FORMATS = ["npy", "zarr"]
N, TILE = 20, 5
TILES = 10


class Stop(Exception):
    """Ends a run from its progress callback."""


def stop_after(tiles):
    def report(done, _total):
        if done == tiles:
            raise Stop

    return report


def interrupted(factors, path, tiles=4, **options):
    with pytest.raises(Stop):
        entk.assemble(factors, out=path, tile=TILE, progress=stop_after(tiles), **options)


def finish(factors, path, **options):
    """Resume and count the tiles that are computed."""
    seen = []
    kernel = entk.assemble(
        factors, out=path, tile=TILE, resume=True, progress=lambda *b: seen.append(b), **options
    )
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))
    assert np.array_equal(plain(path), entk.assemble(factors))
    return len(seen) - 1


def plain(path):
    if str(path).endswith(".npy"):
        return np.load(path)
    import zarr

    return zarr.open_group(path, mode="r")["kernel"][...]


def listing(folder):
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*")}
