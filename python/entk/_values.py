"""One look at every factor before work starts: NaN, infinity, large integers, underflow."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from entk import _core
from entk._arrays import AnyArray, Host
from entk._errors import DTypeError, InputError, NonFiniteError
from entk._factors import Factors
from entk._leaves import Dense, Lookup, Outer, Tied
from entk._out import arrays
from entk._part import IDS, Part
from entk._problem import Problem, raw

# Integers up to here are exact in the accumulator.
_EXACT = {"float32": 24, "float64": 53}
_SMALLEST = {"float32": 1e-38, "float64": 2.2250738585072014e-308}
# Bytes looked at in one call of the core, some 20 ms: between two of them Ctrl-C is heard.
_LOOK = 1 << 27

# First place that is not finite, all such examples, and the largest magnitude.
_Found: TypeAlias = "tuple[list[int] | None, list[int], float]"
# Which part it is of, the part, its first row, the rows.
_Piece: TypeAlias = "tuple[int, Part, int, AnyArray]"


@dataclass(frozen=True)
class Values:
    """What the scan of one side found.

    Attributes
    ----------
    bad : numpy.ndarray
        Examples that hold NaN or infinity, ascending.
    largest : dict
        For every leaf a bound on the magnitude of its kernel's entries.
    """

    bad: np.ndarray[tuple[int], np.dtype[np.intp]]
    largest: dict[str, float]


def scan(
    factors: Factors, names: list[str], *, accumulate: str, nonfinite: str, threads: int, side: str
) -> Values:
    """Look at every value of the leaves that take part.

    Raises
    ------
    NonFiniteError
        With ``nonfinite="raise"``: the lowest place of the first array that holds NaN or infinity.
    DTypeError
        For integers that the accumulator cannot hold.
    InputError
        For ids that are below -1 or beyond the table.
    """
    bad: set[int] = set()
    largest = {}
    looks = iter(_look_at(_value_parts(factors, names), threads, stop=nonfinite == "raise"))
    for name in names:
        leaf = factors[name]
        where = f"layer {name!r}{side}"
        bound = 0.0
        for one in leaf._uses if isinstance(leaf, Tied) else (leaf,):
            tops = []
            for part in one._parts:
                if part.word == IDS:
                    _check_ids(part, leaf, where)
                    continue
                place, examples, top = next(looks)
                if place is not None and nonfinite == "raise":
                    raise _not_finite(where, part, place, len(examples))
                bad.update(examples)
                _check_exact(where, part.host, top, accumulate)
                tops.append(top)
            bound += _bound(one, tops)
        largest[name] = bound
    return Values(np.array(sorted(bad), np.intp), largest)


def _value_parts(factors: Factors, names: list[str]) -> Iterator[Part]:
    for name in names:
        leaf = factors[name]
        for one in leaf._uses if isinstance(leaf, Tied) else (leaf,):
            yield from (part for part in one._parts if part.word != IDS)


def _look_at(parts: Iterable[Part], threads: int, *, stop: bool) -> list[_Found]:
    """Return what the parts hold, in order; with `stop` up to the first bad one, at least.

    Rows are looked at some `_LOOK` bytes at a time, of however many arrays.
    """
    found: list[_Found] = []
    pieces: list[_Piece] = []
    room, bad = _LOOK, False
    for part in parts:
        if bad and stop:
            break
        found.append((None, [], 0.0))
        array = part.host.array
        each = max(1, array[:1].nbytes)
        start = 0
        while start < len(array):
            rows = array[start : start + max(1, room // each)]
            pieces.append((len(found) - 1, part, start, rows))
            start, room = start + len(rows), room - rows.nbytes
            if room < each:
                bad |= _join(found, pieces, threads)
                pieces, room = [], _LOOK
    _join(found, pieces, threads)
    return found


def _join(found: list[_Found], pieces: list[_Piece], threads: int) -> bool:
    """Add what the pieces hold; return whether something is not finite."""
    scans = _core.scan([_spread(part, rows) for _, part, _, rows in pieces], threads)
    for (index, _, start, rows), (place, bad, top) in zip(pieces, scans, strict=True):
        first, examples, largest = found[index]
        if first is None and place is not None:
            first = [start + place[0], *place[6 - rows.ndim :]]
        found[index] = (
            first,
            examples + [start + example for example in bad],
            max(largest, top),
        )
    return any(place is not None for place, _, _ in scans)


def _spread(part: Part, array: AnyArray) -> tuple[Any, str, bool]:
    # The core wants five axes: examples first, features last, the others between.
    spread = np.expand_dims(array, tuple(range(1, 6 - array.ndim)))
    return raw(spread), part.host.dtype, not array.dtype.isnative


def _not_finite(where: str, part: Part, place: list[int], count: int) -> NonFiniteError:
    value = part.host.view(part.host.array[tuple(place)].reshape(1)).values()[0]
    at = ", ".join(map(str, part.index(place)))
    samples = f"{count:,} sample{'s' if count > 1 else ''} affected"
    return NonFiniteError(
        f"{where} {part.word}[{at}] is {value}; {samples}. Use nonfinite='propagate' or drop it"
    )


def _check_exact(where: str, host: Host, top: float, accumulate: str) -> None:
    bits = _EXACT[accumulate]
    if host.dtype in ("int64", "uint64") and top >= 2**bits:
        # The scan saw values rounded to float64; at the border only the integers themselves tell.
        top = max(int(host.array.max()), -int(host.array.min()))
    if host.array.dtype.kind in "iu" and host.dtype != "bfloat16" and top > 2**bits:
        hint = "; accumulate in float64" if bits == 24 and top <= 2**53 else ""
        raise DTypeError(f"{where}: {host.dtype} values above 2^{bits} cannot be represented{hint}")


def _check_ids(part: Part, leaf: object, where: str) -> None:
    ids = part.host.array
    if not ids.size:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < -1:
        raise InputError(f"{where} ids hold {low}; allowed are -1 (none) and rows from 0 on")
    rows = _table_rows(leaf)
    if rows is not None and high >= rows:
        raise InputError(f"{where} ids hold {high}, but the table has {rows:,} rows")


def _table_rows(leaf: object) -> int | None:
    if not isinstance(leaf, Tied):
        return None
    outer = [use for use in leaf._uses if isinstance(use, Outer)]
    return outer[0]._table[0] if outer else None


def _bound(leaf: Dense | Outer | Lookup, tops: list[float]) -> float:
    """Bound an entry of the leaf's kernel by the largest magnitudes and the number of terms."""
    if isinstance(leaf, Outer):
        acts, cots = leaf._acts.shape, leaf._cots.shape
        terms = float(acts[1]) * acts[2] ** 2 * acts[3] * cots[4]
    else:
        shape = leaf._jac.shape if isinstance(leaf, Dense) else leaf._cots.shape
        terms = float(shape[-1]) * (1 if isinstance(leaf, Dense) else shape[2] ** 2)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return float(terms * np.prod(np.square(np.array(tops))))


