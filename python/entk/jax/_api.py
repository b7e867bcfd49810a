"""The public functions of `entk.jax`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from entk._factors import Factors
from entk.jax import _factors, _operator, _stream
from entk.jax._network import Function
from entk.jax._progress import Report

Progress = bool | Callable[[int, int], None]


def factors(
    f: Function,
    params: Any,
    x: Any,
    *,
    outputs: Any = "sum",
    batch_size: int | None = None,
    memory: int | str | None = None,
    structure: bool = True,
    audit: bool = True,
    progress: Progress = False,
) -> Factors:
    r"""Exact factors of the per-example Jacobian of a JAX function, for every parameter.

    For example n and output row r the gradient of a weight used at positions t is
    ``sum_t acts[n, t] (x) cots[n, r, t]`` (Goodfellow 2015 for T = 1). One forward pass and one
    pull-back per row give all `cots` at once; the gradient of a structured weight is never formed.
    Nothing is approximated: a parameter without such structure is a `Dense` leaf.

    Parameters
    ----------
    f : callable
        ``f(params, x)`` for a batch: every array of `x` has a leading batch axis and so has every
        output, ``(batch, ...)``. Trailing axes and output pytrees are flattened to O outputs in
        `jax.tree.leaves` order. Unmodified Flax, Equinox or Haiku networks, or plain functions.
    params : pytree
        Every floating-point leaf is differentiated; integers, booleans and None are passed
        through. Leave others out by closing over them. An array that occurs twice in the tree is
        two parameters to JAX.
    x : pytree of arrays
        The N examples, on the host or on the device.
    outputs : {"sum", "full"}, int or array, default "sum"
        Output rows: ``"sum"`` is ``(1/sqrt(O)) sum_o f_o`` (R = 1, the pNTK), ``"full"`` all
        outputs (R = O), an integer from 0 to O - 1 that output, weights ``(O,)`` or ``(N, O)`` one
        direction for all examples or for each.
    batch_size : int, optional
        Most examples per batch. Default: by the memory an example takes; on a processor as many
        as its caches hold, or all of a small problem.
    memory : int or str, optional
        Bound in bytes, such as ``"4GiB"``, on factors and batches together. Default: a safe share
        of what the process may still use for the factors; batches of at most 1 GiB.
    structure : bool, default True
        Keep factors where they are smaller or cheaper by count. False: all leaves dense.
    audit : bool, default True
        Compare each leaf's gradient, rebuilt from its factors, with `jax.grad` on up to three
        examples; a leaf that fails becomes dense, with a warning. A compiled function that has
        passed with non-zero gradients is not audited again.
    progress : bool or callable, default False
        True: a bar (tqdm if installed). A callable gets (examples done, all examples).

    Returns
    -------
    Factors
        One leaf per parameter, named ``jax.tree_util.keystr(path, simple=True, separator=".")``;
        ``name[0]``, ``name[1]``, ... for a parameter whose parts are used apart. A bare array is
        called ``params``. ``reason(name)`` says why a leaf has its form.

    Raises
    ------
    ModelError
        If examples depend on each other or on their position in the batch (the outputs of a batch
        are compared with the outputs one by one on a few examples), outputs are no floating-point
        batch, the network has no reverse derivative, or there are no examples.
    DTypeError
        If a parameter is complex.
    InputError
        If arrays of `x` disagree, or an option is none of the allowed.
    MemoryLimitError
        If the factors do not fit.

    Warns
    -----
    ModelWarning
        If a parameter is not used, `f` captures a large array that is not in `params`, or a leaf
        failed the audit.

    Notes
    -----
    **Cost**: per example one forward pass and R pull-backs to the perturbed products, about the
    arithmetic of two forward passes for ``"sum"``; two compilations per function and shape, kept
    while `f` lives. **Memory**: the factors, on the host, plus three batches. Arrays of equal
    numbers are kept once and shared by the leaves; those that are an array of `x` borrow it if it
    cannot be written to. **Precision**: the network's own; matrix
    products are computed at the precision of their operands on every device (no TF32 or bfloat16
    passes). Factors have the dtype of their parameter. A ``custom_vjp`` that is not linear in the
    cotangent has no Jacobian: its sum of outputs is what its rule says of the sum.

    References
    ----------
    .. [1] I. Goodfellow, "Efficient Per-Example Gradient Computations", 2015.
    .. [2] M. Mohamadi, W. Bae, D. Sutherland, "A Fast, Well-Founded Approximation to the Empirical
       Neural Tangent Kernel", 2023.

    Examples
    --------
    >>> import jax.numpy as jnp, entk.jax
    >>> def f(params, x):
    ...     return jnp.tanh(x @ params["w"]) @ params["v"]
    >>> params = {"v": jnp.ones((8, 3)), "w": jnp.ones((4, 8))}
    >>> F = entk.jax.factors(f, params, jnp.ones((5, 4)))
    >>> F.leaves, F.n, F.n_outputs, F["w"].acts.shape, F["w"].cots.shape
    (('v', 'w'), 5, 3, (5, 4), (5, 8))
    """
    found, _ = _factors.take(
        f,
        params,
        x,
        outputs=outputs,
        batch_size=batch_size,
        memory=memory,
        structure=structure,
        audit=audit,
        progress=progress,
    )
    return found


def write_factors(
    path: str | os.PathLike[str],
    f: Function,
    params: Any,
    batches: Iterable[Any],
    *,
    outputs: Any = "sum",
    resume: bool = False,
    overwrite: bool = False,
    batch_size: int | None = None,
    memory: int | str | None = None,
    structure: bool = True,
    audit: bool = True,
    progress: Progress = False,
) -> Factors:
    """Write the factors of many batches to a store, and open it.

    Parameters
    ----------
    path : str or path
        The store, a directory; ``path.partial`` until all batches are safe.
    f, params, outputs, batch_size, memory, structure, audit
        As for `factors`. Weights ``(N, O)`` are for the examples of all batches, in order.
    batches : iterable of pytrees
        Batches of examples; read once, one at a time. The last may be smaller.
    resume : bool, default False
        Continue a store that is there: batches it holds are read but not computed again; a
        complete store is returned as it is; without one, start afresh.
    overwrite : bool, default False
        Replace a store that is there, once the new one is complete.
    progress : bool or callable, default False
        True: a bar. A callable gets (batches done, all batches or those so far).

    Returns
    -------
    Factors
        Backed by the files.

    Raises
    ------
    StoreError
        If `path` exists and neither `resume` nor `overwrite` is given, or it cannot be written.
    StoreMismatchError
        On resume, if the parameters, `outputs`, `structure` or the batches are others.
    ModelError, DTypeError, InputError, MemoryLimitError
        As for `factors`.

    Notes
    -----
    **Memory**: the factors of one batch and what it takes to make them. A batch is safe as soon as
    it is written: a kill loses at most the one in flight. **Cost**: `factors` of each batch.

    Examples
    --------
    >>> import jax.numpy as jnp, entk.jax, os, tempfile
    >>> def f(w, x):
    ...     return jnp.tanh(x @ w)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "factors")
    ...     batches = [jnp.ones((4, 3)), jnp.ones((2, 3))]
    ...     F = entk.jax.write_factors(path, f, jnp.ones((3, 2)), batches)
    ...     F.n, F.leaves
    (6, ('params',))
    """
    options = {"batch_size": batch_size, "memory": memory, "structure": structure, "audit": audit}
    stream = _stream.Stream(f, params, outputs, options)
    batches = _stream.as_batches(batches)
    with Report(progress, _stream.count(batches), "batches") as report:
        return stream.write(path, batches, report, resume=resume, overwrite=overwrite)


def operator(
    f: Function, params: Any, x: Any, *, outputs: Any = "sum", batch_size: int | None = None
) -> _operator.NTKOperator:
    """Products of a network's kernel with vectors, by forward and reverse mode; nothing is stored.

    ``K v = J (J^T v)``: pull-backs summed over batches, then push-forwards batch by batch. A
    network with a `custom_vjp` function is pushed forward by its pull-back, transposed.

    Parameters
    ----------
    f, params, x, outputs, batch_size
        As for `factors`.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator
        Symmetric, ``(N R, N R)``, rows sample-major, of the network's dtype (float32 for half
        precision).

    Raises
    ------
    ModelError, DTypeError, InputError
        As for `factors`.

    Notes
    -----
    **Cost**: about five forward passes over all examples for one vector, less for each of a block.
    **Memory**: two sets of parameters and one batch, for up to 8 vectors at a time while all of it
    stays below 1 GiB. **Precision**: the network's own in every step; products of factors
    (`entk.KernelOperator`) can accumulate more precisely.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np, entk.jax
    >>> op = entk.jax.operator(lambda w, x: x @ w, jnp.ones((3, 4)), jnp.ones((5, 3)))
    >>> op @ np.ones(5)
    array([15., 15., 15., 15., 15.], dtype=float32)
    """
    return _operator.operator(f, params, x, outputs=outputs, batch_size=batch_size)
