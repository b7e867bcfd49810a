"""Convolutions as products of matrices: patches of the input against the kernel.

Patches are cut by `Tensor.unfold`, which copies entries and rounds nothing; every size, stride,
padding, dilation and number of groups goes the same way. Groups of channels are blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from entk.torch._sites import IsTagged, Rule, Use, bind, one_tagged


def convolution(axes: int) -> Rule:
    """Return the rule of ``torch.conv1d``, ``2d`` or ``3d``."""

    def rule(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
        call = bind("input weight bias stride padding dilation groups", args, kwargs)
        x, weight, groups = call["input"], call["weight"], call.get("groups", 1)
        if not one_tagged(tagged, x, weight):
            return None
        size, d_out = weight.shape[2:], weight.shape[0] // groups
        d_in = weight.shape[1] * math.prod(size)
        dilation = _tuple(call.get("dilation", 1), axes)
        padding = _padding(call.get("padding", 0), size, dilation)
        x = _batched(x.detach(), axes)
        cut = _patches(x, size, _tuple(call.get("stride", 1), axes), padding, dilation)
        return Use(
            weight,
            _by_group(cut, groups, d_in),
            lambda d: _channels_last(_batched(d, axes), groups),
            lambda w: w.reshape(groups, d_out, d_in).mT,
        )

    return rule


def transposed_convolution(axes: int) -> Rule:
    """Return the rule of ``torch.conv_transpose1d``, ``2d`` or ``3d``.

    It is the convolution's adjoint, so the patches are those of the cotangent:
    ``dW = sum_p x[p] (x) patch_p(dy)``.
    """

    def rule(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
        names = "input weight bias stride padding output_padding groups dilation"
        call = bind(names, args, kwargs)
        x, weight, groups = call["input"], call["weight"], call.get("groups", 1)
        if not one_tagged(tagged, x, weight):
            return None
        size, d_in = weight.shape[2:], weight.shape[0] // groups
        d_out = weight.shape[1] * math.prod(size)
        stride, dilation = (
            _tuple(call.get("stride", 1), axes),
            _tuple(call.get("dilation", 1), axes),
        )
        padding = _padding(call.get("padding", 0), size, dilation)
        x = _batched(x.detach(), axes)
        places = x.shape[2:]

        def cots(d: Tensor) -> Tensor:
            cut = _patches(_batched(d, axes), size, stride, padding, dilation)
            for axis, n in enumerate(places):  # an output padding can make room for more patches
                cut = cut.narrow(2 + axis, 0, n)
            return _by_group(cut, groups, d_out)

        return Use(
            weight, _channels_last(x, groups), cots, lambda w: w.reshape(groups, d_in, d_out)
        )

    return rule


def _tuple(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _padding(
    padding: str | int | Sequence[int], size: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """Return what is added before and after each axis; ``"same"`` adds an odd rest after it."""
    if padding == "valid":
        return [(0, 0)] * len(size)
    if padding == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
        return [(n // 2, n - n // 2) for n in whole]
    assert not isinstance(padding, str)
    return [(p, p) for p in _tuple(padding, len(size))]


def _batched(x: Tensor, axes: int) -> Tensor:
    return x if x.ndim == axes + 2 else x[None]


def _patches(
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Tensor:
    """Cut ``(n, C, *S)`` into ``(n, C, *places, *size)``."""
    pads = [p for pair in reversed(padding) for p in pair]
    x = F.pad(x, pads) if any(pads) else x
    for axis, (k, step, gap) in enumerate(zip(size, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, gap * (k - 1) + 1, step)[..., ::gap]
    return x


def _by_group(cut: Tensor, groups: int, d: int) -> Tensor:
    """Turn ``(n, C, *places, *size)`` into ``(groups, n * places, C / groups * size)``.

    Copied with the places innermost, where the input is contiguous, and turned as a view.
    """
    n, channels = cut.shape[:2]
    axes = (cut.ndim - 2) // 2
    cut = cut.reshape(n, groups, channels // groups, *cut.shape[2:])
    places, size = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    return cut.permute(1, 2, *size, 0, *places).reshape(groups, d, -1).mT


def _channels_last(y: Tensor, groups: int) -> Tensor:
    """Turn ``(n, C, *places)`` into ``(groups, n * places, C / groups)``."""
    n, channels = y.shape[:2]
    y = y.reshape(n, groups, channels // groups, -1).permute(1, 0, 3, 2)
    return y.reshape(groups, -1, channels // groups)


CONVOLUTION_RULES: dict[Any, Rule] = {
    torch.conv1d: convolution(1),
    torch.conv2d: convolution(2),
    torch.conv3d: convolution(3),
    torch.conv_transpose1d: transposed_convolution(1),
    torch.conv_transpose2d: transposed_convolution(2),
    torch.conv_transpose3d: transposed_convolution(3),
}
