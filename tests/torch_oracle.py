"""What the PyTorch front end is compared with: plain autograd, one example and row at a time."""

import numpy as np
import torch
import torch.utils._pytree as pytree

import entk.torch
from entk import reference


def run(module, x):
    if isinstance(x, dict):
        return module(**x)
    return module(*x) if isinstance(x, tuple) else module(x)


def first_tensor(out):
    """Return the outputs that `factors` takes by default, side by side."""
    if hasattr(out, "to_tuple"):
        out = next(v for v in out.values() if isinstance(v, torch.Tensor))
    return torch.cat([v.reshape(len(v), -1) for v in pytree.tree_leaves(out)], 1)


def outputs_of(module, x, i, output):
    one = pytree.tree_map(lambda t: t[i : i + 1], x)
    return (output or first_tensor)(run(module, one)).reshape(-1)


def gradients(module, x, rows=None, output=None):
    """Return the per-example gradients ``(N, R, P)`` of all parameters, in float64.

    `rows` are cotangents ``(R, O)``; by default all rows of the identity.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = []
    for i in range(len(pytree.tree_leaves(x)[0])):
        out = outputs_of(module, x, i, output)
        own = torch.eye(len(out)) if rows is None else rows
        found.append(torch.stack([gradient(out, parameters, c) for c in own]))
    return torch.stack(found).numpy()


def gradient(out, parameters, row):
    """Return the gradient of ``out . row``, flat and in float64."""
    grads = torch.autograd.grad(
        out, parameters, row.to(out.dtype), retain_graph=True, allow_unused=True
    )
    dense = [
        torch.zeros_like(p) if g is None else g.to_dense()
        for p, g in zip(parameters, grads, strict=True)
    ]
    return torch.cat([g.reshape(-1).double() for g in dense])


def kernel(jacobians):
    """Return the kernel ``(N R, N R)`` of gradients ``(N, R, P)``."""
    flat = jacobians.reshape(-1, jacobians.shape[-1])
    return flat @ flat.T


def difference(a, b):
    """Return the largest difference relative to the largest entry."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def error(module, x, outputs="sum", output=None, **options):
    """Return the kernel's relative error, and the factors."""
    factors = entk.torch.factors(module, x, outputs=outputs, output=output, **options)
    rows = None
    if outputs == "sum":
        count = len(outputs_of(module, x, 0, output))
        rows = torch.ones(1, count, dtype=torch.float64) / count**0.5
    truth = kernel(gradients(module, x, rows, output))
    return difference(reference.assemble(factors), truth), factors


def kinds(factors):
    """Return leaf name -> kind."""
    return {name: leaf.kind for name, leaf in factors.items()}


def in_type(tree, dtype):
    """Return a module or a pytree with its floating tensors in `dtype`."""

    def cast(t):
        module = isinstance(t, torch.nn.Module)
        return t.to(dtype) if module or t.is_floating_point() else t

    return pytree.tree_map(cast, tree)


def engines(factors):
    """Return which engine made the factors."""
    loop = ["one example at a time" in factors.reason(name) for name in factors]
    assert all(loop) or not any(loop)
    return "loop" if all(loop) else "vmap"
