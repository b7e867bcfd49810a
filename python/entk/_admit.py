"""What leaves must be to become `entk.Factors`: named, of one size, with rows of known meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from entk._errors import InputError
from entk._leaves import Dense, Leaf, Lookup, Outer, Tied

Rows: TypeAlias = Literal["full", "sum", "weights"] | int

_WORDS = ("full", "sum", "weights")


def named(leaves: object) -> dict[str, Leaf]:
    """Return the leaves under checked names, each with its own shapes checked."""
    if isinstance(leaves, Mapping):
        named = dict(leaves)
    elif isinstance(leaves, Sequence) and not isinstance(leaves, str | bytes):
        named = {str(i): _from_pair(i, pair) for i, pair in enumerate(leaves)}
    else:
        raise InputError(
            f"factors are a {type(leaves).__name__}; expected a mapping from names to leaves, "
            "a list of (acts, cots) pairs, or a path to a factor store"
        )
    if not named:
        raise InputError("at least one layer factor is needed (got 0)")
    for name, leaf in named.items():
        _check_name(name)
        if not isinstance(leaf, Dense | Outer | Lookup | Tied):
            raise InputError(
                f"layer {name!r} is a {type(leaf).__name__}; wrap arrays as entk.Dense(jac), "
                "entk.Outer(acts, cots), entk.Lookup(ids, cots) or entk.Tied(uses)"
            )
        leaf._bind(f"layer {name!r}:")
    return named


def _from_pair(number: int, pair: object) -> Leaf:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"item {number} of the list is no (acts, cots) pair")
    return Outer(pair[0], pair[1])


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise InputError(f"leaf name {name!r} is a {type(name).__name__}; expected text")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"leaf name {name!r} is no valid Unicode text") from error
    if not 1 <= size <= 255:
        raise InputError(f"leaf name {name[:40]!r} has {size:,} bytes; names have 1 to 255")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name):
        raise InputError(f"leaf name {name!r} has control characters")


def agreement(leaves: Mapping[str, Leaf]) -> tuple[int, int]:
    """Return the examples and rows that all leaves have."""
    (first, head), *others = leaves.items()
    n, rows = head._n, head._rows
    for name, leaf in others:
        if leaf._n != n:
            raise InputError(f"layer {name!r}: {leaf._n:,} samples, but layer {first!r} has {n:,}")
        if leaf._rows != rows:
            raise InputError(
                f"layer {name!r} has {leaf._rows:,} outputs, layer {first!r} has {rows:,}"
            )
    if rows == 0:
        raise InputError(f"layer {first!r} has 0 outputs; at least one is needed")
    return n, rows


def meaning(outputs: object, n_outputs: int | None, rows: int) -> tuple[Rows, int]:
    """Return what the rows are and how many outputs the network has."""
    if n_outputs is not None and (isinstance(n_outputs, bool) or n_outputs < 1):
        raise InputError(f"n_outputs must be at least 1 (got {n_outputs!r})")
    if outputs is None:
        o = rows if n_outputs is None else n_outputs
        outputs = "full" if rows == o or rows > 1 else "weights"
    if isinstance(outputs, int | np.integer) and not isinstance(outputs, bool):
        outputs = int(outputs)
        o = max(rows, outputs + 1) if n_outputs is None else n_outputs
        if not 0 <= outputs < o:
            raise InputError(f"outputs={outputs} is not one of the outputs 0 to {o - 1}")
    elif not isinstance(outputs, str) or outputs not in _WORDS:
        raise InputError(
            f"factors cannot be made with outputs={outputs!r}; their rows are 'full', 'sum', "
            "'weights' or the number of an output"
        )
    o = n_outputs or (o if isinstance(outputs, int) else rows)
    wanted = o if outputs == "full" else 1
    if rows != wanted:
        raise InputError(
            f"outputs={outputs!r} of a network with {o:,} outputs means {wanted:,} "
            f"output rows per example, but the leaves have {rows:,}"
        )
    return outputs, o  # type: ignore[return-value]
