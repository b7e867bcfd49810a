"""What networks of the libraries do that small examples do not, each in its smallest form."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from bounds import assert_extracted  # noqa: E402
from torch_oracle import engines, error, gradients, kinds  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def data(*shape):
    return torch.randn(*(shape or (5, 6)), dtype=torch.float64)


class HalfInside(nn.Module):
    """A float64 network that normalises in float32, as Llama does."""

    def __init__(self):
        super().__init__()
        self.l, self.o = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        h = self.l(x).float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.o(h.softmax(-1).to(x.dtype))


@pytest.mark.parametrize("outputs", ["sum", "full"])
def test_a_part_in_float32_is_no_randomness(outputs):
    with np.errstate(all="raise"):
        relative, factors = error(HalfInside().double(), data(), outputs)
    assert_extracted(relative, "float32")
    assert engines(factors) == "vmap"
    assert kinds(factors)["l.weight"] == "Outer"


class Overflowing(nn.Module):
    """A branch without finite gradient beside one that has it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.a(x) + (self.b * 0).sqrt()


def test_a_leaf_without_finite_gradient_refuses_no_other():
    module, x = Overflowing().double(), data()
    factors = entk.torch.factors(module, x)
    assert not np.isfinite(factors["b"].jac).any()
    assert np.isfinite(factors["a.weight"].acts).all()


class Experts(nn.Module):
    """Tokens sent to experts by number, one of which gets none."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x, chosen):
        flat, which = x.reshape(-1, 6), chosen.reshape(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            mine = torch.where(which == number)[0]
            out.index_add_(0, mine, expert(flat[mine]))
        return F.silu(out).reshape(x.shape).mean(1)


def test_an_expert_without_tokens_is_exact():
    x = data(4, 3, 6), torch.tensor([[0, 2, 2], [0, 0, 0], [2, 2, 0], [2, 0, 2]])
    relative, factors = error(Experts().double(), x)
    assert_extracted(relative)
    assert not np.any(gradients(Experts().double(), x)[:, :, 42:84])
    assert factors.n == 4
