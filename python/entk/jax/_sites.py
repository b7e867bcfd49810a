"""Where a parameter meets data in a way that keeps structure: products, convolutions, look-ups.

At such a site the gradient of the parameter is a sum of outer products over positions,

    dL/dW[g] = sum_t acts[g, t] (x) cots[g, t],

with `acts` cut from the other operand and `cots` folded from the cotangent of the site's output.
A rule says how to cut and fold, and which elements of the parameter the table (g, d_in, d_out) is
made of. For a look-up the rows `ids[t]` of the table (rows, d) receive `cots[t]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax

from entk.jax._compat import Array
from entk.jax._index import Index
from entk.jax._views import View, raw


@dataclass(frozen=True)
class Use:
    """One use of a parameter at a site, as its rule sees it.

    Attributes
    ----------
    kind
        `"outer"` or `"lookup"`.
    table
        Positions in the parameter: (loops..., G, d_in, d_out) or (loops..., rows, d).
    record
        `acts` (G, T, d_in) or `ids` (T,), made of the site's operands.
    fold
        Cotangent of the site's output -> (G, T, d_out) or (T, d).
    what
        The operation in words, for reasons.
    copies
        How often `fold` repeats the site's output: for every group where groups share positions.
    """

    kind: Literal["outer", "lookup"]
    table: Index
    record: Callable[[], Array]
    fold: Callable[[Array], Array]
    what: str
    copies: int = 1


def use_at(eqn: Any, operands: Sequence[Any], which: int) -> Use | None:
    """Return the use of the view `operands[which]` at an equation, if a rule knows it."""
    rule = _RULES.get(eqn.primitive.name)
    return None if rule is None else rule(eqn.params, operands, which)


def arranged(array: Array, order: Sequence[int]) -> Array:
    """Transpose; by a reshape where only axes of length 1 move.

    XLA gives a transpose of such axes a layout of its own, and then copies the whole array.
    """
    long = [k for k in order if array.shape[k] != 1]
    if long == sorted(long):
        return array.reshape([array.shape[k] for k in order])
    return array.transpose(order)


def _dot(params: dict[str, Any], operands: Sequence[Any], which: int) -> Use:
    contract, batch = params["dimension_numbers"]
    view: View = operands[which]
    data = raw(operands[1 - which])
    (p_sum, d_sum), (p_batch, d_batch) = (
        (contract[which], contract[1 - which]),
        (batch[which], batch[1 - which]),
    )
    p_free = _others(view.value.ndim, p_sum, p_batch)
    d_free = _others(data.ndim, d_sum, d_batch)
    groups = prod(data.shape[k] for k in d_batch)
    positions = prod(data.shape[k] for k in d_free)

    def record() -> Array:
        moved = arranged(data, (*d_batch, *d_free, *d_sum))
        return _scale(moved.reshape(groups, positions, -1), view)

    # The output's axes are: batch, free axes of the left operand, free axes of the right one.
    n_batch, n_data, n_param = len(d_batch), len(d_free), len(p_free)
    first, last = (n_param, n_data) if which == 0 else (n_data, n_param)
    left = range(n_batch, n_batch + first)
    right = range(n_batch + first, n_batch + first + last)
    order = (*range(n_batch), *((*right, *left) if which == 0 else (*left, *right)))

    def fold(cot: Array) -> Array:
        return arranged(cot, order).reshape(groups, positions, -1)

    shape = view.value.shape
    sizes = [prod(shape[k] for k in axes) for axes in (p_batch, p_sum, p_free)]
    table = _table(view, (*p_batch, *p_sum, *p_free), sizes)
    return Use("outer", table, record, fold, "matrix product")


def _ragged_dot(params: dict[str, Any], operands: Sequence[Any], which: int) -> Use | None:
    """Rows of data, in runs, times a matrix for each run: experts.

    Every matrix has all positions, with zeros in place of the rows that go to another.
    """
    numbers, sizes = params["ragged_dot_dimension_numbers"], raw(operands[2])
    (d_sum, p_sum), (d_batch, _) = numbers.dot_dimension_numbers
    (along,), groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    plain = len(groups) == 1 and not d_batch and along not in d_sum and sizes.ndim == 1
    if which != 1 or not plain or params["group_offset"] is not None:
        return None
    view: View = operands[1]
    data, n_groups = raw(operands[0]), sizes.shape[0]
    d_free, p_free = _others(data.ndim, d_sum), _others(view.value.ndim, groups, p_sum)
    positions = prod(data.shape[k] for k in d_free)

    def record() -> Array:
        moved = arranged(data, (*d_free, *d_sum)).reshape(positions, -1)
        ends = jnp.cumsum(sizes)
        row = lax.broadcasted_iota(ends.dtype, [data.shape[k] for k in d_free], d_free.index(along))
        row = row.reshape(1, positions)
        mine = (row >= (ends - sizes)[:, None]) & (row < ends[:, None])
        return _scale(jnp.where(mine[..., None], moved, 0), view)

    def fold(cot: Array) -> Array:
        flat = cot.reshape(positions, -1)
        return jnp.broadcast_to(flat, (n_groups, *flat.shape))

    shape = view.value.shape
    sides = [prod(shape[k] for k in axes) for axes in (groups, p_sum, p_free)]
    table = _table(view, (*groups, *p_sum, *p_free), sides)
    return Use("outer", table, record, fold, "ragged matrix product", n_groups)


def _conv(params: dict[str, Any], operands: Sequence[Any], which: int) -> Use | None:
    if which != 1 or params["batch_group_count"] != 1:
        return None
    view: View = operands[1]
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    data = _channels_last(raw(operands[0]), numbers.lhs_spec)
    d_all, channels, *window = (view.value.shape[k] for k in numbers.rhs_spec)
    batch, d_out, d_in = data.shape[0], d_all // groups, channels * prod(window)
    # Channels (0) and window axes in the order the kernel stores them: strides describe the table.
    stored = sorted(range(1 + len(window)), key=lambda k: numbers.rhs_spec[1 + k])

    def record() -> Array:
        patches = _patches(data, window, params)  # n, positions, window, channels
        grouped = patches.reshape(batch, -1, *window, groups, channels)
        last = grouped.ndim - 1
        moved = arranged(grouped, (last - 1, 0, 1, *(1 + k if k else last for k in stored)))
        return _scale(moved.reshape(groups, -1, d_in), view)

    def fold(cot: Array) -> Array:
        moved = _channels_last(cot, numbers.out_spec).reshape(batch, -1, groups, d_out)
        return arranged(moved, (2, 0, 1, 3)).reshape(groups, -1, d_out)

    lead = len(view.loops)
    order = (numbers.rhs_spec[0], *(numbers.rhs_spec[1 + k] for k in stored))
    turned = _table(view, order, [groups, d_out, d_in])
    table = turned.transpose((*range(lead + 1), lead + 2, lead + 1))
    return Use("outer", table, record, fold, "convolution")


def _channels_last(array: Array, spec: Sequence[int]) -> Array:
    """Return (n, space..., channels)."""
    return arranged(array, (spec[0], *spec[2:], spec[1]))


def _patches(data: Array, window: Sequence[int], params: dict[str, Any]) -> Array:
    """Cut (n, positions..., window..., channels) out of (n, space..., channels).

    This only moves numbers. `lax.conv_general_dilated_patches` multiplies by ones instead: slower,
    and rounded wherever products are.
    """
    edges = zip(params["padding"], params["lhs_dilation"], strict=True)
    padding = [(low, high, dilation - 1) for (low, high), dilation in edges]
    data = lax.pad(data, jnp.zeros((), data.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    # The last axis first: every further cut then copies longer runs.
    for axis in reversed(range(1, 1 + len(window))):
        size, stride = window[axis - 1], params["window_strides"][axis - 1]
        dilation = params["rhs_dilation"][axis - 1]
        out = (data.shape[axis] - (size - 1) * dilation - 1) // stride + 1
        reach = (out - 1) * stride + 1
        starts = [offset * dilation for offset in range(size)]
        cuts = [lax.slice_in_dim(data, at, at + reach, stride, axis) for at in starts]
        data = jnp.stack(cuts, 1 + len(window))
    return data


def _gather(params: dict[str, Any], operands: Sequence[Any], which: int) -> Use | None:
    """Rows of a table: windows along the indexed axes, everything along the others."""
    view, indices, numbers = operands[0], raw(operands[1]), params["dimension_numbers"]
    sizes, shape = params["slice_sizes"], view.value.shape
    looked = [k for k, (size, side) in enumerate(zip(sizes, shape, strict=True)) if size != side]
    if which != 0 or not looked or view.scale is not None:
        return None
    rest = _others(len(shape), looked)
    clip = params["mode"] == lax.GatherScatterMode.CLIP

    def record() -> Array:
        starts = {k: indices[..., at] for at, k in enumerate(numbers.start_index_map)}
        pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        for k, axis in pairs:  # each place reads of the row of its own
            starts[k] = lax.broadcasted_iota(indices.dtype, indices.shape[:-1], axis)
        return _row_ids(starts, shape, sizes, looked, clip=clip)

    places = _others(len(numbers.offset_dims) + indices.ndim - 1, numbers.offset_dims)
    kept = _others(len(shape), numbers.collapsed_slice_dims, numbers.operand_batching_dims)
    offset_of = dict(zip(kept, numbers.offset_dims, strict=True))
    order = (*places, *(offset_of[k] for k in (*looked, *rest) if k in offset_of))
    width = prod(shape[k] for k in rest)

    def fold(cot: Array) -> Array:
        return arranged(cot, order).reshape(-1, width)

    table = _table(view, (*looked, *rest), [prod(shape[k] for k in looked), width])
    return Use("lookup", table, record, fold, "row look-up")


def _dynamic_slice(params: dict[str, Any], operands: Sequence[Any], which: int) -> Use | None:
    """One window of a table, its start given by data."""
    view, sizes, shape = operands[0], params["slice_sizes"], raw(operands[0]).shape
    looked = [k for k, (size, side) in enumerate(zip(sizes, shape, strict=True)) if size != side]
    if which != 0 or not looked or view.scale is not None:
        return None
    rest = _others(len(shape), looked)
    starts = {k: raw(start) for k, start in enumerate(operands[1:])}
    width = prod(shape[k] for k in rest)

    def record() -> Array:
        return _row_ids(starts, shape, sizes, looked, clip=True)

    def fold(cot: Array) -> Array:
        return arranged(cot, (*looked, *rest)).reshape(-1, width)

    table = _table(view, (*looked, *rest), [prod(shape[k] for k in looked), width])
    return Use("lookup", table, record, fold, "row look-up")


def _row_ids(
    starts: dict[int, Array],
    shape: Sequence[int],
    sizes: Sequence[int],
    looked: Sequence[int],
    *,
    clip: bool,
) -> Array:
    """Return the row of every element of the windows, counted over the axes `looked`.

    A window that does not fit is moved inside (`clip`), or else gets -1: no gradient reaches it.
    """
    inside = jnp.ones((), bool)
    first = {}
    for k, start in starts.items():
        last = shape[k] - sizes[k]
        # Compared before it is narrowed: indices may be unsigned or wide.
        inside &= (start >= 0) & (start <= last)
        first[k] = jnp.clip(start, 0, last).astype(jnp.int32)
    ids = jnp.zeros((), jnp.int32)
    for at, k in enumerate(looked):
        offsets = jnp.arange(sizes[k], dtype=jnp.int32)
        start = first.get(k, jnp.zeros((), jnp.int32))
        ids = ids[..., None] * shape[k] + jnp.expand_dims(start, range(-at - 1, 0)) + offsets
    fits = jnp.expand_dims(inside, range(-len(looked), 0))
    return (ids if clip else jnp.where(fits, ids, -1)).reshape(-1)


def _table(view: View, order: Sequence[int], sizes: Sequence[int]) -> Index:
    lead = len(view.loops)
    moved = view.index.transpose((*range(lead), *(lead + k for k in order)))
    return moved.reshape((*moved.shape[:lead], *sizes))


def _scale(acts: Array, view: View) -> Array:
    return acts if view.scale is None else (acts * view.scale).astype(acts.dtype)


def _others(ndim: int, *taken: Sequence[int]) -> tuple[int, ...]:
    return tuple(k for k in range(ndim) if not any(k in axes for axes in taken))


_RULES: dict[str, Callable[[dict[str, Any], Sequence[Any], int], Use | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "ragged_dot_general": _ragged_dot,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
}
