"""The kinds of leaves: what one parameter's per-example gradients are made of.

A leaf's gradient is a sum of outer products over the places and positions where the parameter is
used, ``dL/dW = sum_uses sum_t U_t (x) V_t``. A leaf keeps the arrays it was given, and views of
them with every axis present:

    Dense._jac (N, R, P)    Outer._acts (N, G, T, d_in), ._cots (N, R, G, T, d_out)
    Lookup._ids (N, T), ._cots (N, R, T, d)    Tied._uses: leaves

Shapes are looked at when a leaf gets its name in `entk.Factors`, so that messages can say it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from entk._arrays import AnyArray, Host, check_axes, host
from entk._errors import DTypeError, InputError
from entk._part import ACTS, COTS, IDS, JAC, BaseLeaf, Part, spread


class Dense(BaseLeaf):
    """A leaf whose per-example Jacobian is kept as it is.

    The smallest form of biases, scales and positional parameters, and the form of everything
    without structure. Contributes ``sum_p jac[n, r, p] jac[m, s, p]``.

    Parameters
    ----------
    jac : array-like, shape (N, P) or (N, R, P)
        Row ``r`` of example ``n`` is the gradient of output row ``r`` over the P parameters.
        Borrowed, not copied.

    Examples
    --------
    >>> import numpy as np, entk
    >>> F = entk.Factors({"bias": entk.Dense(np.ones((4, 3), np.float32))})
    >>> F.n, F.rows
    (4, 1)
    """

    kind = "Dense"

    def __init__(self, jac: object) -> None:
        self._given = jac
        self._views = None

    @property
    def jac(self) -> object:
        """The array the leaf was made of."""
        return _as_given(self._given)

    @property
    def _jac(self) -> Host:
        return self._parts[0].host

    @property
    def _signature(self) -> tuple[object, ...]:
        return (self.kind, self._jac.shape[2])

    def _check(self, where: str) -> tuple[Part, ...]:
        what = f"{where} {JAC}"
        jac = host(self._given, what)
        check_axes(jac, (2, 3), "(N, P) or (N, R, P)", what)
        return (spread(jac, (0, 2) if jac.array.ndim == 2 else (0, 1, 2), JAC),)

    def _rebuild(self, change: Callable[[Part], object]) -> Dense:
        return Dense(change(self._parts[0]))


class Outer(BaseLeaf):
    """A leaf used as a matrix: gradients are sums of outer products.

    Contributes ``sum_{g,t,t'} (acts[n,g,t] . acts[m,g,t']) (cots[n,r,g,t] . cots[m,s,g,t'])``, the
    Gram product of the gradients ``sum_t acts[n,g,t] (x) cots[n,r,g,t]`` without forming them.

    Parameters
    ----------
    acts : array-like
        ``(N, d_in)``, ``(N, T, d_in)`` or ``(N, G, T, d_in)``; its number of axes decides which:
        T positions (of a convolution or sequence), G blocks (groups, heads, experts).
    cots : array-like
        ``(N, d_out)``, ``(N, T, d_out)`` or ``(N, G, T, d_out)`` to match, or the same with R
        output rows after N.
    transposed : bool, optional
        The gradient is ``sum_t cots (x) acts`` (a table of ``d_out x d_in``) instead of
        ``d_in x d_out``. Only matters among the uses of a `Tied` leaf.

    Notes
    -----
    Arrays are borrowed. A mixture of types is fine; each is widened exactly.

    Examples
    --------
    >>> import numpy as np, entk
    >>> leaf = entk.Outer(np.ones((4, 5), np.float32), np.ones((4, 3), np.float32))
    >>> leaf
    Outer(activations 4x5 float32, output gradients 4x3 float32)
    """

    kind = "Outer"

    def __init__(self, acts: object, cots: object, *, transposed: bool = False) -> None:
        self._given = (acts, cots)
        self._views = None
        self.transposed = bool(transposed)

    @property
    def acts(self) -> object:
        """The activations the leaf was made of."""
        return _as_given(self._given[0])

    @property
    def cots(self) -> object:
        """The output gradients the leaf was made of."""
        return _as_given(self._given[1])

    @property
    def _acts(self) -> Host:
        return self._parts[0].host

    @property
    def _cots(self) -> Host:
        return self._parts[1].host

    @property
    def _table(self) -> tuple[int | None, int]:
        d_in, d_out = self._acts.shape[3], self._cots.shape[4]
        return (d_out, d_in) if self.transposed else (d_in, d_out)

    @property
    def _signature(self) -> tuple[object, ...]:
        return (self.kind, self._acts.shape[1], *self._table, self.transposed)

    def _check(self, where: str) -> tuple[Part, ...]:
        acts = host(self._given[0], f"{where} {ACTS}")
        cots = host(self._given[1], f"{where} {COTS}")
        shapes = "(N, d_in), (N, T, d_in) or (N, G, T, d_in)"
        check_axes(acts, (2, 3, 4), shapes, f"{where} {ACTS}")
        axes = acts.array.ndim
        body = ("d_out", "T, d_out", "G, T, d_out")[axes - 2]
        with_acts = f"(N, {body}) or (N, R, {body}) with {ACTS} {acts.shape}"
        check_axes(cots, (axes, axes + 1), with_acts, f"{where} {COTS}")
        _check_pair(acts, cots, _AXES[axes], where, ACTS)
        at = {2: (0, 3), 3: (0, 2, 3), 4: (0, 1, 2, 3)}[axes]
        rows = (1,) if cots.array.ndim > axes else ()
        cots_at = (0, *rows, *(a + 1 for a in at[1:]))
        return (spread(acts, at, ACTS), spread(cots, cots_at, COTS))

    def _summary(self) -> str:
        return super()._summary() + (", transposed" if self.transposed else "")

    def _rebuild(self, change: Callable[[Part], object]) -> Outer:
        acts, cots = self._parts
        return Outer(change(acts), change(cots), transposed=self.transposed)


class Lookup(BaseLeaf):
    """A leaf used as a table of rows: an embedding. Never expanded to the vocabulary.

    Contributes ``sum_{t,t'} [ids[n,t] == ids[m,t'] >= 0] (cots[n,r,t] . cots[m,s,t'])``.

    Parameters
    ----------
    ids : array-like of integers, shape (N, T) or (N,)
        The row read at each position; -1 means none (padding).
    cots : array-like
        ``(N, T, d)`` or ``(N, R, T, d)``; with ids ``(N,)``: ``(N, d)`` or ``(N, R, d)``.

    Examples
    --------
    >>> import numpy as np, entk
    >>> entk.Lookup(np.array([[0, 2], [2, -1]]), np.ones((2, 2, 3), np.float32))
    Lookup(ids 2x2 int64, output gradients 2x2x3 float32)
    """

    kind = "Lookup"

    def __init__(self, ids: object, cots: object) -> None:
        self._given = (ids, cots)
        self._views = None

    @property
    def ids(self) -> object:
        """The row numbers the leaf was made of."""
        return _as_given(self._given[0])

    @property
    def cots(self) -> object:
        """The output gradients the leaf was made of."""
        return _as_given(self._given[1])

    @property
    def _ids(self) -> Host:
        return self._parts[0].host

    @property
    def _cots(self) -> Host:
        return self._parts[1].host

    @property
    def _table(self) -> tuple[int | None, int]:
        return (None, self._cots.shape[3])

    @property
    def _signature(self) -> tuple[object, ...]:
        return (self.kind, self._cots.shape[3])

    def _check(self, where: str) -> tuple[Part, ...]:
        ids = host(self._given[0], f"{where} {IDS}")
        cots = host(self._given[1], f"{where} {COTS}")
        if ids.array.dtype.kind not in "iu" or ids.dtype == "bfloat16":
            raise DTypeError(f"{where} {IDS} are {ids.dtype}; expected integers, -1 = none")
        axes = ids.array.ndim
        if axes not in (1, 2):
            raise InputError(
                f"{where} {IDS} has {axes} axes, shape {ids.shape}; expected (N, T) or (N,)"
            )
        body = ("d", "T, d")[axes - 1]
        with_ids = f"(N, {body}) or (N, R, {body}) with {IDS} {ids.shape}"
        check_axes(cots, (axes + 1, axes + 2), with_ids, f"{where} {COTS}")
        _check_pair(ids, cots, ("samples", "positions")[:axes], where, IDS)
        at = {1: (0,), 2: (0, 1)}[axes]
        rows = (1,) if cots.array.ndim > axes + 1 else ()
        full_cots = spread(cots, (0, *rows, *(a + 1 for a in at[1:]), 3), COTS)
        full_ids = ids.view(ids.array[:, None] if axes == 1 else ids.array)
        return (Part(IDS, full_ids, at), full_cots)

    def _rebuild(self, change: Callable[[Part], object]) -> Lookup:
        ids, cots = self._parts
        return Lookup(change(ids), change(cots))


class Tied(BaseLeaf):
    """A leaf with several uses of different kinds, such as a table that embeds and reads out.

    Contributes the sum over all pairs of uses, cross terms included: the gradient is the sum of
    the uses' gradients. Dropping the cross terms is a large error, not a rounding one.

    Parameters
    ----------
    uses : sequence of Outer and Lookup
        Each over one and the same table. A use whose gradient has the other orientation is
        ``Outer(acts, cots, transposed=True)``.

    Examples
    --------
    A table of 7 rows of 3 that embeds ``ids`` and reads out ``h``:

    >>> import numpy as np, entk
    >>> ids, c1 = np.array([[0, 6]]), np.ones((1, 2, 3), np.float32)
    >>> h, c2 = np.ones((1, 3), np.float32), np.ones((1, 7), np.float32)
    >>> leaf = entk.Tied([entk.Lookup(ids, c1), entk.Outer(h, c2, transposed=True)])
    >>> len(leaf.uses)
    2
    """

    kind = "Tied"

    def __init__(self, uses: Sequence[Outer | Lookup]) -> None:
        self._uses = tuple(uses)
        self._views = None

    @property
    def uses(self) -> tuple[Outer | Lookup, ...]:
        """The uses the leaf was made of."""
        return self._uses

    @property
    def _signature(self) -> tuple[object, ...]:
        self._bind("Tied leaf:")
        return (self.kind, *(use._signature for use in self._uses))

    def _check(self, where: str) -> tuple[Part, ...]:
        if not self._uses:
            raise InputError(f"{where} a tied leaf needs at least one use (got 0)")
        parts: list[Part] = []
        for number, use in enumerate(self._uses):
            if not isinstance(use, Outer | Lookup):
                raise InputError(
                    f"{where} use {number} is a {type(use).__name__}; expected Outer or Lookup"
                )
            use._bind(f"{where} use {number}")
            parts += (Part(f"use {number} {p.word}", p.host, p.axes) for p in use._parts)
        self._check_agreement(where)
        return tuple(parts)

    def _check_agreement(self, where: str) -> None:
        first, *others = self._uses
        for number, use in enumerate(others, 1):
            for name, a, b in (
                ("samples", first._n, use._n),
                ("outputs", first._rows, use._rows),
                ("columns of the table", first._table[1], use._table[1]),
            ):
                if a != b:
                    raise InputError(f"{where} use {number} has {b:,} {name}, use 0 has {a:,}")
        heights = {use._table[0] for use in self._uses} - {None}
        if len(heights) > 1:
            heights_text = " and ".join(map(str, heights))
            raise InputError(f"{where} uses have tables of {heights_text} rows; expected one table")
        blocks = {use._acts.shape[1] if isinstance(use, Outer) else 1 for use in self._uses}
        if len(blocks) > 1:
            raise InputError(f"{where} uses have {sorted(blocks)} blocks; one table has one number")

    def _summary(self) -> str:
        return " + ".join(map(repr, self._uses))

    def _rebuild(self, change: Callable[[Part], object]) -> Tied:
        return Tied([use._rebuild(change) for use in self._uses])


Leaf: TypeAlias = Dense | Outer | Lookup | Tied

_AXES = {
    2: ("samples",),
    3: ("samples", "positions"),
    4: ("samples", "blocks", "positions"),
}


def _check_pair(left: Host, cots: Host, axes: tuple[str, ...], where: str, word: str) -> None:
    """Raise `InputError` unless the two arrays of a leaf agree along their common axes."""
    shift = cots.array.ndim - (len(axes) + 1)
    for axis, name in enumerate(axes):
        a = left.shape[axis]
        b = cots.shape[axis + (shift if axis else 0)]
        if a != b:
            same = "the same first axis" if axis == 0 else f"the same {name} ({a:,} and {b:,})"
            raise InputError(
                f"{where} {word} {left.shape} and {COTS} {cots.shape} must have {same}"
            )


def _as_given(given: object) -> object:
    """Return what the user passed; what entk cut from it comes back as a NumPy array."""
    native: AnyArray | object = given.native() if isinstance(given, Host) else given
    return native
