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


def gradients(module, x, rows, output=lambda out: out):
    """Return the per-example gradients ``(N, R, P)`` of all parameters, in float64.

    `rows` are cotangents ``(R, O)``, or ``None`` for the identity.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = []
    for i in range(pytree.tree_leaves(x)[0].shape[0]):
        one = pytree.tree_map(lambda t, i=i: t[i : i + 1], x)
        out = output(run(module, one)).reshape(-1)
        own = torch.eye(len(out)) if rows is None else rows
        found.append(torch.stack([_gradient(out, parameters, c) for c in own]))
    return torch.stack(found).numpy()


def _gradient(out, parameters, row):
    grads = torch.autograd.grad(
        out, parameters, row.to(out.dtype), retain_graph=True, allow_unused=True
    )
    dense = [
        torch.zeros_like(p) if g is None else g.to_dense()
        for p, g in zip(parameters, grads, strict=True)
    ]
    return torch.cat([g.reshape(-1).double() for g in dense])


def n_outputs(module, x, output=lambda out: out):
    one = pytree.tree_map(lambda t: t[:1], x)
    return output(run(module, one)).numel()


def kernel(jacobians):
    """Return the kernel ``(N R, N R)`` of gradients ``(N, R, P)``."""
    flat = jacobians.reshape(-1, jacobians.shape[-1])
    return flat @ flat.T


def error(module, x, outputs="full", output=None, **options):
    """Return the kernel's largest error, relative to its largest entry, and the factors."""
    factors = entk.torch.factors(module, x, outputs=outputs, output=output, **options)
    chosen = output or (lambda out: out)
    count = n_outputs(module, x, chosen)
    rows = None if outputs == "full" else torch.ones(1, count, dtype=torch.float64) / count**0.5
    truth = kernel(gradients(module, x, rows, chosen))
    mine = reference.assemble(factors)
    return float(np.abs(mine - truth).max() / np.abs(truth).max()), factors


def kinds(factors):
    """Return leaf name -> kind."""
    return {name: leaf.kind for name, leaf in factors.items()}
