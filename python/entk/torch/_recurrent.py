"""Recurrent layers spelled out, so that their weights are seen in matrix products.

`nn.LSTM` and its kin are single calls into compiled code. Here are the same equations (those of
the PyTorch documentation) as loops over time of `F.linear`; run inside the taps they give every
weight one position for each step. A call that does not fit is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, "Weights"], State]


@dataclass(frozen=True)
class Weights:
    """The parameters of one layer in one direction."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    projection: Tensor | None = None


def _lstm_step(gates: Tensor, state: State, w: Weights) -> State:
    h, c = state
    i, f, g, o = (gates + F.linear(h, w.hh, w.bias_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w.projection is None else F.linear(h, w.projection), c)


def _gru_step(gates: Tensor, state: State, w: Weights) -> State:
    (h,) = state
    x_r, x_z, x_n = gates.chunk(3, -1)
    h_r, h_z, h_n = F.linear(h, w.hh, w.bias_hh).chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return ((1 - z) * new + z * h,)


def _tanh_step(gates: Tensor, state: State, w: Weights) -> State:
    return (torch.tanh(gates + F.linear(state[0], w.hh, w.bias_hh)),)


def _relu_step(gates: Tensor, state: State, w: Weights) -> State:
    return (torch.relu(gates + F.linear(state[0], w.hh, w.bias_hh)),)


@dataclass(frozen=True)
class _Layers:
    """A call of ``torch.lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``."""

    x: Tensor
    hidden: State
    parameters: Sequence[Tensor]
    biases: bool
    layers: int
    bidirectional: bool
    batch_first: bool

    def weights(self) -> Iterator[Weights]:
        """Yield the weights layer by layer, each forward and backward."""
        sets = self.layers * (1 + self.bidirectional)
        each = len(self.parameters) // sets
        for k in range(sets):
            ih, hh, *rest = self.parameters[k * each : (k + 1) * each]
            bias_ih, bias_hh = rest[:2] if self.biases else (None, None)
            projection = rest[-1] if len(rest) == 2 * self.biases + 1 else None
            yield Weights(ih, hh, bias_ih, bias_hh, projection)

    def run(self, cell: Cell) -> tuple[Tensor, ...]:
        """Return the output and the last states."""
        x = self.x.transpose(0, 1) if self.batch_first else self.x
        directions = 1 + self.bidirectional
        last: list[State] = []
        outputs: list[Tensor] = []
        for k, w in enumerate(self.weights()):
            start = tuple(s[k] for s in self.hidden)
            backward = k % directions == 1
            out, state = _scan(cell, x.flip(0) if backward else x, start, w)
            outputs.append(out.flip(0) if backward else out)
            last.append(state)
            if len(outputs) == directions:
                x, outputs = torch.cat(outputs, -1), []
        states = (torch.stack(s) for s in zip(*last, strict=True))
        return (x.transpose(0, 1) if self.batch_first else x, *states)


def _scan(cell: Cell, x: Tensor, state: State, w: Weights) -> tuple[Tensor, State]:
    out = []
    for gates in F.linear(x, w.ih, w.bias_ih).unbind(0):
        state = cell(gates, state, w)
        out.append(state[0])
    return torch.stack(out), state


def _layered(cell: Cell) -> Callable[..., Any]:
    def spelled(*args: Any) -> Any:
        if isinstance(args[3], bool):
            x, hidden, parameters, biases, layers, dropout, train, bidirectional, first = args
            packed = False
        else:
            x, sizes, hidden, parameters, biases, layers, dropout, train, bidirectional = args
            packed, first = True, False
            if bool((sizes != 1).any()):
                return None
            x = x[:, None]
        if train and dropout:
            return None
        hidden = (hidden,) if isinstance(hidden, Tensor) else tuple(hidden)
        call = _Layers(x, hidden, parameters, biases, layers, bidirectional, first)
        out, *states = call.run(cell)
        return (out[:, 0] if packed else out, *states)

    return spelled


def _single(cell: Cell) -> Callable[..., Any]:
    def spelled(
        x: Tensor,
        hidden: Any,
        ih: Tensor,
        hh: Tensor,
        bias_ih: Tensor | None = None,
        bias_hh: Tensor | None = None,
    ) -> Any:
        state = (hidden,) if isinstance(hidden, Tensor) else tuple(hidden)
        w = Weights(ih, hh, bias_ih, bias_hh)
        state = cell(F.linear(x, w.ih, w.bias_ih), state, w)
        return state if len(state) > 1 else state[0]

    return spelled


SPELLED: dict[Any, Callable[..., Any]] = {
    torch.lstm: _layered(_lstm_step),
    torch.gru: _layered(_gru_step),
    torch.rnn_tanh: _layered(_tanh_step),
    torch.rnn_relu: _layered(_relu_step),
    torch.lstm_cell: _single(_lstm_step),
    torch.gru_cell: _single(_gru_step),
    torch.rnn_tanh_cell: _single(_tanh_step),
    torch.rnn_relu_cell: _single(_relu_step),
}
