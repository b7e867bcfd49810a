"""Taps: watch what a network does with its parameters while its own code runs.

`Tap` is a mode that sees every torch operation called from Python. Where a tagged weight meets data
in a product, a convolution or a look-up it notes the site and adds a perturbation of zero to the
output: the cotangent of that zero is the cotangent of the output, also when a later operation
writes in place. Everything else that touches a tagged parameter makes its leaf dense. Since the
user's code itself runs, `no_grad`, `detach` and custom `autograd.Function`s keep their meaning.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from entk.torch import _views
from entk.torch._convolutions import CONVOLUTION_RULES
from entk.torch._fused import JOINS, Fused, fused
from entk.torch._lookups import LOOKUP_RULES, embedding_bag
from entk.torch._recurrent import SPELLED
from entk.torch._sites import MATRIX_RULES, Rule, Use
from entk.torch._views import Step, View

RULES: dict[Any, Rule] = {**MATRIX_RULES, **CONVOLUTION_RULES, **LOOKUP_RULES}
REWRITTEN: dict[Any, Callable[..., Any]] = {**SPELLED, F.embedding_bag: embedding_bag}

Perturb = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """A use of a leaf, with the output it made.

    `loop` says that the use stands in a recurrent layer that was spelled out; `version` counts the
    writes to the acts before the use.
    """

    view: View
    use: Use
    out: Tensor
    loop: bool
    version: int

    @property
    def overwritten(self) -> bool:
        """Whether the acts have been written to since."""
        return self.use.acts._version != self.version

    def cots(self, d: Tensor) -> Tensor:
        """Turn the cotangent of the output into the cotangents of the factors."""
        d = self.use.cots(d)
        return d if self.view.scale == 1.0 else d * self.view.scale

    @property
    def signature(self) -> tuple[object, ...]:
        """What must agree for the site to play the same part for another example."""
        return self.view.leaf, self.use.kind, self.use.acts.shape, self.out.shape


class Tap(TorchFunctionMode):
    """Watch the uses of `parameters` and perturb their outputs.

    Of those that are not `live` the tags are followed, so that every run sees the same, and nothing
    is noted.

    Attributes
    ----------
    sites : list of Site
        The uses, in the order in which they ran.
    dense : dict
        Leaves that an operation without structure touched, with its name.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        perturb: Perturb | None = None,
        live: Container[str] | None = None,
    ) -> None:
        super().__init__()
        self._live = parameters if live is None else live
        self.sites: list[Site] = []
        self.dense: dict[str, str] = {}
        self._perturb = perturb
        self._level = _level()
        self._loops = 0
        self._views: dict[int, View | Fused] = {id(p): View(name) for name, p in parameters.items()}
        # Tags are by identity: a tagged tensor that died would pass its tag to a stranger.
        self._alive: list[Tensor] = list(parameters.values())

    def __torch_function__(
        self,
        func: Any,
        kinds: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Without gradients (`no_grad`, the forward of an autograd.Function) a use is none.
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        seen = [self._views[id(t)] for t in _tensors(args, kwargs) if id(t) in self._views]
        if not seen:
            return func(*args, **kwargs)
        if _level() != self._level:  # the network's own torch.func: what it shows may not leave it
            self._touch(_tensors(args, kwargs), func)
            return func(*args, **kwargs)
        if func in REWRITTEN:
            out = self._rewritten(func, args, kwargs)
            if out is not None:
                return out
        if _is_composite(func):
            with self:
                return _opened(func)(*args, **kwargs)
        return self._single(func, args, kwargs, seen)

    def _single(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        seen: Sequence[View | Fused],
    ) -> Any:
        """Run one operation on tagged tensors: a view, a site, or a use without structure."""
        if func is Tensor.__iter__:
            return iter(self._single(Tensor.unbind, args, {}, seen))
        view = self._views.get(id(args[0])) if args else None
        if view is not None and len(seen) == 1:
            shown = self._shown(func, args, kwargs, view)
            if shown is not None:
                return shown
        if func in _views.DETACHED or func in _views.VALUELESS:
            return func(*args, **kwargs)
        joined = self._joined(func, args, kwargs)
        if joined is not None:
            return joined
        rule = RULES.get(func)
        use = rule(self._is_tagged, args, kwargs) if rule else None
        out = func(*args, **kwargs)
        uses = None if use is None else self._uses(use)
        if use is not None and uses is not None:
            self._touch([t for t in _tensors(args, kwargs) if t is not use.weight], func)
            for shown, own in uses:
                if shown.leaf in self._live:
                    version = own.acts._version
                    out = self._tapped(Site(shown, own, out, self._loops > 0, version))
            return out
        if view is None and (func in _views.COPIES or func in _views.VALUELESS):
            return out  # only a type or a shape was asked of the parameter
        # What gives no real number (a shape, a comparison) has no gradient, unless it writes.
        writes = func is Tensor.__setitem__
        if writes or any(t.is_floating_point() or t.is_complex() for t in _tensors((out,), {})):
            self._touch(_tensors(args, kwargs), func)
        return out

    def _uses(self, use: Use) -> list[tuple[View, Use]] | None:
        view = self._views[id(use.weight)]
        return [(view, use)] if isinstance(view, View) else view.uses(use)

    def _joined(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Run an operation that joins parameters, and tag its result."""
        if func not in JOINS:
            return None
        view = fused(func, args, kwargs, lambda part: self._views.get(id(part)))
        return None if view is None else self._tag(func(*args, **kwargs), view)

    def _tapped(self, site: Site) -> Tensor:
        number = len(self.sites)
        # Kept beyond the run, an output would keep all that its history saved.
        self.sites.append(replace(site, out=site.out.detach()))
        return site.out + self._perturb(number, site.out) if self._perturb else site.out

    def _shown(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], view: View | Fused
    ) -> Any:
        """Run what only re-arranges, copies or scales a parameter, and tag its result."""
        if func in _views.COPIES:
            return self._tag(func(*args, **kwargs), view)
        scale = _scale(func, args, kwargs)
        if scale is not None:
            return self._tag(func(*args, **kwargs), view.times(scale))
        if func not in _views.VIEWS or next(_tensors(args[1:], kwargs), None) is not None:
            return None
        out = func(*args, **kwargs)
        rest = args[1:]
        if isinstance(out, Tensor):
            return self._tag(out, view.then(lambda t: func(t, *rest, **kwargs)))
        for i, part in enumerate(out):
            self._tag(part, view.then(_part(func, i, rest, kwargs)))
        return out

    def _tag(self, tensor: Tensor, view: View | Fused) -> Tensor:
        self._views[id(tensor)] = view
        self._alive.append(tensor)
        return tensor

    def _rewritten(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        loop = func in SPELLED
        self._loops += loop
        try:
            with self:
                return REWRITTEN[func](*args, **kwargs)
        finally:
            self._loops -= loop

    def _is_tagged(self, value: Any) -> bool:
        return id(value) in self._views

    def _touch(self, tensors: Iterable[Tensor], func: Any) -> None:
        for tensor in tensors:
            if id(tensor) in self._views:
                name = resolve_name(func) or getattr(func, "__name__", "an operation")
                for leaf in self._views[id(tensor)].leaves:
                    if leaf in self._live:
                        self.dense.setdefault(leaf, name)


def _level() -> int:
    """Return how many `torch.func` transforms are running."""
    functorch = getattr(torch._C, "_functorch", None)
    return getattr(functorch, "maybe_current_level", lambda: 0)() or 0


def _tensors(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of a call, and in lists among them."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (v for v in value if isinstance(v, Tensor))


def _part(func: Any, i: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Step:
    """Return the step from a tensor to the i-th of the views that a call makes."""

    def step(t: Tensor) -> Tensor:
        part: Tensor = func(t, *args, **kwargs)[i]
        return part

    return step


def _scale(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """Return the number that a call multiplies its first argument by, if it does just that."""
    if func in _views.MINUS:
        return -1.0
    if len(args) != 2 or kwargs or not isinstance(args[1], int | float):
        return None
    if func in _views.TIMES:
        return float(args[1])
    return 1.0 / args[1] if func in _views.OVER and args[1] else None


def _is_composite(func: Any) -> bool:
    return (
        isinstance(func, types.FunctionType)
        and func.__module__ == "torch.nn.functional"
        and func not in RULES
    )


_NEVER = dict.fromkeys(
    ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"),
    lambda *_: False,
)


def _opened(func: types.FunctionType) -> Callable[..., Any]:
    """Return a composite of `torch.nn.functional` that runs its own code under a mode.

    Such functions (attention, `embedding`) hand themselves over whole as soon as a mode is active;
    with the question answered "no" their steps are seen one by one.
    """
    code, defaults, closure = func.__code__, func.__defaults__, func.__closure__
    names = {**func.__globals__, **_NEVER}
    inside = types.FunctionType(code, names, func.__name__, defaults, closure)
    inside.__kwdefaults__ = func.__kwdefaults__
    return inside
