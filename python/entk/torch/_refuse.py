"""The networks that have no gradient for each example, and how they are told.

Operations that draw random numbers or use the statistics of a batch are refused as they run. What
has no such operation and still mixes examples is told by its outputs: those for a batch must be
those for its examples one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode, resolve_name

from entk._errors import ModelError
from entk.torch import _precision
from entk.torch._network import Network

_DROPOUTS = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.alpha_dropout,
    torch.feature_dropout,
}
_RANDOM_WORDS = """
    bernoulli bernoulli_ rand rand_like randn randn_like randint randint_like randperm normal
    normal_ uniform_ exponential_ geometric_ cauchy_ log_normal_ random_ multinomial poisson
"""
_RANDOM = {
    getattr(home, word)
    for word in _RANDOM_WORDS.split()
    for home in (torch, Tensor)
    if hasattr(home, word)
} | {F.gumbel_softmax}
_CONTROL = {"cond", "while_loop"}
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}


class Watch(TorchFunctionMode):
    """Refuse operations that draw random numbers or mix the examples of a batch."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names

    def __torch_function__(
        self,
        func: Any,
        kinds: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _draws(func, args, kwargs):
            operation = resolve_name(func) or getattr(func, "__name__", "an operation")
            raise ModelError(
                f"{_where(self._names)} draws random numbers ({operation}), so its output is no "
                "function of the example. Call module.eval() first; a functional dropout needs "
                "training=self.training"
            )
        if getattr(func, "__name__", "") in _CONTROL and isinstance(func, HigherOrderOperator):
            raise ModelError(
                f"{_where(self._names)} uses torch.{func.__name__}, through which no gradient of "
                "the parameters is followed here. Write it with torch.where, or as Python's own if"
            )
        if _mixes(func, args, kwargs):
            raise ModelError(
                f"{_where(self._names)} normalises with the statistics of the batch (training "
                "mode, or no running statistics), so examples depend on each other and have no "
                "gradients of their own. Call module.eval() first; without running statistics "
                "use a normalisation within the example (GroupNorm, LayerNorm)"
            )
        return func(*args, **kwargs)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], at: int, name: str) -> Any:
    return args[at] if len(args) > at else kwargs.get(name)


