"""A kernel as the core sees it: leaves over borrowed bytes, and the options of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from entk._arrays import AnyArray, Host
from entk._errors import InputError
from entk._factors import Factors, as_factors, check_cross, matching
from entk._leaves import Dense, Lookup, Outer, Tied
from entk._outputs import Outputs, resolve, resolve_pair

Spec: TypeAlias = tuple[str, float, Any]
Cut: TypeAlias = tuple[str, list[int]]


@dataclass(frozen=True)
class _Borrowed:
    """NumPy's array interface over memory of another array, which it keeps alive."""

    array: AnyArray
    __array_interface__: dict[str, Any]


def raw(array: AnyArray) -> AnyArray:
    """Return `array` as uint8 with a last axis over the bytes of an element, without copying."""
    interface = {
        "version": 3,
        "data": (array.__array_interface__["data"][0], not array.flags.writeable),
        "shape": (*array.shape, array.itemsize),
        "strides": (*array.strides, 1),
        "typestr": "|u1",
    }
    return np.asarray(_Borrowed(array, interface))


def _five(host: Host, axes: tuple[int, ...]) -> tuple[AnyArray, str, bool]:
    """Return bytes with the axes ``n, r, g, t, k``; `axes` says which of them `host` has."""
    missing = tuple(axis for axis in range(5) if axis not in axes)
    array = np.expand_dims(host.array, missing)
    swapped = not array.dtype.isnative
    return raw(array), host.dtype, swapped


def _use(leaf: Outer | Lookup) -> tuple[Any, ...]:
    if isinstance(leaf, Outer):
        acts, cots = _five(leaf._acts, (0, 2, 3, 4)), _five(leaf._cots, (0, 1, 2, 3, 4))
        return ("outer", acts, cots, leaf.transposed)
    return ("lookup", _five(leaf._ids, (0, 3)), _five(leaf._cots, (0, 1, 3, 4)))


def spec(leaf: object, weight: float) -> Spec:
    """Return a leaf as the core takes it."""
    if isinstance(leaf, Dense):
        return ("dense", weight, _five(leaf._jac, (0, 1, 4)))
    if isinstance(leaf, Tied):
        return ("uses", weight, [_use(use) for use in leaf._uses])
    assert isinstance(leaf, Outer | Lookup), f"a leaf of type {type(leaf).__name__}"
    return ("uses", weight, [_use(leaf)])


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be computed, checked.

    Attributes
    ----------
    factors, other : Factors
        Rows and columns; `other` is None for a symmetric kernel.
    outputs : tuple of Outputs
        What each side is asked for.
    weights : dict
        Factor on each leaf's kernel; leaves with factor 0 are gone.
    """

    factors: Factors
    other: Factors | None
    outputs: tuple[Outputs, Outputs]
    weights: dict[str, float]

    @classmethod
    def make(
        cls,
        factors: object,
        other: object,
        outputs: object,
        leaf_weights: Mapping[str, float] | None,
    ) -> Problem:
        """Check the arguments that say what is computed."""
        rows = as_factors(factors)  # type: ignore[arg-type]
        cols = None if other is None else as_factors(other)  # type: ignore[arg-type]
        if cols is None:
            resolved = resolve(rows, outputs)
            pair = (resolved, resolved)
        else:
            check_cross(rows, cols)
            pair = resolve_pair(rows, cols, outputs)
        return cls(rows, cols, pair, resolve_weights(rows, leaf_weights))

    @property
    def names(self) -> list[str]:
        """Leaves that take part, in kernel order."""
        return [name for name in self.factors if self.weights[name] != 0]

    @property
    def mode(self) -> str:
        """How output rows become entries."""
        return self.outputs[0].mode

    @property
    def block(self) -> int:
        """Rows of the kernel that belong to one example."""
        return self.factors.rows if self.mode == "full" else 1

    @property
    def planes(self) -> int | None:
        """Length of the first axis of a ``"diagonal"`` result; None for a matrix."""
        return self.factors.rows if self.mode == "diagonal" else None

    @property
    def examples(self) -> tuple[int, int]:
        """Number of row and of column examples."""
        return self.factors.n, (self.other or self.factors).n

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        n, m = self.examples
        matrix = (n * self.block, m * self.block)
        return matrix if self.planes is None else (self.planes, *matrix)

    def select(self, names: set[str]) -> Problem:
        """Return the problem of some of the leaves that take part."""
        kept = {name: w if name in names else 0.0 for name, w in self.weights.items()}
        return replace(self, weights=kept)

    def turned(self) -> Problem:
        """Return the problem whose kernel is the transpose."""
        if self.other is None:
            return self
        return Problem(self.other, self.factors, self.outputs[::-1], self.weights)

    def sides(self) -> tuple[list[Spec], list[Spec] | None]:
        """Return the leaves of both sides as the core takes them."""

        def side(factors: Factors) -> list[Spec]:
            return [spec(factors[name], self.weights[name]) for name in self.names]

        return side(self.factors), None if self.other is None else side(self.other)

    def options(
        self, cut: Cut, *, double: bool, threads: int, limit: int, isa: str | None
    ) -> dict[str, Any]:
        """Return the options of one run of the core."""
        left, right = self.outputs
        mode = {"weights": "contract", "sum": "contract"}.get(self.mode, self.mode)
        contract = mode == "contract"
        return {
            "r": self.factors.rows,
            "mode": mode,
            "index": left.index or 0,
            "row_weights": _directions(self.factors, left) if contract else [],
            "col_weights": _directions(self.other or self.factors, right) if contract else [],
            "scale": left.scale,
            "double": double,
            "threads": threads,
            "limit": limit,
            "isa": isa,
            "cut": cut,
        }


def _directions(factors: Factors, outputs: Outputs) -> list[float]:
    """Weights of every example's output rows, flat."""
    weights = np.ones(factors.rows) if outputs.weights is None else outputs.weights
    flat: list[float] = np.broadcast_to(weights, (factors.n, factors.rows)).ravel().tolist()
    return flat


def resolve_weights(factors: Factors, leaf_weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return the factor of every leaf: a name beats a glob, two globs on one leaf are refused."""
    exact: dict[str, float] = {}
    by_glob: dict[str, tuple[str, float]] = {}
    for pattern, given in (leaf_weights or {}).items():
        weight = _weight(pattern, given)
        names = matching(pattern, factors.leaves)
        if names == [pattern]:
            exact[pattern] = weight
            continue
        for name in names:
            if name in by_glob:
                raise InputError(
                    f"leaf_weights: {by_glob[name][0]!r} and {pattern!r} both match layer {name!r};"
                    " name it, or let one glob match it"
                )
            by_glob[name] = (pattern, weight)
    globs = {name: weight for name, (_, weight) in by_glob.items()}
    return {name: exact.get(name, globs.get(name, 1.0)) for name in factors}


def _weight(pattern: str, given: object) -> float:
    if not isinstance(pattern, str):
        raise InputError(f"leaf_weights: keys are names or globs (got {pattern!r})")
    try:
        weight = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"leaf_weights[{pattern!r}] must be a number (got {given!r})") from None
    if not (np.isfinite(weight) and weight >= 0):
        raise InputError(f"leaf_weights[{pattern!r}] must be finite and >= 0 (got {given})")
    return weight
