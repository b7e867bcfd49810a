"""Twelve small problems whose kernels have the same bits on every CPU, for ever.

``python tests/golden.py`` prints their hashes as JSON; a change of ``golden.json`` is a change of
the kernel's ABI. The numbers come from integers alone, so no library can change them.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import entk
from cases import cast

FILE = Path(__file__).with_name("golden.json")
MULTIPLIER = 2654435761
WORD = 1 << 32


def numbers(shape, seed, dtype="float32"):
    """Return numbers between -1 and 1 with 20 bits, which every type here can round alike."""
    index = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64)
    hashed = (index * MULTIPLIER + (seed + 1) * 40503 * MULTIPLIER) % WORD
    hashed = (hashed ^ (hashed >> np.uint64(15))) * 2246822519 % WORD
    return cast((hashed >> np.uint64(12)).astype(np.float64) / 2.0**19 - 1.0, dtype).reshape(shape)


def outer(n, d_in, d_out, seed=0, body=(), rows=(), dtype="float32", **options):
    acts = numbers((n, *body, d_in), seed, dtype)
    return entk.Outer(acts, numbers((n, *rows, *body, d_out), seed + 1, dtype), **options)


def lookup(n, t, d, seed=0):
    ids = (numbers((n, t), seed) * 4).astype(np.int32)
    return entk.Lookup(np.maximum(ids, -1), numbers((n, t, d), seed + 1))


def problems():
    """Return name -> (factors, options of assemble)."""
    table = [lookup(19, 5, 8), outer(19, 8, 6, 2, transposed=True), outer(19, 6, 8, 4, (3,))]
    return {
        "narrow": ({"w": outer(37, 5, 3)}, {}),
        "one-chain-block": ({"w": outer(23, 256, 255)}, {}),
        "several-chain-blocks": ({"w": outer(23, 515, 257)}, {}),
        "float64": ({"w": outer(23, 257, 31, dtype="float64")}, {}),
        "float64-accumulation": ({"w": outer(23, 515, 31)}, {"accumulate": "float64"}),
        "float16": ({"w": outer(23, 65, 31, dtype="float16")}, {}),
        "bfloat16": ({"w": outer(23, 65, 31, dtype="bfloat16")}, {}),
        "positions": ({"w": outer(19, 600, 40, body=(3,))}, {}),
        "positions-expanded": ({"w": outer(19, 12, 10, body=(40,))}, {}),
        "blocks-and-bias": (
            {"w": outer(19, 7, 5, body=(2, 3)), "b": entk.Dense(numbers((19, 300), 9))},
            {},
        ),
        "tied-table": ({"w": entk.Tied(table), "e": lookup(19, 5, 8, 7)}, {}),
        "trace-of-outputs": ({"w": outer(19, 600, 9, rows=(3,))}, {"outputs": "trace"}),
    }


def hashes():
    """Return name -> SHA-256 of the kernel's bytes, little-endian and in C order."""
    result = {}
    for name, (leaves, options) in problems().items():
        kernel = entk.assemble(leaves, **options)
        little = np.ascontiguousarray(kernel.astype(kernel.dtype.newbyteorder("<")))
        result[name] = hashlib.sha256(little.tobytes()).hexdigest()
    return result


if __name__ == "__main__":
    json.dump(hashes(), sys.stdout, indent=1)
    print()
