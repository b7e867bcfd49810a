"""The result on the host, filled batch by batch.

Every array is allocated once, for all examples, by NumPy: it asks the system for huge pages, and
memory that is touched for the first time costs a third of what PyTorch's does. From a GPU a batch
comes through pinned memory, and is waited for only when the next batch has been started.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entk.torch._audit import expanded
from entk.torch._engines import Result, filled
from entk.torch._plan import Part, Plan


class Column:
    """One array of the result for all examples; axis `axis` grows to the most positions met.

    Allocated by the first batch that has values for it: a leaf that no gradient reaches takes no
    memory.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, axis: int | None = None, nothing: int = 0
    ) -> None:
        self._empty = torch.full((), nothing, dtype=dtype, device="cpu").expand(shape)
        self._axis = axis
        self._nothing = nothing
        self._array: Tensor | None = None

    @property
    def array(self) -> Tensor:
        """The values of all examples."""
        return self._empty if self._array is None else self._array

    def adopt(self, values: Tensor) -> bool:
        """Take a batch that is all there is as the array itself, if it is of the right kind."""
        fits = len(values) == len(self._empty) and values.dtype == self._empty.dtype
        if fits and values.device.type == "cpu":
            self._array = values
        return fits and values.device.type == "cpu"

    def put(self, start: int, values: Tensor) -> None:
        """Store the values of a batch that begins at example `start`."""
        array = self._new() if self._array is None else self._array
        if self._axis is not None and values.shape[self._axis] != array.shape[self._axis]:
            most = max(values.shape[self._axis], array.shape[self._axis])
            array = filled(array, self._axis, most, self._nothing)
            values = filled(values, self._axis, most, self._nothing)
        array[start : start + len(values)].copy_(values)
        self._array = array

    def _new(self) -> Tensor:
        """Return an array without values."""
        shape, dtype = self._empty.shape, self._empty.dtype
        if not math.prod(shape):  # NumPy gives no bytes a stride that a view could take
            return self._empty.clone()
        memory = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
        array = torch.from_numpy(memory).view(dtype).reshape(shape)
        return array.fill_(self._nothing) if self._nothing else array


class Columns:
    """The result as it grows: for every part its arrays."""

    def __init__(self, plan: Plan, n: int, rows: int, theirs: Iterable[Tensor]) -> None:
        self.plan = plan
        self._n = n
        self._rows = rows
        dense = (t for t in theirs if t.layout == torch.strided)
        self._theirs = {t.untyped_storage().data_ptr() for t in dense}
        self._waiting: Callable[[], None] | None = None
        self._pinned = False
        self.columns: dict[str, list[Column]] = {}
        for part in plan.parts:
            self.columns[part.name] = _columns(part, n, rows)

    def put(self, start: int, result: Result) -> None:
        """Take over a batch; from a GPU its copy ends during the next one."""
        arrays = {part.name: self._arrays(part, result) for part in self.plan.parts}
        self._pinned = any(_on_gpu(a) for values in arrays.values() for a in values)
        if not self._pinned:
            self._store(start, arrays)
            return
        arrive = _sent(arrays)
        self.settle()
        self._waiting = lambda: self._store(start, arrive())

    def of(self, part: Part) -> list[Tensor]:
        """Return the arrays of a part."""
        return [column.array for column in self.columns[part.name]]

    def settle(self) -> None:
        """Wait for what is on its way."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting()

    def _store(self, start: int, arrays: dict[str, list[Tensor]]) -> None:
        for name, values in arrays.items():
            for column, value in zip(self.columns[name], values, strict=False):
                if len(value) < self._n or not self._is_ours(value) or not column.adopt(value):
                    column.put(start, value)

    def _is_ours(self, values: Tensor) -> bool:
        """Whether `values` are in plain memory that is not the user's, and not much larger."""
        storage = values.untyped_storage()
        small = storage.nbytes() <= 2 * values.numel() * values.element_size()
        plain = values.is_contiguous() and not self._pinned
        ours = small and plain and storage.data_ptr() not in self._theirs
        if ours:
            self._theirs.add(storage.data_ptr())  # and not another leaf's
        return ours

    def _arrays(self, part: Part, result: Result) -> list[Tensor]:
        if part.form == "unused":
            return []
        if part.form == "free":
            jac = result.free.get(part.leaf)
            return [] if jac is None else [jac]
        pairs = result.pairs[part.name]
        if part.form == "expanded":
            return [expanded(part, pairs, (pairs[0][1].shape[0], self._rows))]
        return [array for pair in pairs for array in pair]


def _columns(part: Part, n: int, rows: int) -> list[Column]:
    dtype = part.dtype
    if not part.structured:
        return [Column((n, rows, part.size), dtype)]
    columns = []
    for use in part.uses:
        g, t, d_in, d_out = use.sizes
        if use.kind == "lookup":
            columns.append(Column((n, t), torch.int64, 1, -1))
            columns.append(Column((n, rows, t, d_out), dtype, 2))
        else:
            columns.append(Column((n, g, t, d_in), dtype, 2))
            columns.append(Column((n, rows, g, t, d_out), dtype, 3))
    return columns


def _on_gpu(array: Tensor) -> bool:
    return array.is_cuda


def _sent(arrays: dict[str, list[Tensor]]) -> Callable[[], dict[str, list[Tensor]]]:
    """Start copying from a GPU; the function returned waits and gives the copies."""
    copies = {name: [_pinned(a) for a in values] for name, values in arrays.items()}
    # On the device of the arrays, which need not be the current one; of a module on several, each.
    devices = {a.device for values in arrays.values() for a in values if _on_gpu(a)}
    events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def arrive() -> dict[str, list[Tensor]]:
        for event in events:
            event.synchronize()
        return copies

    return arrive


def _pinned(array: Tensor) -> Tensor:
    copy = torch.empty(array.shape, dtype=array.dtype, device="cpu", pin_memory=True)
    return copy.copy_(array, non_blocking=True)


def as_given(array: Tensor) -> Any:
    """Return an array for a leaf: NumPy where NumPy has the type, else the tensor (bfloat16)."""
    return array if array.dtype == torch.bfloat16 else array.numpy()
