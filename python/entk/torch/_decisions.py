"""Branches on data under `vmap`: examples that decide alike are run together.

``if mask.all():`` has one answer for each example. Where all examples of a batch give the same
answer, that is the answer; else the batch falls into those that say yes and those that say no, and
each part is run by itself. What decides by anything else than yes or no is run one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Asks whether nested tensors would be a short cut; with a mode about, the answer is not used.
_SHORT_CUT = getattr(torch, "_nested_tensor_from_mask_left_aligned", None)


class SplitError(Exception):
    """The examples of a batch decide differently.

    Attributes
    ----------
    yes, no : Tensor
        The numbers of those that say so.
    """

    def __init__(self, answers: Tensor) -> None:
        super().__init__("the examples of a batch take different branches")
        self.yes = answers.nonzero()[:, 0]
        self.no = (~answers).nonzero()[:, 0]


class Decisions(TorchFunctionMode):
    """Answer questions of control flow for a whole batch, or split it.

    Attributes
    ----------
    asked : bool
        Whether a question depended on the example.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = False

    def __torch_function__(
        self,
        func: Any,
        kinds: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__bool__ or (func is Tensor.item and args[0].dtype == torch.bool):
            answers = _answers(args[0])
            if answers is not None:
                self.asked = True
                if bool(answers.all()) or not bool(answers.any()):
                    return bool(answers[0])
                raise SplitError(answers)
        if func is _SHORT_CUT:  # `vmap` has no rule for it
            return False
        return func(*args, **(kwargs or {}))


def _answers(question: Tensor) -> Tensor | None:
    """Return the answer of each example, ``(b,)``; None where `vmap` is not the only batching."""
    functorch = getattr(torch._C, "_functorch", None)
    if functorch is None or not hasattr(functorch, "get_unwrapped"):
        return None
    levels = 0
    while functorch.is_functorch_wrapped_tensor(question):
        levels += functorch.is_batchedtensor(question)
        question = functorch.get_unwrapped(question)
    # One number for each example: any other question is an error of the network's own.
    one_each = levels == 1 and question.ndim and max(question.shape) == question.numel()
    return question.reshape(-1) != 0 if one_each else None
