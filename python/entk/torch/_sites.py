"""The operations whose weight gradient is a sum of outer products: products of matrices.

A site says how one call ``y = op(x, W)`` makes the gradient of `W` from `x` and the cotangent of
`y`: ``dW = sum_gt acts[g, t] (x) cots[g, t]``, entry by entry at the places ``table(W)`` of the
parameter. The functions here only look at one example; whoever runs them may stand inside
`torch.func` transforms. A call that does not fit gives None, and its parameter a dense leaf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from entk.torch._views import Step

IsTagged = Callable[[Any], bool]


@dataclass(frozen=True)
class Use:
    """One use of a weight.

    Attributes
    ----------
    weight : Tensor
        The tagged tensor that was used.
    acts : Tensor
        ``(G, T, d_in)``, or for a look-up the ids ``(T,)``. Without history.
    cots : callable
        Turns the cotangent of the output into ``(G, T, d_out)``, or ``(T, d)``.
    table : callable
        Turns the weight into ``(G, d_in, d_out)``, or ``(V, d)``, by views.
    """

    weight: Tensor
    acts: Tensor
    cots: Step
    table: Step
    kind: Literal["outer", "lookup"] = "outer"


Rule = Callable[[IsTagged, tuple[Any, ...], Mapping[str, Any]], Use | None]


def bind(names: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; built-in functions have no signature to ask."""
    return {**dict(zip(names.split(), args, strict=False)), **kwargs}


