"""`Factors`: the leaves of a network, ordered and named, that agree in what their rows mean."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from entk._admit import Rows, agreement, meaning, named
from entk._arrays import common_dtype
from entk._contract import contracted
from entk._errors import InputError
from entk._leaves import Leaf
from entk._sample import concatenated, positions, taken

FactorsLike: TypeAlias = (
    "Factors | Mapping[str, Leaf] | Sequence[tuple[object, object]] | str | os.PathLike[str]"
)

_GIVEN = "as given"


class Factors(Mapping[str, Leaf]):
    """Factors of the per-example Jacobian of a network, leaf by leaf.

    A read-only mapping from leaf names to leaves. All leaves have the same examples (N) and the
    same output rows (R); the kernel is the sum of the leaves' kernels, in the order given. Arrays
    are borrowed, never copied, and not looked at before a kernel is made of them.

    Parameters
    ----------
    leaves : mapping of str to leaf, sequence of (acts, cots) pairs, path, or Factors
        Names are any text of 1 to 255 bytes (UTF-8) without control characters. Pairs become
        `Outer` leaves with the names ``"0"``, ``"1"``, ... A path is that of a factor store.
    outputs : {"full", "sum", "weights"} or int, optional
        What the R rows are. ``"full"``: all O outputs (R = O). ``"sum"``: the gradient of
        ``(1/sqrt(O)) sum_o f_o``, with the ``1/sqrt(O)`` in it (R = 1). An integer: that output
        (R = 1). ``"weights"``: some other direction (R = 1). By default the rows are taken as
        given: all outputs of a network that has R of them.
    n_outputs : int, optional
        Number O of outputs of the network. Default: R, or just enough for an integer `outputs`.
    reasons : mapping of str to str, optional
        Why a leaf has its kind, for people who read the table.

    Raises
    ------
    InputError
        No leaf; leaves that disagree in examples or output rows; arrays of a leaf that disagree;
        a bad name; `outputs` that does not fit R.
    DTypeError
        An array of a type that cannot be used exactly.

    Notes
    -----
    **Cost**: O(number of leaves). **Memory**: none, but for sequences and file-backed arrays of
    other libraries, which are read.

    Examples
    --------
    >>> import numpy as np, entk
    >>> acts, cots = np.ones((4, 5), np.float32), np.ones((4, 3), np.float32)
    >>> F = entk.Factors({"fc.weight": entk.Outer(acts, cots), "fc.bias": entk.Dense(cots)})
    >>> F.leaves, F.n, F.rows, F.outputs, F.dtype
    (('fc.weight', 'fc.bias'), 4, 1, 'full', dtype('float32'))
    >>> F["fc.weight"].acts is acts
    True
    """

    __slots__ = ("_leaves", "_n", "_n_outputs", "_outputs", "_reasons", "_rows", "_source")

    _leaves: dict[str, Leaf]
    _n_outputs: int
    _outputs: Rows
    _reasons: dict[str, str]
    # The store these very factors were opened from, so that workers can open it too.
    _source: str | None

    def __init__(
        self,
        leaves: FactorsLike,
        *,
        outputs: Rows | None = None,
        n_outputs: int | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(leaves, str | os.PathLike):
            leaves = as_factors(leaves)
        self._leaves = named(leaves)
        self._n, self._rows = agreement(self._leaves)
        if isinstance(leaves, Factors):
            outputs = leaves._outputs if outputs is None else outputs
            n_outputs = leaves._n_outputs if n_outputs is None else n_outputs
            reasons = leaves._reasons if reasons is None else reasons
        self._outputs, self._n_outputs = meaning(outputs, n_outputs, self._rows)
        self._reasons = {name: (reasons or {}).get(name, _GIVEN) for name in self._leaves}
        self._source = None

    def __getitem__(self, name: str) -> Leaf:
        return self._leaves[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the leaves in kernel order."""
        return tuple(self._leaves)

    @property
    def n(self) -> int:
        """Number N of examples."""
        return self._n

    @property
    def rows(self) -> int:
        """Number R of output rows kept per example."""
        return self._rows

    @property
    def n_outputs(self) -> int:
        """Number O of outputs of the network."""
        return self._n_outputs

    @property
    def outputs(self) -> Rows:
        """What the rows are: ``"full"``, ``"sum"``, ``"weights"`` or the number of an output.

        Rows given by hand without `outputs` are all outputs: ``"full"`` (with R = 1 of a network
        of one output, for which all words mean the same; of a network of several: ``"weights"``).
        """
        return self._outputs

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a kernel made of these factors by default.

        float32 if it holds every value of every leaf (float32, float16, bfloat16, bool, integers
        of up to 16 bits), else float64. The ids of a `Lookup` do not count.
        """
        return common_dtype([p.host.dtype for p in self._parts() if p.word.split()[-1] != "ids"])

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves; memory that leaves share counts once."""
        arrays = (part.host.array for part in self._parts())
        distinct = {(a.__array_interface__["data"][0], a.nbytes): int(a.nbytes) for a in arrays}
        return sum(distinct.values())

    def reason(self, name: str) -> str:
        """Say why the leaf `name` has its kind."""
        return self._reasons[name]

    def select(self, *patterns: str) -> Factors:
        """Keep the leaves that match one of `patterns`, in kernel order.

        A pattern is a leaf's name, or a glob (``*``, ``?``, ``[ab]``; case counts) in which
        brackets also stand for themselves, so that ``"*.qkv[0]"`` finds ``block.qkv[0]``. The
        result shares all arrays.

        Raises
        ------
        InputError
            A pattern that no leaf matches.
        """
        wanted = {name for pattern in patterns for name in matching(pattern, self.leaves)}
        if not wanted:
            raise InputError("select needs at least one name or pattern (got 0)")
        return self._with({name: leaf for name, leaf in self.items() if name in wanted})

    def take(self, index: slice | ArrayLike) -> Factors:
        """Keep some examples.

        Parameters
        ----------
        index : slice, or array-like of integers or of N booleans
            Integers may be negative, repeated and in any order, as in NumPy.

        Returns
        -------
        Factors
            For a slice without a copy, else with copies of the chosen rows.

        Raises
        ------
        InputError
            An integer out of range, a mask of the wrong length, an index that is neither.

        Examples
        --------
        >>> import numpy as np, entk
        >>> F = entk.Factors({"b": entk.Dense(np.arange(6.0).reshape(3, 2))})
        >>> F.take([-1, 0]).n, F.take(F["b"].jac[:, 0] > 1).n, F.take(slice(2)).n
        (2, 2, 2)
        """
        rows = positions(index, self._n)
        return self._with({name: taken(leaf, rows) for name, leaf in self.items()})

    @classmethod
    def concatenate(cls, factors: Sequence[Factors]) -> Factors:
        """Join the examples of several `Factors` of one network, in order, by copying.

        Raises
        ------
        InputError
            Nothing to join, or parts that differ in leaves, shapes, types or meaning of the rows.
        """
        parts = [as_factors(f) for f in factors]
        if not parts:
            raise InputError("concatenate needs at least one Factors (got 0)")
        first, *others = parts
        for number, other in enumerate(others, 1):
            _check_same_network(first, other, "part 0", f"part {number}")
        return first._with(
            {name: concatenated(name, [part[name] for part in parts]) for name in first}
        )

    def contract(self, outputs: Literal["sum"] | int | ArrayLike) -> Factors:
        """Contract the O output rows of full factors to one direction.

        ``cots'[n] = sum_o w[n, o] cots[n, o]`` for every leaf.

        Parameters
        ----------
        outputs : "sum", int, or array-like of shape (O,) or (N, O)
            ``"sum"``: ``w = 1/sqrt(O)``. An integer: that output, without a copy. Weights: ``w``.
            ``"trace"`` is no direction: ``entk.assemble(factors, outputs="trace")`` makes it.

        Returns
        -------
        Factors
            With R = 1. Activations and ids are shared, output gradients are new.

        Raises
        ------
        InputError
            Rows that are not all outputs (and not already what is asked for), a bad direction.

        Notes
        -----
        **Precision**: summed in float64, rounded once to the leaf's type, float16, bfloat16 and
        integers to float32 (float64 from 32 bits). **Memory**: the result and a chunk of rows.
        """
        return contracted(self, outputs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a factor store to `path`, to be opened with `entk.open`."""
        from entk import _store

        _store.save_factors(self, path)

    def _parts(self) -> Iterator[Any]:
        for leaf in self._leaves.values():
            yield from leaf._parts

    def _with(
        self,
        leaves: Mapping[str, Leaf],
        *,
        outputs: Rows | None = None,
    ) -> Factors:
        """Return these factors with other leaves, and another meaning of their rows."""
        return Factors(
            leaves,
            outputs=self._outputs if outputs is None else outputs,
            n_outputs=self._n_outputs,
            reasons=self._reasons,
        )

    def __repr__(self) -> str:
        head = (
            f"Factors: {len(self)} {'leaf' if len(self) == 1 else 'leaves'}, {self._n:,} examples, "
            f"{self._rows:,} of {self._n_outputs:,} output rows ({self._outputs!r}), "
            f"{self.dtype}, {_bytes(self.nbytes)}"
        )
        width = max(map(len, self._leaves))
        lines = [
            f"  {name:<{width}}  {leaf.kind:<6}  {_bytes(leaf._nbytes):>10}  {leaf._summary()}"
            f"  [{self._reasons[name]}]"
            for name, leaf in self._leaves.items()
        ]
        return "\n".join([head, *lines])


def as_factors(factors: FactorsLike) -> Factors:
    """Return `factors` as `Factors`; a path is opened as a factor store."""
    if isinstance(factors, Factors):
        return factors
    if isinstance(factors, str | os.PathLike):
        from entk import _store

        opened: Factors = _store.open_factors(factors)
        return opened
    return Factors(factors)


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the `names` that `pattern` means: the one that equals it, else those it matches.

    Raises
    ------
    InputError
        If there is none.
    """
    if pattern in names:
        return [pattern]
    literal = pattern.replace("[", "[[]")
    found = [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, literal)]
    if not found:
        raise InputError(f"no leaf matches {pattern!r}; leaves: {', '.join(names)}")
    return found


def check_cross(factors: Factors, other: Factors) -> None:
    """Raise `InputError` unless two sides of a cross kernel are of one network."""
    _check_same_network(factors, other, "factors", "other")


def _check_same_network(a: Factors, b: Factors, a_name: str, b_name: str) -> None:
    if a.leaves != b.leaves:
        raise InputError(
            f"{b_name} has other leaves than {a_name}: {', '.join(b.leaves)}; "
            f"needs, in this order: {', '.join(a.leaves)}"
        )
    for name in a:
        if a[name]._signature != b[name]._signature:
            raise InputError(
                f"layer {name!r} of {b_name} does not fit that of {a_name}: "
                f"{b[name]!r} and {a[name]!r}"
            )
    for what in ("rows", "n_outputs", "outputs"):
        got, wanted = getattr(b, what), getattr(a, what)
        if got != wanted:
            raise InputError(f"{b_name} has {what} = {got!r}, but {a_name} has {wanted!r}")


def _bytes(size: int) -> str:
    """Write `size` for people: '1.5 MiB'."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{size} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"
