"""Per-example Jacobian factors of any `torch.nn.Module`.

The module is run as it is. See `factors`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from entk._errors import InputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike

    from entk._factors import Factors

__all__ = ["factors", "write_factors"]


def factors(
    module: torch.nn.Module,
    x: Any,
    *,
    outputs: Literal["sum", "full"] | int | ArrayLike = "sum",
    output: str | int | Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    memory: int | str | None = None,
    structure: bool = True,
    audit: bool = True,
    progress: bool | Callable[[int, int], None] = False,
) -> Factors:
    r"""Compute the Jacobian factors of a module for every example of `x`.

    For each example `n` and each cotangent row `c` kept, the gradient
    :math:`\partial (c \cdot f(x_n)) / \partial \theta` of every parameter that is trained, as
    the outer products it is made of where that is smaller or cheaper [1]_. Exact for every
    parameter: what has no structure is kept as a dense Jacobian made by autograd.

    Parameters
    ----------
    module
        Any module in evaluation mode; it is run unmodified.
    x
        A tensor (``module(x)``), a tuple (``module(*x)``) or a dict (``module(**x)``), pytrees of
        tensors inside; every tensor has the examples on its first axis.
    outputs
        Which rows to keep. ``"sum"``: the gradient of ``(1/sqrt(O)) sum_o f_o``, R = 1.
        ``"full"``: all O outputs, R = O. An integer: one output. Weights ``(O,)`` or ``(N, O)``:
        that direction.
    output
        Which part of what the module returns is meant: a name, an index, or a function of it. By
        default all tensors side by side; of a Hugging Face ``ModelOutput`` its first tensor.
    batch_size
        Examples run at once. Chosen from the memory an example takes, by default.
    memory
        Bound, in bytes or as ``"4GiB"``, on what the call adds: the result and a batch on its way.
    structure
        ``False`` makes every leaf dense by autograd: the same numbers, slow and plain.
    audit
        Compare each leaf with autograd's own gradient on a few of the examples.
    progress
        ``True`` for a bar, or a callable ``(done, all)`` in examples, called from this thread.

    Returns
    -------
    Factors
        Leaves in the order of ``named_parameters()``, tied parameters under their first name, in
        the dtype of the parameters (bfloat16 stays bfloat16), on the host. A parameter whose parts
        are used apart is ``name[0]``, ``name[1]``, ... Each leaf says the reason of its kind.

    Raises
    ------
    ModelError
        No gradient for each example exists: examples depend on each other (BatchNorm in training
        mode, centring by the batch), or the output is random (dropout in training mode).
    DTypeError
        Complex or quantised parameters.
    InputError
        Arguments that do not fit each other.
    MemoryLimitError
        A result larger than the limit; the text says how large.

    Warns
    -----
    UserWarning
        A leaf whose factors do not explain autograd's gradient: it is dense instead.

    Notes
    -----
    **How.** The module's own code runs under ``torch.func`` with taps on the operations that use
    the parameters. Where ``torch.func`` cannot go (``.item()``, operations without a batching
    rule) plain autograd does, one example at a time.

    **Cost.** One forward pass and R backward passes, without forming the gradients of the weights.

    **Memory.** The result, one batch, and a copy of the parameters; while auditing, two more.

    **Precision.** That of the parameters. float32 is float32: autocast and TF32 are off during the
    call, and put back after it.

    **State.** Parameters, buffers, ``.grad``, hooks, attributes, training flags and the random
    state are as before, also after an error or Ctrl-C.

    References
    ----------
    .. [1] R. Novak, J. Sohl-Dickstein, S. S. Schoenholz, "Fast Finite Width Neural Tangent
       Kernel", ICML 2022.

    Examples
    --------
    >>> import torch, entk.torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> F = entk.torch.factors(net, torch.ones(4, 5))
    >>> F.n, F.rows, F.n_outputs, F.leaves
    (4, 1, 3, ('0.weight', '0.bias', '2.weight', '2.bias'))
    >>> F["0.weight"]
    Outer(activations 4x5 float32, output gradients 4x8 float32)
    """
    from entk.torch import _batches, _factors, _guard
    from entk.torch._network import Inputs

    root = _checked(module)
    inputs = Inputs(x)
    inputs.check_values()
    _batches.checked(batch_size, memory)
    with (
        _guard.preserved(root, _factors.device_of(root, inputs)),
        _batches.reporter(progress, inputs.n) as report,
    ):
        extraction = _factors.Extraction(root, inputs, output, structure=structure)
        extraction.prepare(outputs)
        extraction.settle(batch_size, memory, check=audit)
        columns = extraction.run(extraction.size(batch_size, memory), report)
    return _factors.build(extraction, columns)


def write_factors(
    path: str | os.PathLike[str],
    module: torch.nn.Module,
    batches: Iterable[Any],
    *,
    outputs: Literal["sum", "full"] | int | ArrayLike = "sum",
    output: str | int | Callable[[Any], Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    batch_size: int | None = None,
    memory: int | str | None = None,
    structure: bool = True,
    audit: bool = True,
    progress: bool | Callable[[int, int], None] = False,
) -> Factors:
    """Write the factors of a module to a store on disk, batch by batch.

    Parameters
    ----------
    path
        The store; called ``path.partial`` until the last batch is safe.
    module, outputs, output, structure, audit
        As for `factors`. Weights of each example are ``(N, O)`` for all batches together.
    batches
        An iterable of inputs as `factors` takes them; a list, as a `DataLoader` makes it of a
        `TensorDataset`, is taken as a tuple. Each is stored as one batch.
    resume
        Continue a store that is there: its batches are taken from `batches` again, but not
        computed. Starts afresh where nothing is there.
    overwrite
        Replace what is there.
    batch_size, memory
        Bounds on what runs at once, within a batch.
    progress
        ``True`` for a bar, or a callable ``(done, all)`` in batches; `all` is the number begun so
        far where ``len(batches)`` is not known.

    Returns
    -------
    Factors
        The store, opened; nothing of it is in memory.

    Raises
    ------
    StoreError
        Something is at `path` and neither option is given.
    StoreMismatchError
        On resume: other parameters or outputs than those of the store.
    InputError
        No batch, or a batch whose leaves differ from the first one's, such as another number of
        positions: a store has one shape for each leaf.
    ModelError, DTypeError, MemoryLimitError
        As for `factors`.

    Notes
    -----
    **Memory.** One batch and its factors. **Safety.** A batch is on disk before the next begins;
    a kill at any time loses at most the batch in flight.

    Examples
    --------
    >>> import tempfile, torch, entk.torch
    >>> net = torch.nn.Linear(5, 3)
    >>> x = torch.ones(6, 5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     F = entk.torch.write_factors(folder + "/F.entk", net, x.split(2))
    ...     F.n, F.leaves
    (6, ('weight', 'bias'))
    """
    from entk.torch import _batches, _stream

    root = _checked(module)
    _batches.checked(batch_size, memory)
    stream = _stream.Stream(root, outputs, output, batch_size, memory, structure, audit)
    with _batches.reporter(progress, _stream.count(batches)) as report:
        return stream.write(path, batches, report, resume=resume, overwrite=overwrite)


def _checked(module: Any) -> torch.nn.Module:
    import torch

    from entk.torch._factors import unwrapped
    from entk.torch._network import check_values

    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"module is a {type(module).__name__}; expected a torch.nn.Module (wrap a function in "
            "a module that holds its parameters)"
        )
    root = unwrapped(module)
    check_values(root)
    return root
