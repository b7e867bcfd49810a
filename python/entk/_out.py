"""The result: allocated, or the caller's array, checked before it is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from entk._arrays import AnyArray
from entk._errors import DTypeError, InputError, KernelOverflowError
from entk._factors import Factors
from entk._leaves import Outer, Tied
from entk._part import Part
from entk._problem import Problem

_CHUNK = 1 << 22
# Candidate solutions that NumPy tries before it gives up on telling whether strided arrays overlap.
_WORK: Any = 10**6


def check_out(out: object, problem: Problem, dtype: str) -> AnyArray:
    """Return the caller's array if it can be filled as it is.

    Raises
    ------
    InputError
        If it has another shape, is read-only, overlaps itself or shares memory with a factor.
    DTypeError
        If it is no array of the result's type.
    """
    if not isinstance(out, np.ndarray):
        raise DTypeError(f"out is a {type(out).__name__}; needs a NumPy array or a path")
    if out.shape != problem.shape:
        raise InputError(f"out has shape {out.shape}; needs {problem.shape}")
    if out.dtype != np.dtype(dtype):
        raise DTypeError(f"out is {out.dtype.name}; needs {dtype}")
    if not out.dtype.isnative:
        raise DTypeError(f"out has foreign byte order ({out.dtype.str}); needs {dtype}")
    if not out.flags.writeable:
        raise InputError("out is read-only")
    _check_overlap(out)
    for name, part in arrays(problem):
        if np.may_share_memory(out, part.host.array) and _shares(out, part.host.array):
            raise InputError(f"out shares memory with layer {name!r} {part.word}")
    return out


def _check_overlap(out: AnyArray) -> None:
    axes = [i for i in range(out.ndim) if out.shape[i] > 1]
    if 0 in out.shape:
        return
    if any(out.strides[i] == 0 for i in axes):
        raise InputError("out has overlapping elements (stride 0)")
    # Strides sorted by size: each must step over all that the smaller ones reach.
    reach = out.itemsize
    for i in sorted(axes, key=lambda i: abs(out.strides[i])):
        if abs(out.strides[i]) < reach:
            raise InputError(f"out has overlapping elements (strides {out.strides})")
        reach += abs(out.strides[i]) * (out.shape[i] - 1)


def _shares(out: AnyArray, array: AnyArray) -> bool:
    try:
        return bool(np.shares_memory(out, array, max_work=_WORK))
    except np.exceptions.TooHardError:
        return True


def arrays(problem: Problem) -> Iterator[tuple[str, Part]]:
    """Yield every array of the leaves that take part, with the name of its leaf."""
    for factors in (problem.factors, problem.other):
        for name in problem.names if factors is not None else ():
            leaf = factors[name]  # type: ignore[index]
            for one in leaf._uses if isinstance(leaf, Tied) else (leaf,):
                for part in one._parts:
                    yield name, part


def fill_nan(
    kernel: AnyArray, problem: Problem, bad: tuple[AnyArray, AnyArray], origin: tuple[int, int]
) -> None:
    """Set exactly the rows and columns of these examples to NaN.

    `origin` is the first example of each axis of `kernel`.
    """
    for axis, examples in zip((-2, -1), bad, strict=True):
        first = origin[axis]
        count = kernel.shape[axis] // problem.block
        inside = examples[(examples >= first) & (examples < first + count)] - first
        lines = (inside[:, None] * problem.block + np.arange(problem.block)).ravel()
        if axis == -2:
            kernel[..., lines, :] = np.nan
        else:
            kernel[..., lines] = np.nan


def overflow_error(
    kernel: AnyArray,
    problem: Problem,
    accumulate: str,
    bad: tuple[AnyArray, AnyArray],
    origin: tuple[int, int] = (0, 0),
) -> KernelOverflowError | None:
    """Describe the first entry that is not finite though its examples are; None if there is none.

    `origin` is the first example of each axis, for a part of a kernel.
    """
    first = [example * problem.block for example in origin]
    sound = [
        np.isin(np.arange(start, start + length) // problem.block, examples, invert=True)
        for start, length, examples in zip(first, kernel.shape[-2:], bad, strict=True)
    ]
    step = max(1, _CHUNK // max(1, kernel.shape[-1]))
    for plane in np.ndindex(kernel.shape[:-2]):
        for start in range(0, kernel.shape[-2], step):
            part = kernel[plane][start : start + step]
            wrong = ~np.isfinite(part) & sound[0][start : start + step, None] & sound[1]
            if wrong.any():
                i, j = np.unravel_index(int(wrong.argmax()), wrong.shape)
                at = (*plane, int(i) + start + first[0], int(j) + first[1])
                return _describe(problem, at, kernel.dtype.name, accumulate)
    return None


def _describe(
    problem: Problem, at: tuple[int, ...], dtype: str, accumulate: str
) -> KernelOverflowError:
    from entk import reference

    n, m = (index // problem.block for index in at[-2:])
    place = f"K[{', '.join(map(str, at))}]"
    one = problem.factors.take([n])
    other = (problem.other or problem.factors).take([m])
    limit = float(np.finfo(accumulate).max)
    advice = "accumulate='float64'" if accumulate == "float32" else "smaller factors"
    with np.errstate(all="ignore"):
        for name in problem.names:
            left, right = one.select(name), other.select(name)
            size = np.abs(reference.assemble(left, right, outputs=_same(problem))).max()
            if not problem.weights[name] * size <= limit:
                grams = _grams(left, right, name)
                return KernelOverflowError(
                    f"{place} overflowed {accumulate} in layer {name!r}{grams}; use {advice}"
                )
    if dtype == "float32" and accumulate == "float64":
        return KernelOverflowError(f"{place} overflowed float32 when stored; use dtype='float64'")
    return KernelOverflowError(f"{place} overflowed {accumulate}; use {advice}")


def _same(problem: Problem) -> object:
    mode = problem.mode
    if mode in ("full", "diagonal", "trace", "sum"):
        return mode
    return problem.outputs[0].index if mode == "index" else None


def _grams(left: Factors, right: Factors, name: str) -> str:
    a, b = left[name], right[name]
    if not isinstance(a, Outer) or not isinstance(b, Outer):
        return ""
    gram, hadamard = (
        np.abs(x.values().reshape(-1, x.shape[-1]) @ y.values().reshape(-1, y.shape[-1]).T).max()
        for x, y in ((a._acts, b._acts), (a._cots, b._cots))
    )
    return f" (G = {gram:.0e}, H = {hadamard:.0e})".replace("e+", "e")
