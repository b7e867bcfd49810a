"""A module as a function of a few examples: its inputs, its outputs, copies of its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.func import functional_call

from entk._errors import DTypeError, InputError, ModelError
from entk.torch._guard import Contents, forget

Output = str | int | Callable[[Any], Any] | None
_SUPPORTED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class _Stage(nn.Module):
    """Runs work on a module while `functional_call` has other tensors in its place."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


class Inputs:
    """The arguments of a network: a pytree whose tensors all begin with the axis of examples."""

    def __init__(self, x: Any) -> None:
        leaves, self._spec = pytree.tree_flatten(_plain(x))
        self._fixed = [None if isinstance(v, Tensor) else v for v in leaves]
        self._is_tensor = [isinstance(v, Tensor) for v in leaves]
        self.tensors: list[Tensor] = [v.detach() for v in leaves if isinstance(v, Tensor)]
        self.n = self._count()

    def _count(self) -> int:
        if not self.tensors:
            raise InputError("x holds no tensor; expected a tensor, a tuple or a dict of tensors")
        if any(t.ndim == 0 for t in self.tensors):
            raise InputError("x holds a tensor without axes; every tensor begins with the examples")
        counts = [t.shape[0] for t in self.tensors]
        if len(set(counts)) > 1:
            raise InputError(
                f"the tensors of x disagree in the number of examples: {counts}; "
                "every tensor has the examples on its first axis"
            )
        return counts[0]

    def check_values(self) -> None:
        """Raise `InputError` for tensors on the meta device."""
        if any(t.is_meta for t in self.tensors):
            raise InputError("x holds a tensor on the meta device, which has no values")

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of one example."""
        return [tuple(t.shape[1:]) for t in self.tensors]

    def take(self, index: slice | list[int], device: torch.device) -> list[Tensor]:
        """Return the tensors of some examples on `device`."""
        some = (t[index] for t in self.tensors)
        # From a GPU to the host such a copy would be read before it is there.
        moved = [t.to(device, non_blocking=device.type != "cpu") for t in some]
        return [t.clone() if t.is_inference() else t for t in moved]

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of a call."""
        source = iter(tensors)
        pairs = zip(self._is_tensor, self._fixed, strict=True)
        x = pytree.tree_unflatten([next(source) if t else v for t, v in pairs], self._spec)
        if isinstance(x, dict):
            return (), x
        return (x if isinstance(x, tuple) else (x,)), {}


def _plain(x: Any) -> Any:
    """Return `x` with mappings that are no dict (such as a tokenizer's result) as dicts."""
    if isinstance(x, Mapping) and not isinstance(x, dict):
        return dict(x)
    if not isinstance(x, Tensor | tuple | list | dict):
        raise InputError(
            f"x is a {type(x).__name__}; expected a tensor (module(x)), a tuple (module(*x)) "
            "or a dict (module(**x))"
        )
    return x


