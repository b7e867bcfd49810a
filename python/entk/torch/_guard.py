"""What a call leaves as it was: state of the modules, random state, precision."""

from __future__ import annotations

import random
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from operator import attrgetter
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint as checkpointing
from torch import nn

from entk._interrupts import certainly, undisturbed

_SWITCHES = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


@contextmanager
def preserved(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a block in full precision, and put back after it what the network can change."""
    stack, earlier = ExitStack(), sys.exc_info()[1]
    try:
        with undisturbed():
            _enter_all(stack, module, device)
        yield
    except BaseException as error:
        chain = _chain(error, earlier)
        if any(isinstance(one, KeyboardInterrupt) for one in chain):
            with undisturbed():
                _let_go(chain)
            if isinstance(error, Exception):  # PyTorch found its stacks half changed
                raise KeyboardInterrupt from error
        raise
    finally:
        certainly(stack.close)


def _enter_all(stack: ExitStack, module: nn.Module, device: torch.device) -> None:
    for context in (
        _random_state(module, device),
        _module_state(module),
        _full_precision(),
        _plain_checkpoints(),
        torch.autocast(device.type, enabled=False),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        _uncompiled(),
        warnings.catch_warnings(),
        _stacks(),
        _saved_tensors(),
    ):
        stack.enter_context(context)
    warnings.filterwarnings("ignore", message="There is a performance drop because")


def _chain(error: BaseException, earlier: BaseException | None) -> list[BaseException]:
    """Return an error and those that were being handled when it came, but none of `earlier`.

    That is what the caller was handling already: it may be a Ctrl-C, and is not ours.
    """
    chain: list[BaseException] = []
    now: BaseException | None = error
    while now is not None and now is not earlier and now not in chain:
        chain.append(now)
        now = now.__context__
    return chain


def _let_go(chain: Sequence[BaseException]) -> None:
    """Drop what the frames of errors hold.

    Among it may be a context that was entered and never left, as a Ctrl-C came in between. It puts
    back what it changed when it is dropped, which must not be after everything else was put back.
    """
    for error in chain:
        traceback.clear_frames(error.__traceback__)


@contextmanager
def _stacks() -> Iterator[None]:
    """Put PyTorch's stacks of modes and of transforms back as they were before a Ctrl-C.

    One that comes while ``with`` is entered finds a mode that is on and not yet to be taken off,
    and one that comes where a mode is taken off for a while finds it gone.
    """
    core, transforms = torch._C, torch._C._functorch
    modes, layers = _modes(), transforms.get_dynamic_layer_stack_depth()
    try:
        yield
    finally:
        while (now := _modes()) != modes[: len(now)]:
            core._pop_torch_function_stack()
        for mode in modes[len(now) :]:
            core._push_on_torch_function_stack(mode)
        transforms.pop_dynamic_layer_stack_and_undo_to_depth(layers)


def _modes() -> list[Any]:
    core = torch._C
    return [core._get_function_stack_at(k) for k in range(core._len_torch_function_stack())]


@contextmanager
def _saved_tensors() -> Iterator[None]:
    """Take off hooks on what autograd saves that a Ctrl-C left on, and allow them as before.

    `torch.func` forbids them while it differentiates, and asks that there are none.
    """
    core = torch._C._autograd
    ignore_tracing = True
    top = core._top_saved_tensors_default_hooks(ignore_tracing)
    forbidden = core._saved_tensors_hooks_get_disabled_error_message()
    try:
        yield
    finally:
        while core._top_saved_tensors_default_hooks(ignore_tracing) != top:
            core._pop_saved_tensors_default_hooks()
        if forbidden is None:
            core._saved_tensors_hooks_enable()
        else:
            core._saved_tensors_hooks_disable(forbidden)


def _uncompiled() -> AbstractContextManager[object]:
    """Run what `torch.compile` made as it was written; without dynamo nothing was made."""
    if "torch._dynamo" in sys.modules:
        eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return eager
    return nullcontext()


@contextmanager
def _random_state(module: nn.Module, device: torch.device) -> Iterator[None]:
    all_devices = {device, *(p.device for p in module.parameters())}
    devices = [d for d in all_devices if d.type == "cuda"]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _module_state(module: nn.Module) -> Iterator[None]:
    """Restore what the modules hold: attributes, hooks, flags, parameters and buffers."""
    contents = Contents(module)
    buffers = [(b, b._version, b.detach().clone()) for b in module.buffers()]
    grads = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    try:
        yield
    finally:
        contents.restore()
        with torch.no_grad():
            for b, version, values in buffers:
                if b._version != version:
                    b.copy_(values)
        for p, grad, requires_grad in grads:
            p.grad = grad
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)


class Contents:
    """The attributes of all modules, and what stands in the dicts, lists and sets among them."""

    def __init__(self, module: nn.Module) -> None:
        plain = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self._stores = [(m.__dict__, dict(m.__dict__)) for m in plain]
        held = [value for _, attributes in self._stores for value in attributes.values()]
        self._stores += [(value, dict(value)) for value in held if isinstance(value, dict)]
        self._sequences = [(v, list(v)) for v in held if isinstance(v, list)]
        self._sets = [(v, set(v)) for v in held if isinstance(v, set)]

    def restore(self) -> None:
        """Put everything back."""
        for store, content in self._stores:
            _restore(store, content)
        for sequence, items in self._sequences:
            if len(sequence) != len(items) or any(
                a is not b for a, b in zip(sequence, items, strict=True)
            ):
                sequence[:] = items
        for some, members in self._sets:
            if some != members:
                some.clear()
                some.update(members)


def forget(module: nn.Module) -> None:
    """Take out of the modules' dicts what was computed from the parameters and kept.

    Some networks keep such tensors from call to call (LevIT its attention biases); what was kept
    of another call would hide the parameters from this one.
    """
    for m in module.modules():
        kept = (v for k, v in m.__dict__.items() if isinstance(v, dict) and k != "_buffers")
        for store in kept:
            for key in [k for k, v in store.items() if getattr(v, "grad_fn", None) is not None]:
                del store[key]


def _restore(store: dict[Any, Any], content: Mapping[Any, Any]) -> None:
    """Give `store` its content back; a second Ctrl-C in between finds nothing missing."""
    store.update(content)
    for name in [name for name in store if name not in content]:
        del store[name]
    if list(store) != list(content):  # an entry was taken out and put back
        store.clear()
        store.update(content)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Let float32 mean float32: no TF32, no bfloat16 passes."""
    switches = [attrgetter(name)(torch.backends) for name in _SWITCHES]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = "none"  # what was inherited goes on to follow its parent
            if switch.fp32_precision != value:
                switch.fp32_precision = value


@contextmanager
def _plain_checkpoints() -> Iterator[None]:
    """Run checkpointed code as it stands: checkpoints save memory and change no derivative."""
    generators = [n for n in dir(checkpointing) if n.startswith("_checkpoint_without_reentrant")]
    before = {name: getattr(checkpointing, name) for name in generators}
    function = checkpointing.CheckpointFunction
    try:
        for name in generators:
            setattr(checkpointing, name, _no_checkpoint)
        function.apply = staticmethod(lambda run, _, *args: run(*args))
        yield
    finally:
        for name, value in before.items():
            setattr(checkpointing, name, value)
        del function.apply


def _no_checkpoint(*_: Any, **__: Any) -> Iterator[None]:
    yield
