"""The choice between the factors of a weight and its dense gradient, by counting numbers.

One example of a weight with `G` blocks of `d_in x d_out`, used at `T` positions, kept for `R` rows:

| form | numbers stored | products per pair of examples |
|---|---|---|
| outer | `G T (d_in + R d_out)` | `G T^2 (d_in + R^2 (d_out + 1))` |
| dense | `G R d_in d_out` | `G R^2 d_in d_out` |

The two columns disagree between `T = sqrt(d / 2)` and `T = d / 2`. Factors win there too: the core
expands them tile by tile, so that they cost the dense number of products and the factors' memory.

Beyond `T = d / 2` dense is smaller to keep, but has to be made: `G R T d_in d_out` products an
example, as many as the forward pass of that layer. Factors up to `LARGER` times as large are kept
where moving the numbers they have more costs less than that. (Strided 3 x 3 convolutions of 32 to
64 channels at 8 x 8 places: 1.22 times the numbers, and a third of an extraction saved.)
Pure arithmetic: no framework, no arrays.
"""

from __future__ import annotations

LARGER = 1.5
"""Factors are never kept where they are more than this many times as large as the gradient."""

PRODUCTS = 32
"""Products that take as long as writing a number: the balance of processors of 2020 to 2026."""

LOOP_FACTOR = 16
"""Weights of loops keep their factors until these are so many times larger than the gradient."""


def choose(t: int, d_in: int, d_out: int, rows: int, groups: int = 1) -> tuple[str, str]:
    """Return `"outer"` or `"dense"` for a weight, and the count that decided.

    A weight with `t * (d_in + d_out) < d_in * d_out` is never dense.
    """
    outer, dense = _stored(t, d_in, d_out, rows, groups)
    if t * (d_in + d_out) < d_in * d_out or outer < dense:
        return "outer", f"factors are smaller: {outer:,} numbers an example, dense {dense:,}"
    if t * t * (d_in + rows * rows * (d_out + 1)) < rows * rows * d_in * d_out:
        return "outer", f"factors contract in fewer products (T = {t}, {d_in} x {d_out})"
    if outer <= LARGER * dense and PRODUCTS * (outer - dense) < t * dense:
        return (
            "outer",
            f"factors are cheaper to make: {outer:,} numbers an example, dense {dense:,}",
        )
    return "dense", f"dense is smaller: {dense:,} numbers an example, factors {outer:,} (T = {t})"


def choose_loop(t: int, d_in: int, d_out: int, rows: int, groups: int = 1) -> tuple[str, str]:
    """Return the form of a weight of a recurrent loop: its factors, unless these are far larger."""
    outer, dense = _stored(t, d_in, d_out, rows, groups)
    if t * (d_in + d_out) < d_in * d_out or outer <= LOOP_FACTOR * dense:
        return "outer", f"factors of {t} steps: {outer:,} numbers an example, dense {dense:,}"
    return "dense", f"dense is smaller: {dense:,} numbers an example, factors {outer:,} (T = {t})"


def choose_lookup(t: int, table_rows: int, d: int, rows: int) -> tuple[str, str]:
    """Return `"lookup"` or `"dense"` for a table of `table_rows x d` read at `t` places."""
    lookup, dense = t * (1 + rows * d), rows * table_rows * d
    if t * (table_rows + d) < table_rows * d or lookup < dense:
        return "lookup", f"{t} of {table_rows:,} rows: {lookup:,} numbers, dense {dense:,}"
    return "dense", f"dense is smaller: {dense:,} numbers an example, looked-up rows {lookup:,}"


def _stored(t: int, d_in: int, d_out: int, rows: int, groups: int) -> tuple[int, int]:
    return groups * t * (d_in + rows * d_out), groups * rows * d_in * d_out
