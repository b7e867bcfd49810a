"""The check against autograd: each leaf's gradient, rebuilt from its factors, on real examples.

The taps see what runs in Python. A parameter that is also used inside compiled code or inside a
custom `autograd.Function`, whose backward may be anything, is told by this comparison alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from entk.torch import _precision
from entk.torch._engines import Pair, Result
from entk.torch._network import Network, pulled_back
from entk.torch._plan import Part, Plan, TableUse
from entk.torch._refuse import check_reached
from entk.torch._rows import Rows

# A wrong form is wrong by its own size. Rounding is relative to the leaf's largest entry, for
# leaves whose gradient cancels (a key's bias in attention) to the largest entry of all.
_RELATIVE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 6e-2, torch.bfloat16: 0.2}
_CANCELLED = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Verdict:
    """Leaves that disagree with autograd, by how they were made, and leaves without use."""

    structured: frozenset[str]
    free: frozenset[str]
    unreached: frozenset[str]


def expanded(part: Part, pairs: Sequence[Pair], shape: tuple[int, int]) -> Tensor:
    """Return the Jacobian ``(b, R, P)`` of a part, for a `shape` ``(b, R)``."""
    whole = _in_place(part, pairs)
    if whole is not None:
        return whole.reshape(*shape, part.size)
    like = pairs[0][1]
    jac = torch.zeros(*shape, part.size, dtype=like.dtype, device=like.device)
    for use, (acts, cots) in zip(part.uses, pairs, strict=True):
        use.table.add(jac, _table(use, acts, cots))
    return jac


def _in_place(part: Part, pairs: Sequence[Pair]) -> Tensor | None:
    """Return the Jacobian as one product where a single use shows the parameter as it is stored."""
    use, (acts, cots) = part.uses[0], pairs[0]
    if len(pairs) > 1 or use.kind != "outer" or cots.shape[1] > 1:
        return None
    if use.table.is_whole(part.size):
        return torch.matmul(acts.mT, cots[:, 0])
    return torch.matmul(cots[:, 0].mT, acts) if use.table.transposed().is_whole(part.size) else None


def _table(use: TableUse, acts: Tensor, cots: Tensor) -> Tensor:
    b, r = cots.shape[:2]
    if use.kind == "outer":
        table = _products(acts, cots)
        return table[:, :, 0] if len(use.table.shape) == 2 else table
    _, _, v, d = use.sizes
    kept = cots * (acts >= 0)[:, None, :, None]
    rows = acts.clamp(min=0)[:, None, :, None].expand_as(kept)
    return torch.zeros(b, r, v, d, dtype=cots.dtype, device=cots.device).scatter_add_(2, rows, kept)


def _products(acts: Tensor, cots: Tensor) -> Tensor:
    """Return ``sum_t acts[b, g, t, i] cots[b, r, g, t, j]``, ``(b, R, G, d_in, d_out)``."""
    if cots.shape[1] == 1:
        return torch.matmul(acts.mT, cots[:, 0])[:, None]
    return torch.einsum("bgti,brgtj->brgij", acts, cots)


def reference(
    network: Network, example: Sequence[Tensor], direction: Tensor
) -> dict[str, Tensor | None]:
    """Return autograd's gradient of ``output . direction``; None where it has none."""
    free = {
        k: network.scripted.get(k, p.detach().requires_grad_())
        for k, p in network.parameters.items()
    }

    def work() -> tuple[Tensor, Sequence[Tensor | None]]:
        out = network.single(example)
        if not out.requires_grad:
            return out, [None] * len(free)
        row = direction.to(out.dtype)
        return out, pulled_back(out, list(free.values()), row)

    out, grads = network.substituted(free, work)
    check_reached(network, out)
    return {k: None if g is None else g.detach() for k, g in zip(free, grads, strict=True)}


def audit(
    network: Network,
    plan: Plan,
    result: Result,
    tensors: Sequence[Tensor],
    own: Tensor,
    rows: Rows,
    few: Sequence[int],
) -> Verdict:
    """Compare what an engine made for examples with autograd, for those in `few`."""
    mix = _signs(rows.count)
    structured: set[str] = set()
    free: set[str] = set()
    unreached = set(network.parameters)
    for i in few:
        mine = _gradients(plan, result, i, mix.to(own.device))
        direction = _direction(rows, own[i], mix, network)
        example = [t[i] for t in tensors]
        theirs = reference(network, example, direction)
        unreached &= {k for k, g in theirs.items() if g is None}
        wrong = _disagreeing(mine, theirs, _precision.of_parameters(network))
        if wrong:
            wrong = _disagreeing(mine, theirs, _precision.of_everything(network, example))
        for leaf in wrong:
            (free if leaf in plan.free else structured).add(leaf)
    return Verdict(frozenset(structured), frozenset(free), frozenset(unreached))


def _signs(count: int) -> Tensor:
    """Return signs that combine the rows into one, the same on every call."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randint(0, 2, (count,), generator=generator, device="cpu")
    return drawn.to(torch.float64) * 2 - 1


def _direction(rows: Rows, own: Tensor, mix: Tensor, network: Network) -> Tensor:
    row = mix if rows.weights is None else own.to(torch.float64).cpu() * mix
    return row.to(network.device)


def _gradients(plan: Plan, result: Result, i: int, mix: Tensor) -> dict[str, Tensor]:
    """Return the gradient of each leaf along the combined row, ``(P,)`` each."""
    mine: dict[str, Tensor] = {}
    for part in plan.parts:
        if part.uses:
            pairs = [
                (a[i : i + 1], torch.tensordot(mix.to(c), c[i], 1)[None, None])
                for a, c in result.pairs[part.name]
            ]
            gradient = expanded(part, pairs, (1, 1))[0, 0]
            mine[part.leaf] = mine[part.leaf] + gradient if part.leaf in mine else gradient
        elif part.form == "free":
            jac = result.free[part.leaf]
            zero = torch.zeros(part.size, dtype=part.dtype, device=mix.device)
            mine[part.leaf] = zero if jac is None else mix.to(jac) @ jac[i]
    return mine


def _disagreeing(
    mine: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor | None],
    types: Iterable[torch.dtype],
) -> list[str]:
    """Return the leaves that differ, relative to their own and to the largest gradient."""
    relative, cancelled = (_precision.least(a, types) for a in (_RELATIVE, _CANCELLED))
    sizes = {k: _largest(g) for k, g in theirs.items() if g is not None}
    largest = max((size for size in sizes.values() if math.isfinite(size)), default=0.0)
    wrong = []
    for leaf, gradient in mine.items():
        other, size = theirs[leaf], sizes.get(leaf, 0.0)
        difference = gradient if other is None else gradient.to(other) - other.reshape(-1)
        # Entries that are not finite are the examples' own: assembling names them.
        if (
            math.isfinite(size)
            and not _largest(difference) <= relative * size + cancelled * largest
        ):
            wrong.append(leaf)
    return wrong


def _largest(gradient: Tensor) -> float:
    """Return the size of the largest entry; NaN if there is a NaN."""
    if gradient.numel() == 0:
        return 0.0
    return float(torch.stack(gradient.aminmax()).abs().max())  # no array of its size is made
