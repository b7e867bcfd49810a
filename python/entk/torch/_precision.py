"""How precise a network is: the least precise floating type that takes part in its outputs.

Networks compute parts in other types than their parameters': a float64 Llama normalises in
float32. What such a network gives is uncertain by the rounding of that type, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from entk.torch._network import Network

Types = frozenset[torch.dtype]


def of_parameters(network: Network) -> Types:
    """Return the types of a network's parameters."""
    return frozenset(p.dtype for p in network.module.parameters())


def of_everything(network: Network, example: Sequence[Tensor]) -> Types:
    """Return the floating types of all that is computed for one example."""
    seen = _Seen()

    def work() -> None:
        with seen:
            network.single(example)

    network.substituted(network.parameters, work)
    return of_parameters(network) | seen.types


def least(allowed: Mapping[torch.dtype, float], types: Iterable[torch.dtype]) -> float:
    """Return what is allowed in the least precise of the types."""
    return max((allowed.get(dtype, 0.0) for dtype in types), default=0.0)


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the floating types of what every operation gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.types: Types = frozenset()

    def __torch_dispatch__(
        self, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.types |= {
            t.dtype
            for t in pytree.tree_leaves(out)
            if isinstance(t, Tensor) and t.is_floating_point()
        }
        return out