def check_values(module: nn.Module) -> None:
    """Raise `InputError` for a module on the meta device."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise InputError(
                f"layer {name!r} is on the meta device: it has a shape and no values. Give the "
                "module its weights first (module.to_empty(device=...), then load_state_dict)"
            )


class Network:
    """A module with working copies of its parameters.

    Parameters
    ----------
    module : nn.Module
        Run as it is, with `functional_call`.
    inputs : Inputs
        Says how tensors become arguments.
    output
        Which of the module's outputs is meant.

    Attributes
    ----------
    parameters : dict
        Copies of the parameters with `requires_grad`, tied ones under their first name. Copies,
        so that a forward pass that writes to them leaves the user's alone.
    scripted : dict
        The user's own tensors, for parameters of TorchScript parts: these cannot be exchanged.
    """

    def __init__(self, module: nn.Module, inputs: Inputs, output: Output) -> None:
        self.module = module
        self.inputs = inputs
        self._output = output
        trained = {k: p for k, p in module.named_parameters() if p.requires_grad}
        for name, p in trained.items():
            _check_parameter(name, p)
        if not trained:
            raise InputError("the module has no parameter with requires_grad=True")
        self.names = {id(m): name for name, m in module.named_modules()}
        inside = {
            id(p)
            for m in module.modules()
            if isinstance(m, torch.jit.ScriptModule)
            for p in m.parameters()
        }
        self.scripted = {k: p for k, p in trained.items() if id(p) in inside}
        self.parameters = {k: p.detach().clone().requires_grad_() for k, p in trained.items()}
        self._frozen = _renormalised(module, {*trained})
        self._stage = _Stage(module)
        forget(module)
        self._contents = Contents(module)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def substituted(self, parameters: Mapping[str, Tensor], work: Callable[[], Any]) -> Any:
        """Return ``work()``, run while `parameters` and copies of the buffers are the module's.

        What the modules keep of the run is taken away after it.
        """
        if self.scripted:
            buffers: dict[str, Tensor] = {}
        else:
            buffers = {k: b.clone() for k, b in self.module.named_buffers()}
        standing = {**self._frozen, **buffers, **parameters}
        named = {f"module.{k}": t for k, t in standing.items() if k not in self.scripted}
        try:
            return functional_call(self._stage, named, (work,))
        finally:
            self._contents.restore()

    def outputs(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the module's outputs for a batch, ``(batch, O)``; call inside `substituted`.

        The module gets copies of its inputs: it may write to them (``nn.ReLU(inplace=True)``).
        """
        args, kwargs = self.inputs.arguments([t.clone() for t in tensors])
        return _flat(self._chosen(self.module(*args, **kwargs)), tensors[0].shape[0])

    def single(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the outputs ``(O,)`` for one example; call inside `substituted`."""
        return self.outputs([t[None] for t in tensors])[0]

    def _chosen(self, out: Any) -> Any:
        if callable(self._output):
            return self._output(out)
        if self._output is not None:
            return _picked(out, self._output)
        if any(c.__name__ == "ModelOutput" for c in type(out).__mro__):
            return next(v for v in out.values() if isinstance(v, Tensor))
        return out


def pulled_back(
    out: Tensor, variables: Sequence[Tensor], row: Tensor, *, again: bool = False
) -> list[Tensor | None]:
    """Return autograd's gradients of ``out . row``, to be asked for once or `again`."""
    try:
        grads = torch.autograd.grad(out, variables, row, retain_graph=again, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = (str(error).strip().splitlines() or ["it gives no reason"])[0]
        raise ModelError(f"autograd cannot differentiate this network: {said}") from error
    return [g.to_dense() if g is not None and g.is_sparse else g for g in grads]


def _renormalised(module: nn.Module, trained: set[str]) -> dict[str, Tensor]:
    """Return copies of the frozen tables that a forward pass writes to (``max_norm``)."""
    tables = {
        id(m.weight)
        for m in module.modules()
        if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None
    }
    named = module.named_parameters()
    return {k: p.detach().clone() for k, p in named if id(p) in tables and k not in trained}


def _check_parameter(name: str, parameter: Tensor) -> None:
    if nn.parameter.is_lazy(parameter):
        raise ModelError(
            f"layer {name!r} has no shape yet; run the module once on a batch before this call"
        )
    if parameter.is_complex():
        raise DTypeError(
            f"layer {name!r} is complex ({parameter.dtype}); complex parameters are not supported "
            "(the kernel would need conjugates)"
        )
    if parameter.dtype not in _SUPPORTED:
        raise DTypeError(
            f"layer {name!r} is {parameter.dtype}; supported: float32, float64, float16, bfloat16"
        )


def _picked(out: Any, key: str | int) -> Any:
    try:
        if isinstance(key, str) and not isinstance(out, Mapping):
            return getattr(out, key)
        return out[key]
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        have = f"; it has {', '.join(map(str, out))}" if isinstance(out, Mapping) else ""
        raise InputError(
            f"output={key!r}: the network returns a {type(out).__name__} without it{have}"
        ) from error


def _flat(out: Any, batch: int) -> Tensor:
    """Return the tensors of `out` side by side, ``(batch, O)``.

    A network that ends in ``squeeze()`` loses the axis of an only example. What it means is seen on
    several: those must be what the examples are one by one.
    """
    leaves = [v for v in pytree.tree_leaves(out) if v is not None]
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise InputError(
                f"the output holds a {type(leaf).__name__}, not only tensors; "
                "choose a part with output= (a name, an index or a function)"
            )
        if not leaf.is_floating_point():
            raise InputError(
                f"the output holds a {leaf.dtype} tensor, which has no gradient; choose a real "
                "floating part with output= (a name, an index or a function)"
            )
        squeezed = batch == 1 and 1 not in leaf.shape
        if not squeezed and (leaf.ndim == 0 or leaf.shape[0] != batch):
            raise ModelError(
                f"an output has shape {tuple(leaf.shape)} for a batch of {batch}: its first axis "
                "must be the examples. A mean over the batch (a loss) has no gradient for each "
                "example; choose another output with output="
            )
    if not leaves:
        raise InputError("the network returns no tensor")
    flat = [leaf.reshape(batch, -1) for leaf in leaves]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)
