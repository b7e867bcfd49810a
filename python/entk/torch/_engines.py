"""Two ways to run a plan on a batch: all examples at once under `torch.func`, or one by one.

Both give the same thing: for every leaf with sites its factors, for every free leaf its Jacobian.
`Together` is one forward and one backward pass for the batch; the rows of the output are pulled
back by a Python loop inside the one level of `vmap`, because a second level is wrong for some
operations (`nn.PReLU`). `OneByOne` can do whatever autograd can do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.func import vjp, vmap

from entk._errors import ModelError
from entk.torch._decisions import Decisions, SplitError
from entk.torch._network import Network, pulled_back
from entk.torch._plan import Plan, TableUse, table_use
from entk.torch._rows import Rows
from entk.torch._taps import Perturb, Site, Tap

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Result:
    """What an engine made for ``b`` examples.

    Attributes
    ----------
    pairs : dict
        Leaf to its uses: acts ``(b, G, T, d_in)`` with cots ``(b, R, G, T, d_out)``, or ids
        ``(b, T)`` with cots ``(b, R, T, d)``.
    free : dict
        Leaf to its Jacobian ``(b, R, P)``; None if it is known that no gradient reaches it.
    """

    pairs: dict[str, list[Pair]]
    free: dict[str, Tensor | None]


class SitesDifferError(Exception):
    """An example used a leaf in a way that the plan does not know.

    Attributes
    ----------
    leaf : str
        The leaf.
    why : str or None
        Why it must be dense, if it must.
    sites : list of Site
        Uses to take into account from now on.
    """

    def __init__(self, leaf: str, why: str | None, sites: list[Site]) -> None:
        super().__init__(f"layer {leaf!r}: {why or 'used in another way'}")
        self.leaf = leaf
        self.why = why
        self.sites = sites


class UnlikeError(RuntimeError):
    """A run met other sites than the plan expects."""

    def __init__(self) -> None:
        super().__init__("the network does not do the same for every example")


class Engine(Protocol):
    """Runs a plan on a batch."""

    name: str

    def __call__(self, plan: Plan, tensors: Sequence[Tensor], own: Tensor) -> Result:
        """Return the factors of a batch; `own` are its rows, ``(b, O)``."""


class Together:
    """All examples at once, by ``vmap`` over ``vjp``.

    Attributes
    ----------
    decisions : Decisions
        Answers branches on data; `asked` says whether examples may differ in what they do.
    """

    name = "torch.func"

    def __init__(self, network: Network, rows: Rows) -> None:
        self._network = network
        self._rows = rows
        self._parameters = {k: p.detach() for k, p in network.parameters.items()}
        self.decisions = Decisions()

    def __call__(self, plan: Plan, tensors: Sequence[Tensor], own: Tensor) -> Result:
        """Return the factors of a batch."""
        try:
            return self._batch(plan, tensors, own)
        except SplitError as split:
            sides = (split.yes, split.no)
            results = [self(plan, [t[side] for t in tensors], own[side]) for side in sides]
            return _merged(results, torch.cat(sides).argsort())

    def _batch(self, plan: Plan, tensors: Sequence[Tensor], own: Tensor) -> Result:
        def one(row: Tensor, *example: Tensor) -> tuple[dict[str, list[Pair]], dict[str, Tensor]]:
            return self._one(plan, example, row)

        with torch.no_grad():  # `vjp` has its own; this is for what stands outside the network
            pairs, free = vmap(one, randomness="error")(own, *tensors)
        return Result(pairs, {**free})

    def _one(
        self, plan: Plan, example: Sequence[Tensor], own: Tensor
    ) -> tuple[dict[str, list[Pair]], dict[str, Tensor]]:
        network = self._network
        free = {k: self._parameters[k] for k in plan.free}
        fixed = {k: p for k, p in self._parameters.items() if k not in free}
        zeros = [torch.zeros(s.shape, dtype=s.dtype, device=s.device) for s in plan.sites]
        sites: list[Site] = []

        def run(zeros: list[Tensor], free: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
            tagged = {**fixed, **free} if plan.tapped else {}
            tap = Tap(tagged, _expected(zeros), plan.tapped)

            def work() -> Tensor:
                with self.decisions, tap:
                    return network.single(example)

            out = network.substituted({**fixed, **free}, work)
            _check_unwritten(tap)
            _check_same(plan, tap)
            if self.decisions.asked:
                _check_tables(plan, tap, network.parameters)
            sites.extend(tap.sites)
            return out, [site.use.acts for site in sites]

        out, pull, acts = vjp(run, zeros, free, has_aux=True)  # type: ignore[misc]
        pulled = [pull(row) for row in self._rows.each(own, out)]
        pairs = {
            part.name: [
                _joined(
                    [acts[k] for k in use.sites],
                    [[sites[k].cots(d[k]) for k in use.sites] for d, _ in pulled],
                    use,
                )
                for use in part.uses
            ]
            for part in plan.parts
            if part.uses
        }
        return pairs, {k: _stack([d[k].reshape(-1) for _, d in pulled]) for k in free}


class OneByOne:
    """Each example by itself, by plain autograd."""

    name = "autograd, one example at a time"

    def __init__(self, network: Network, rows: Rows) -> None:
        self._network = network
        self._rows = rows

    def __call__(self, plan: Plan, tensors: Sequence[Tensor], own: Tensor) -> Result:
        """Return the factors of a batch."""
        ones = [self._one(plan, [t[i] for t in tensors], own[i]) for i in range(own.shape[0])]
        pairs = {
            part.name: [
                _stacked([one.pairs[part.name][i] for one in ones], use)
                for i, use in enumerate(part.uses)
            ]
            for part in plan.parts
            if part.uses
        }
        free = {k: _concatenated([one.free[k] for one in ones]) for k in plan.free}
        return Result(pairs, free)

    def _one(self, plan: Plan, example: Sequence[Tensor], own: Tensor) -> Result:
        network = self._network
        free = {
            k: network.scripted.get(k, network.parameters[k].detach().requires_grad_())
            for k in plan.free
        }
        zeros: list[Tensor] = []

        def perturb(_: int, out: Tensor) -> Tensor:
            zeros.append(torch.zeros_like(out, requires_grad=True))
            return zeros[-1]

        watched = plan.watched
        tagged = {**network.parameters, **free} if watched else {}
        tap = Tap(tagged, perturb, watched)

        def work() -> list[list[Tensor | None]]:
            # Without anything to watch the network runs as it would by itself: some choose another
            # way when a mode is about.
            with tap if watched else nullcontext():
                out = network.single(example)
            variables = [*zeros, *free.values()]
            return [_grads(out, variables, row) for row in self._rows.each(own, out)]

        pulled = network.substituted({**network.parameters, **free}, work)
        _check_unwritten(tap)
        assigned = _assigned(plan, tap, network.parameters)
        seen = _Pulled(tap.sites, [_or_zeros(row, zeros) for row in pulled])
        pairs = {
            part.name: [
                seen.factors(use, assigned[part.name, i], network.parameters[part.leaf])
                for i, use in enumerate(part.uses)
            ]
            for part in plan.parts
            if part.uses
        }
        rows = [row[len(zeros) :] for row in pulled]
        jacobians = {
            name: _jacobian(p, [row[i] for row in rows]) for i, (name, p) in enumerate(free.items())
        }
        return Result(pairs, jacobians)


def _jacobian(parameter: Tensor, grads: list[Tensor | None]) -> Tensor | None:
    if all(g is None for g in grads):
        return None
    return torch.stack([torch.zeros_like(parameter) if g is None else g for g in grads]).reshape(
        1, len(grads), -1
    )


def _concatenated(jacobians: list[Tensor | None]) -> Tensor | None:
    """Return the Jacobians of several examples as one; None stands for zeros."""
    some = next((j for j in jacobians if j is not None), None)
    if some is None:
        return None
    return torch.cat([torch.zeros_like(some) if j is None else j for j in jacobians])


def _expected(zeros: list[Tensor]) -> Perturb:
    """Return the perturbations that were made before the run, by number."""

    def perturb(number: int, out: Tensor) -> Tensor:
        if number >= len(zeros) or zeros[number].shape != out.shape:
            raise UnlikeError
        return zeros[number]

    return perturb


def _check_unwritten(tap: Tap) -> None:
    """Raise unless the factors are still what the products were made of."""
    for site in tap.sites:
        if site.overwritten:
            raise ModelError(
                f"layer {site.view.leaf!r}: its input is overwritten after it was used (by an "
                "operation in place), so that its gradient is lost, for autograd too. Use the "
                "operation that makes a new tensor"
            )


def _check_same(plan: Plan, tap: Tap) -> None:
    """Raise unless a run under `torch.func` met the sites that the plan expects."""
    for leaf, operation in tap.dense.items():
        raise SitesDifferError(leaf, f"used by {operation} under torch.func", [])
    if [s.signature for s in tap.sites] != [s.signature for s in plan.sites]:
        raise UnlikeError


def _check_tables(plan: Plan, tap: Tap, parameters: Mapping[str, Tensor]) -> None:
    """Raise unless every site shows the entries that the plan expects of it."""
    try:
        assigned = _assigned(plan, tap, parameters)
    except SitesDifferError as error:
        raise UnlikeError from error
    for part in plan.parts:
        for i, use in enumerate(part.uses):
            if assigned[part.name, i] != use.sites:
                raise UnlikeError


def _merged(results: list[Result], order: Tensor) -> Result:
    """Return the results of parts of a batch as one, in the order of the examples."""
    first, *_ = results
    pairs = {
        name: [
            (
                torch.cat([r.pairs[name][i][0] for r in results])[order],
                torch.cat([r.pairs[name][i][1] for r in results])[order],
            )
            for i in range(len(uses))
        ]
        for name, uses in first.pairs.items()
    }
    free = {}
    for name in first.free:
        jacobian = _concatenated([r.free[name] for r in results])
        free[name] = None if jacobian is None else jacobian[order]
    return Result(pairs, free)


def _grads(out: Tensor, variables: list[Tensor], row: Tensor) -> list[Tensor | None]:
    if not out.requires_grad or not variables:
        return [None] * len(variables)
    return pulled_back(out, variables, row, again=True)


def _or_zeros(grads: list[Tensor | None], zeros: list[Tensor]) -> list[Tensor]:
    """Return the gradients of the perturbations; one that reaches no output has none."""
    pairs = zip(grads, zeros, strict=False)
    return [torch.zeros_like(zero) if g is None else g for g, zero in pairs]


def _assigned(
    plan: Plan, tap: Tap, parameters: Mapping[str, Tensor]
) -> dict[tuple[str, int], list[int]]:
    """Return the sites of each use of each part, told by the entries that they show."""
    for leaf, operation in tap.dense.items():
        if leaf in plan.tapped:
            raise SitesDifferError(leaf, f"another example uses it by {operation}", [])
    assigned: dict[tuple[str, int], list[int]] = {
        (part.name, i): [] for part in plan.parts for i in range(len(part.uses))
    }
    for number, site in enumerate(tap.sites):
        leaf = site.view.leaf
        seen = table_use(number, site, parameters[leaf])
        homes = (
            assigned[part.name, i]
            for part in plan.parts
            if part.leaf == leaf
            for i, use in enumerate(part.uses)
            if use.takes(seen)
        )
        home = next(homes, None)
        if home is None:
            raise SitesDifferError(leaf, None, [s for s in tap.sites if s.view.leaf == leaf])
        home.append(number)
    return assigned


def _joined(acts: list[Tensor], cots: list[list[Tensor]], use: TableUse) -> Pair:
    """Return the factors of one use for one example: sites side by side, rows stacked."""
    axis = use.axis
    if len(acts) == 1:  # the common case, without a copy
        return acts[0], _stack([row[0] for row in cots])
    return torch.cat(acts, axis), _stack([torch.cat(row, axis) for row in cots])


def _stack(rows: list[Tensor]) -> Tensor:
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)


@dataclass(frozen=True)
class _Pulled:
    """The sites of one example with the cotangents of their outputs, row by row."""

    sites: list[Site]
    rows: list[list[Tensor]]

    def factors(self, use: TableUse, numbers: list[int], like: Tensor) -> Pair:
        """Return the factors of a use at the sites `numbers`, as a batch of one."""
        if not numbers:
            return use.nothing(len(self.rows), like)
        acts = [self.sites[k].use.acts for k in numbers]
        cots = [[self.sites[k].cots(row[k]) for k in numbers] for row in self.rows]
        a, c = _joined(acts, cots, use)
        return a[None], c[None]


def _stacked(pairs: list[Pair], use: TableUse) -> Pair:
    """Return the factors of several examples, filled up to the largest number of positions."""
    length = max(a.shape[use.axis + 1] for a, _ in pairs)
    nothing = -1 if use.kind == "lookup" else 0
    acts = [filled(a, use.axis + 1, length, nothing) for a, _ in pairs]
    cots = [filled(c, use.axis + 2, length, 0) for _, c in pairs]
    return torch.cat(acts), torch.cat(cots)


def filled(tensor: Tensor, axis: int, length: int, value: int) -> Tensor:
    """Return `tensor` with `axis` lengthened to `length` by `value`."""
    missing = length - tensor.shape[axis]
    if missing == 0:
        return tensor
    shape = (*tensor.shape[:axis], missing, *tensor.shape[axis + 1 :])
    return torch.cat([tensor, tensor.new_full(shape, value)], axis)
