"""Ways for the same numbers to lie in memory."""

import tempfile
from pathlib import Path

import numpy as np

import entk


def swapped(x):
    return x.astype(x.dtype.newbyteorder(">"))


def misaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    return raw[1:].view(x.dtype).reshape(x.shape)


def spaced(x):
    wide = np.zeros([3 * k for k in x.shape], x.dtype)
    view = wide[tuple(slice(0, None, 3) for _ in x.shape)]
    view[...] = x
    return view


def reversed_twice(x):
    backwards = tuple(slice(None, None, -1) for _ in x.shape)
    return np.ascontiguousarray(x[backwards])[backwards]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def offset(x):
    return np.concatenate([np.zeros(1, x.dtype), x.ravel()])[1:].reshape(x.shape)


def mapped(x):
    """The file goes when the memory does."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", x)
        return np.load(Path(folder) / "x.npy", mmap_mode="r")


LAYOUTS = {
    "c": np.array,
    "fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "strided": spaced,
    "negative": reversed_twice,
    "misaligned": misaligned,
    "read-only": read_only,
    "byte-swapped": swapped,
    "offset": offset,
    "mapped": mapped,
}


def relaid(factors, layout):
    """Return `factors` with every array laid out anew."""

    def again(part):
        given = part.given()
        return given.view(LAYOUTS[layout](given.array))

    leaves = {name: leaf._rebuild(again) for name, leaf in factors.items()}
    return entk.Factors(leaves, outputs=factors.outputs, n_outputs=factors.n_outputs)
