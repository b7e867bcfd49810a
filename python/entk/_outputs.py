"""What is asked of the output rows: the meaning of every ``outputs=`` argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from entk._arrays import host
from entk._errors import DTypeError, InputError, NonFiniteError

if TYPE_CHECKING:
    from entk._factors import Factors

Mode: TypeAlias = Literal["as-is", "sum", "trace", "full", "diagonal", "index", "weights"]
Weights: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

WORDS = ("full", "sum", "trace", "diagonal")


@dataclass(frozen=True, eq=False)
class Outputs:
    """A resolved ``outputs=`` argument.

    Attributes
    ----------
    mode : str
        How blocks of output rows become entries. ``"as-is"`` for factors with R = 1.
    index : int or None
        The output, for ``"index"``.
    weights : numpy.ndarray or None
        float64 ``(O,)`` or ``(N, O)``, for ``"weights"``.
    scale : float
        Factor on every entry: ``1/O`` for ``"sum"`` and ``"trace"`` of full factors, else 1.
    label : str
        Name for manifests and messages.
    """

    mode: Mode
    index: int | None = None
    weights: Weights | None = None
    scale: float = 1.0
    label: str = ""


def resolve(factors: Factors, outputs: object) -> Outputs:
    """Return what `outputs` asks of `factors` in a symmetric kernel.

    Raises
    ------
    InputError
        For anything these factors cannot answer.
    DTypeError
        For weights of a type that is no real number.
    """
    if isinstance(outputs, tuple) and any(np.ndim(w) > 0 for w in outputs):
        raise InputError("outputs: a tuple of two weight arrays is for cross kernels (other=...)")
    return _resolved(factors, outputs, "outputs")


def resolve_pair(factors: Factors, other: Factors, outputs: object) -> tuple[Outputs, Outputs]:
    """Return what `outputs` asks of the two sides of a cross kernel."""
    if isinstance(outputs, tuple) and any(np.ndim(w) > 0 for w in outputs):
        if len(outputs) != 2:
            raise InputError(
                f"outputs: {len(outputs)} weight arrays; a cross kernel needs two, one a side"
            )
        return (
            _resolved(factors, np.asarray(outputs[0]), "outputs[0]"),
            _resolved(other, np.asarray(outputs[1]), "outputs[1]"),
        )
    left = _resolved(factors, outputs, "outputs")
    if left.weights is not None and left.weights.ndim == 2:
        raise InputError(
            "outputs: weights of shape (N, O) belong to one side; a cross kernel needs a tuple of "
            "two weight arrays, one a side"
        )
    return left, _resolved(other, outputs, "outputs")


def _resolved(factors: Factors, outputs: object, what: str) -> Outputs:
    o = factors.n_outputs
    if outputs is None:
        outputs = "full" if factors.rows > 1 else factors.outputs
    if isinstance(outputs, bool | np.bool_):
        raise InputError(f"{what} must not be a bool (got {outputs})")
    if isinstance(outputs, int | np.integer):
        outputs = int(outputs)
        if not 0 <= outputs < o:
            raise InputError(f"{what} must be between 0 and {o - 1} (got {outputs})")
    elif isinstance(outputs, str):
        if outputs not in (*WORDS, "weights"):
            raise InputError(
                f"{what}={outputs!r} is not one of {', '.join(map(repr, WORDS))}, the number of an "
                "output, or weights"
            )
    else:
        return _weights(factors, outputs, what)
    return _one_row(factors, outputs, what) if factors.rows == 1 else _full(outputs, o, what)


def _one_row(factors: Factors, outputs: str | int, what: str) -> Outputs:
    """Factors with R = 1 answer for what they hold, and for everything if O = 1."""
    o, held = factors.n_outputs, factors.outputs
    if o == 1 and outputs == "diagonal":
        return Outputs("diagonal", label="diagonal")
    if outputs == held or (o == 1 and outputs != "weights"):
        return Outputs("as-is", label=str(held))
    raise InputError(
        f"{what}={outputs!r}: these factors hold one row, outputs={held!r} of {o:,}, and answer "
        "only for that; make them with outputs='full' for anything else"
    )


def _full(outputs: str | int, o: int, what: str) -> Outputs:
    if isinstance(outputs, int):
        return Outputs("index", index=outputs, label=str(outputs))
    if outputs == "full" or outputs == "diagonal":
        return Outputs("full" if outputs == "full" else "diagonal", label=outputs)
    if outputs == "sum" or outputs == "trace":
        return Outputs("sum" if outputs == "sum" else "trace", scale=1.0 / o, label=outputs)
    raise InputError(f"{what}='weights' names no direction; pass the weights, (O,) or (N, O)")


def _weights(factors: Factors, outputs: object, what: str) -> Outputs:
    n, o = factors.n, factors.n_outputs
    array = host(outputs, f"{what} weights")
    if array.array.ndim == 0:
        raise DTypeError(
            f"{what} is a {type(outputs).__name__}; expected a word, an integer or weights"
        )
    if factors.rows != o:
        raise InputError(
            f"{what}: weights need all {o:,} output rows, but these factors hold one "
            f"(outputs={factors.outputs!r}); make them with outputs='full'"
        )
    if array.shape not in ((o,), (n, o)):
        raise InputError(f"{what}: weights have shape {array.shape}; need ({o},) or ({n}, {o})")
    values = array.values()
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        at = ", ".join(map(str, bad[0]))
        raise NonFiniteError(f"{what}: weights[{at}] is {values[tuple(bad[0])]}")
    return Outputs("weights", weights=values, label="weights")
