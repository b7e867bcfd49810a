"""Look-ups of rows: embeddings, integer indexing, and bags of embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from entk.torch._sites import IsTagged, Rule, Use, bind, one_tagged

_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


def embedding(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
    """``torch.embedding``: rows by id; the padding row has no gradient."""
    names = "weight indices padding_idx scale_grad_by_freq sparse"
    call = bind(names, args, kwargs)
    if not one_tagged(tagged, call["indices"], call["weight"]) or call.get("scale_grad_by_freq"):
        return None
    ids, padding = call["indices"], call.get("padding_idx", -1)
    return _rows(call["weight"], torch.where(ids == padding, -1, ids) if padding >= 0 else ids)


def getitem(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
    """``W[ids]`` with a tensor of integers."""
    weight, ids = args
    if not one_tagged(tagged, ids, weight) or ids.dtype not in _INTEGERS - {torch.uint8}:
        return None
    return _rows(weight, torch.where(ids < 0, ids + weight.shape[0], ids))


def index_select(tagged: IsTagged, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
    """``torch.index_select(W, 0, ids)``."""
    call = bind("input dim index", args, kwargs)
    if not one_tagged(tagged, call["index"], call["input"]) or call["dim"] not in (
        0,
        -call["input"].ndim,
    ):
        return None
    return _rows(call["input"], call["index"])


def _rows(weight: Tensor, ids: Tensor) -> Use:
    v, d = weight.shape[0], math.prod(weight.shape[1:])
    return Use(
        weight,
        ids.detach().reshape(-1),
        lambda c: c.reshape(-1, d),
        lambda w: w.reshape(v, d),
        kind="lookup",
    )


def embedding_bag(*args: Any, **kwargs: Any) -> Tensor | None:
    """Compute `F.embedding_bag` on bags of one length by `F.embedding`, else return None."""
    names = (
        "input weight offsets max_norm norm_type scale_grad_by_freq mode sparse "
        "per_sample_weights include_last_offset padding_idx"
    )
    call = {"mode": "mean", **bind(names, args, kwargs)}
    ids, weight, padding = call["input"], call["weight"], call.get("padding_idx")
    refused = call.get("max_norm") is not None or call.get("scale_grad_by_freq")
    if refused or ids.ndim != 2 or ids.is_nested or call["mode"] not in ("sum", "mean"):
        return None
    rows = F.embedding(ids, weight, padding)
    counted = torch.ones_like(ids) if padding is None else ids != padding % weight.shape[0]
    rows = rows * counted[..., None].to(rows.dtype)
    if call.get("per_sample_weights") is not None:
        rows = rows * call["per_sample_weights"][..., None]
    total = rows.sum(1)
    if call["mode"] == "sum":
        return total
    return total / counted.sum(1, keepdim=True).clamp(min=1).to(total.dtype)


LOOKUP_RULES: dict[Any, Rule] = {
    torch.embedding: embedding,
    Tensor.__getitem__: getitem,
    torch.index_select: index_select,
    Tensor.index_select: index_select,
}