def _in_order(names: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the operands of a call whose names differ from function to function."""
    return [*args, *(kwargs[name] for name in names.split() if name in kwargs)]


def one_tagged(tagged: IsTagged, x: Any, weight: Any) -> bool:
    """Whether `weight` is of a parameter and `x` is data."""
    return tagged(weight) and isinstance(x, Tensor) and not tagged(x)


def smaller(use: Use) -> bool:
    """Whether the factors of one use are smaller than the gradient."""
    _, t, d_in = use.acts.shape
    d_out = use.weight.numel() // (use.acts.shape[0] * d_in)
    return t * (d_in + d_out) < d_in * d_out


def linear(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
    """``y = x W^T + b``."""
    call = bind("input weight bias", args, kwargs)
    x, weight = call["input"], call["weight"]
    if not tagged(weight):
        return None
    d_in, d_out = weight.shape[-1], math.prod(weight.shape[:-1])
    use = Use(
        weight,
        x.detach().reshape(1, -1, d_in),
        lambda d: d.reshape(1, -1, d_out),
        lambda w: w.reshape(1, d_out, d_in).mT,
    )
    # Of two parameters (learned queries in a projection) the other one is data to this one.
    return use if not tagged(x) or smaller(use) else None


def matmul(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
    """``y = a b`` with the rules of `torch.matmul`, the weight on either side."""
    a, b = _in_order("input other mat2 vec tensor", args, kwargs)
    return _product(tagged, a, b)


def reversed_matmul(
    tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Use | None:
    """``b.__rmatmul__(a) = a b``."""
    return _product(tagged, args[1], args[0])


def added_product(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
    """``y = beta c + alpha a b``: the linear layer of some GPT-2 implementations."""
    _, first, second = _in_order("input mat1 batch1 mat mat2 batch2 vec", args, kwargs)
    use = _product(tagged, first, second)
    alpha = kwargs.get("alpha", 1)
    if use is None or alpha == 1:
        return use
    return Use(use.weight, use.acts * alpha, use.cots, use.table)


def _product(tagged: IsTagged, a: Any, b: Any) -> Use | None:
    if one_tagged(tagged, a, b):
        return _right(a.detach(), b)
    if one_tagged(tagged, b, a):
        return _left(a, b.detach())
    if tagged(a) and tagged(b):  # the other one is data to this one
        return next((u for u in (_right(a.detach(), b), _left(a, b.detach())) if smaller(u)), None)
    return None


def _left(weight: Tensor, x: Tensor) -> Use:
    """``y = W x`` is ``y^T = x^T W^T``."""
    row, column = weight.ndim == 1, x.ndim == 1

    def matrix(w: Tensor) -> Tensor:
        return w[None] if row else w

    use = _right((x[:, None] if column else x).mT, matrix(weight).mT)

    def cots(d: Tensor) -> Tensor:
        d = d[..., None] if column else d
        return use.cots((d[..., None, :] if row else d).mT)

    return Use(weight, use.acts, cots, lambda w: use.table(matrix(w).mT))


def _right(x: Tensor, weight: Tensor) -> Use:
    """``y = x W``; axes that only `x` has are positions, batch axes of `W` are blocks."""
    row, column = x.ndim == 1, weight.ndim == 1
    x = x[None] if row else x
    d_in, d_out = (weight.shape[0], 1) if column else tuple(weight.shape[-2:])
    own = () if column else tuple(weight.shape[:-2])
    batch = torch.broadcast_shapes(x.shape[:-2], own)  # type: ignore[no-untyped-call]
    own = (1,) * (len(batch) - len(own)) + own
    order = [i for i, n in enumerate(own) if n > 1] + [i for i, n in enumerate(own) if n == 1]
    blocks, last = math.prod(own), len(batch)
    spread = x.expand(*batch, *x.shape[-2:])

    def grouped(y: Tensor, d: int) -> Tensor:
        return y.permute(*order, last, last + 1).reshape(blocks, -1, d)

    return Use(
        weight,
        grouped(spread, d_in),
        lambda d: grouped(d.reshape(*batch, -1, d_out), d_out),
        lambda w: w.reshape(blocks, d_in, d_out),
    )


def inner(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
    """``y = sum_i a[..., i] b[..., i]``."""
    call = bind("input other", args, kwargs)
    a, b = call["input"], call["other"]
    x, weight = (b, a) if tagged(a) else (a, b)
    if not one_tagged(tagged, x, weight) or x.ndim == 0 or weight.ndim == 0:
        return None
    axes = "abcdefghijklmnopqrstuvwxy"
    left = axes[: a.ndim - 1]
    right = axes[a.ndim - 1 : a.ndim + b.ndim - 2]
    return contraction(tagged, f"{left}z,{right}z->{left}{right}", a, b)


def bilinear(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
    """``y_o = x1^T W_o x2 + b_o``: linear in the outer product of `x1` and `x2`."""
    call = bind("input1 input2 weight bias", args, kwargs)
    x1, x2, weight = call["input1"], call["input2"], call["weight"]
    if not one_tagged(tagged, x1, weight) or tagged(x2):
        return None
    d_out, i, j = weight.shape
    pairs = x1.detach()[..., :, None] * x2.detach()[..., None, :]
    return Use(
        weight,
        pairs.reshape(1, -1, i * j),
        lambda d: d.reshape(1, -1, d_out),
        lambda w: w.reshape(1, d_out, i * j).mT,
    )


def grouped_product(
    tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Use | None:
    """``y_s = x_s W_e`` for the rows s up to ``offs[e]``: one product for each expert.

    The experts are blocks, and every row stands in the block of its own.
    """
    call = bind("mat_a mat_b", args, kwargs)
    x, weight, offs = call["mat_a"], call["mat_b"], call.get("offs")
    if not one_tagged(tagged, x, weight) or (x.ndim, weight.ndim) != (2, 3) or offs is None:
        return None
    experts = weight.shape[0]
    below = torch.arange(x.shape[0], device=x.device) < offs[:, None]
    mine = below & ~torch.cat([torch.zeros_like(below[:1]), below[:-1]])
    return Use(
        weight,
        x.detach() * mine[..., None].to(x.dtype),
        lambda d: d.expand(experts, *d.shape),
        lambda w: w,
    )


def einsum(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
    """``torch.einsum(equation, a, b)`` in letters, with or without an ellipsis."""
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    spelled = _spelled(equation.replace(" ", ""), operands[0].ndim, operands[1].ndim)
    return contraction(tagged, spelled, *operands)


def tensordot(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
    """``torch.tensordot(a, b, dims)``."""
    call = {"dims": 2, **bind("a b dims", args, kwargs)}
    a, b, dims = call["a"], call["b"], call["dims"]
    if isinstance(dims, int):
        left, right = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    elif isinstance(dims, list | tuple) and all(isinstance(d, list | tuple) for d in dims):
        left, right = ([int(i) % t.ndim for i in d] for d, t in zip(dims, (a, b), strict=True))
    else:
        return None
    first = "abcdefghijklm"[: a.ndim]
    second = list("nopqrstuvwxyz"[: b.ndim])
    for i, j in zip(left, right, strict=True):
        second[j] = first[i]
    out = [c for i, c in enumerate(first) if i not in left]
    out += [c for j, c in enumerate(second) if j not in right]
    return contraction(tagged, f"{first},{''.join(second)}->{''.join(out)}", a, b)


def _spelled(equation: str, first: int, second: int) -> str:
    """Return the equation with its output and the axes of an ellipsis written out in letters."""
    inputs, arrow, output = equation.partition("->")
    a, b = inputs.split(",")
    if not arrow:
        once = sorted(c for c in set(a + b) - set(".") if (a + b).count(c) == 1)
        output = ("..." if "..." in inputs else "") + "".join(once)
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in inputs]
    axes = [n - len(s.replace("...", "")) for s, n in ((a, first), (b, second))]
    shared = "".join(spare[: max(axes)])
    a, b = (s.replace("...", shared[len(shared) - n :]) for s, n in zip((a, b), axes, strict=True))
    return f"{a},{b}->{output.replace('...', shared)}"


def contraction(tagged: IsTagged, equation: str, a: Tensor, b: Tensor) -> Use | None:
    """Sort the letters of a product of two tensors into blocks, positions, d_in and d_out."""
    inputs, output = equation.split("->")
    x_axes, w_axes = inputs.split(",")
    x, weight = a, b
    if tagged(a):
        x, weight, x_axes, w_axes = b, a, w_axes, x_axes
    if not one_tagged(tagged, x, weight) or not _plain(x_axes, w_axes, output):
        return None
    size = dict(zip(w_axes, weight.shape, strict=True))
    size |= dict(zip(x_axes, x.shape, strict=True))
    if any(size[c] != n for c, n in zip(w_axes, weight.shape, strict=True)):
        return None  # an axis of length 1 that is broadcast
    gone = [c for c in x_axes if c not in w_axes and c not in output]
    x = x.detach().sum([x_axes.index(c) for c in gone]) if gone else x.detach()
    x_axes = "".join(c for c in x_axes if c not in gone)
    blocks = [c for c in w_axes if c in x_axes and c in output]
    ins = [c for c in w_axes if c in x_axes and c not in output]
    outs = [c for c in w_axes if c not in x_axes]
    places = [c for c in x_axes if c not in w_axes]
    g, d_in, d_out = (math.prod(size[c] for c in axes) for axes in (blocks, ins, outs))

    def grouped(y: Tensor, axes: str, last: list[str], d: int) -> Tensor:
        return y.permute([axes.index(c) for c in (*blocks, *places, *last)]).reshape(g, -1, d)

    return Use(
        weight,
        grouped(x, x_axes, ins, d_in),
        lambda d: grouped(d, output, outs, d_out),
        lambda w: w.permute([w_axes.index(c) for c in (*blocks, *ins, *outs)]).reshape(
            g, d_in, d_out
        ),
    )


def _plain(x_axes: str, w_axes: str, output: str) -> bool:
    """Whether no letter stands twice in a tensor and none of the weight is summed alone."""
    single = all(len(set(axes)) == len(axes) for axes in (x_axes, w_axes, output))
    return single and all(c in x_axes or c in output for c in w_axes)


_GROUPED = [(F, "grouped_mm"), (torch, "_grouped_mm")]

MATRIX_RULES: dict[Any, Rule] = {
    **{getattr(home, n): grouped_product for home, n in _GROUPED if hasattr(home, n)},
    F.linear: linear,
    F.bilinear: bilinear,
    torch.einsum: einsum,
    torch.tensordot: tensordot,
    torch.inner: inner,
    Tensor.inner: inner,
    Tensor.__rmatmul__: reversed_matmul,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.linalg.matmul), matmul),
    **dict.fromkeys((torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv), matmul),
    **dict.fromkeys((torch.dot, Tensor.dot), matmul),
    **dict.fromkeys(
        (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, torch.addmv, Tensor.addmv),
        added_product,
    ),
}