def warn_of_nothing(factors: Factors, names: list[str]) -> None:
    """Warn of leaves without features: they contribute exactly zero."""
    for name in names:
        leaf = factors[name]
        if isinstance(leaf, Outer) and leaf._acts.shape[3] == 0:
            warnings.warn(f"layer {name!r} has 0 input features", UserWarning, stacklevel=4)
        elif isinstance(leaf, Dense) and leaf._jac.shape[2] == 0:
            warnings.warn(f"layer {name!r} has 0 features", UserWarning, stacklevel=4)


def warn_of_underflow(values: Values, accumulate: str) -> None:
    """Warn of leaves whose whole kernel is below the smallest normal number."""
    limit = _SMALLEST[accumulate]
    for name, bound in values.largest.items():
        if 0 < bound < limit:
            warnings.warn(
                f"layer {name!r} contributes less than {limit:.0e}; it was flushed by {accumulate}",
                UserWarning,
                stacklevel=4,
            )


def warn_of_narrowing(problem: Problem, dtype: str) -> None:
    """Warn once if a float64 leaf is stored in a float32 kernel."""
    wide = [name for name, part in arrays(problem) if part.host.dtype == "float64"]
    if dtype == "float32" and wide:
        warnings.warn(
            f"layer {wide[0]!r} is float64; its kernel is stored as float32, as dtype= asks",
            UserWarning,
            stacklevel=4,
        )