def _draws(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if func in _RANDOM:
        return True
    if func in _DROPOUTS:
        p, training = _argument(args, kwargs, 1, "p"), _argument(args, kwargs, 2, "training")
        return (p is None or p > 0) and (training is None or bool(training))
    if func is F.scaled_dot_product_attention:
        return bool(_argument(args, kwargs, 4, "dropout_p"))
    if func is F.multi_head_attention_forward:
        return bool(kwargs.get("training", True)) and args[10] > 0
    if func in _RECURRENT:
        return bool(args[5] and args[6]) and args[4] > 1
    return func is F.rrelu and bool(_argument(args, kwargs, 3, "training"))


def _mixes(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if func not in (F.batch_norm, torch.batch_norm):
        return False
    # A batch of one, where several examples run, is no batch: a weight that is standardised.
    one = _argument(args, kwargs, 0, "input").shape[0] == 1
    return not one and bool(_argument(args, kwargs, 5, "training"))


def _where(names: Mapping[int, str]) -> str:
    """Name the module whose code is running, from the frames of the call."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            name = names[id(owner)]
            kind = type(owner).__name__
            return f"layer {name!r} ({kind})" if name else f"the network ({kind})"
        frame = frame.f_back  # type: ignore[assignment]
    return "the network"


# Rounding of a batch against single examples is far below; mixing is of the size of the outputs.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 0.1}


def check_independent(network: Network, tensors: Sequence[Tensor]) -> None:
    """Raise `ModelError` unless a batch gives each example what it gets by itself."""
    count = tensors[0].shape[0]
    together = _quiet(network, tensors)
    alone = torch.cat([_quiet(network, [t[i : i + 1] for t in tensors]) for i in range(count)])
    if together.shape != alone.shape:
        raise ModelError(
            f"a batch of {count} gives outputs of shape {tuple(together.shape)}, its examples one "
            f"by one {tuple(alone.shape)}: the number of outputs may not depend on the batch"
        )
    rounding = _precision.least(_ROUNDING, {alone.dtype, *_precision.of_parameters(network)})
    if _close(together, alone, rounding):
        return
    types = _precision.of_everything(network, [t[0] for t in tensors])
    rounding = _precision.least(_ROUNDING, types)
    if not _close(together, alone, rounding):
        _refuse_writes(network)
        raise ModelError(
            f"{_culprit(network, tensors, rounding)} mixes the examples of a batch: the outputs "
            f"for a batch of {count} differ from those one by one by "
            f"{_difference(together, alone):.1e} of their size. Normalise or centre within the "
            "example, not over the batch; the first axis of every tensor must be the examples "
            "(batch_first=True)"
        )


def _refuse_writes(network: Network) -> None:
    """Raise `ModelError` if running the network has changed its parameters."""
    own = dict(network.module.named_parameters())
    for name, copy in network.parameters.items():
        if not torch.equal(copy, own[name]):
            raise ModelError(
                f"layer {name!r}: the network writes to this parameter as it runs, and the writing "
                "changes the outputs of the next run, so that they are no function of the example. "
                "Compute with a changed copy instead (w = 0.5 * self.w)"
            )


def check_reached(network: Network, out: Tensor) -> None:
    """Raise `ModelError` if the outputs depend on a parameter itself, past the copy in its place.

    Its gradient would be missed, by every comparison too.
    """
    own = {
        id(p): name
        for name, p in network.module.named_parameters()
        if name in network.parameters and name not in network.scripted
    }
    nodes = [out.grad_fn]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        name = own.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise ModelError(
                f"layer {name!r}: the network reaches this parameter by another way than its name "
                "(a list, a closure, a tensor made of it in __init__), so that another value "
                "cannot stand in its place. Use the attribute itself in forward, or hold it in an "
                "nn.ParameterList"
            )
        fresh = {after for after, _ in node.next_functions} - seen
        seen |= fresh
        nodes.extend(fresh)


def _quiet(network: Network, tensors: Sequence[Tensor]) -> Tensor:
    """Return the outputs, and refuse a network that moves the random state."""
    before = _random_state(network.device)

    def work() -> Tensor:
        with Watch(network.names):
            return network.outputs(tensors).detach()

    out: Tensor = network.substituted(network.parameters, work)
    if not torch.equal(_random_state(network.device), before):
        raise ModelError(
            "the network draws random numbers, so its output is no function of the example. Call "
            "module.eval() first and take random operations out of forward"
        )
    return out


def _random_state(device: torch.device) -> Tensor:
    """Return the state of the generators that code on this device may draw from."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return torch.cat([torch.get_rng_state(), *own])


def _difference(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0:
        return 0.0
    size = float(b.abs().max())
    return float((a - b).abs().max()) / size if size else float((a - b).abs().max())


def _close(a: Tensor, b: Tensor, rounding: float) -> bool:
    if not bool(torch.isfinite(b).all()):
        return True  # not a matter of batches: assembling names the examples
    return _difference(a, b) <= rounding


def _culprit(network: Network, tensors: Sequence[Tensor], rounding: float) -> str:
    """Name the first module whose inputs agree between the two ways and whose outputs do not."""
    together = _traced(network, tensors)
    count = tensors[0].shape[0]
    singles = [_traced(network, [t[i : i + 1] for t in tensors]) for i in range(count)]
    for step, (name, before, after) in enumerate(together):
        if not all(len(s) > step and s[step][0] == name for s in singles):
            break
        same_inputs = _agree(before, [s[step][1] for s in singles], rounding)
        if same_inputs and not _agree(after, [s[step][2] for s in singles], rounding):
            return f"layer {name!r}" if name else "the network"
    return "the network"


_Trace = list[tuple[str, Tensor | None, Tensor | None]]


def _traced(network: Network, tensors: Sequence[Tensor]) -> _Trace:
    trace: _Trace = []

    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if id(module) in network.names:
            trace.append((network.names[id(module)], _first(args), _first(out)))

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        network.substituted(network.parameters, lambda: network.outputs(tensors))
    finally:
        handle.remove()
    return trace


def _first(values: Any) -> Tensor | None:
    values = values if isinstance(values, tuple | list) else (values,)
    return next((v.detach().clone() for v in values if isinstance(v, Tensor)), None)


def _agree(together: Tensor | None, singles: Sequence[Tensor | None], rounding: float) -> bool:
    if together is None or any(s is None or s.ndim == 0 for s in singles):
        return True
    alone = torch.cat([s for s in singles if s is not None])
    if alone.shape != together.shape or not alone.is_floating_point():
        return alone.shape == together.shape
    return _close(together, alone, rounding)
