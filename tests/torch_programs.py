"""Networks for the PyTorch front end with derivative rules, branches or transforms of their own."""

import torch
from torch import nn


class StraightThrough(torch.autograd.Function):
    """A step whose backward is the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.sign(x) + 0.1 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g


class FalseProduct(torch.autograd.Function):
    """A product of matrices that claims twice the gradient of its weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x @ w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w.mT, 2 * x.mT @ g


class Custom(nn.Module):
    """Parameters inside custom functions; `both` is also used in the open."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 6)
        self.hidden = nn.Parameter(torch.randn(6, 6) / 2)
        self.both = nn.Parameter(torch.randn(6, 6) / 2)

    def forward(self, x):
        x = StraightThrough.apply(self.l(x)) + FalseProduct.apply(x, self.hidden)
        return FalseProduct.apply(torch.tanh(x @ self.both), self.both)


def alone(forward):
    """Return a forward that hands its examples to `forward` one by one."""

    def one_by_one(self, x):
        return torch.cat([forward(self, example[None]) for example in x])

    return one_by_one


class Branching(nn.Module):
    """A branch on the data, each with its own layer."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.o = nn.Linear(6, 2)

    @alone
    def forward(self, x):
        return self.o(self.a(x).tanh() if bool(x.sum() > 0) else self.b(self.b(x)))


class Ensemble(nn.Module):
    """Members run by the network's own `vmap`."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 6, 2))
        self.shared = nn.Linear(6, 6)

    def forward(self, x):
        return torch.func.vmap(lambda w: self.shared(x).tanh() @ w)(self.w).mean(0)


class Score(nn.Module):
    """A network whose output is a gradient by the network's own `grad`."""

    def __init__(self):
        super().__init__()
        self.l = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.o = nn.Linear(6, 2)

    def forward(self, x):
        return self.o(torch.func.vmap(torch.func.grad(lambda z: self.l(z[None]).sum()))(x))


class Deciding(nn.Module):
    """A branch on the data that uses the same layers either way."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.o = nn.Linear(6, 2)

    @alone
    def forward(self, x):
        h = self.a(x)
        if x[0, 0] > 0:
            h = torch.tanh(h)
        if (x[0, 1] > 0).item():
            return self.o(h)
        return self.o(h * x)


class OtherHalf(nn.Module):
    """A branch on the data to parts of one weight of the same shape."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, 6))

    @alone
    def forward(self, x):
        return x @ (self.w[:6] if x[0, 0] > 0 else self.w[6:])


class ItemScaled(nn.Module):
    """A number that leaves the graph by ``.item()``."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.o = nn.Linear(6, 2)

    @alone
    def forward(self, x):
        return self.o(self.a(x).tanh() * x.abs().max().item())
