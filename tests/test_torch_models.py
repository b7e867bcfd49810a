"""What networks of the libraries do that small examples do not, each in its smallest form."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from bounds import assert_extracted  # noqa: E402
from torch_oracle import engines, error, gradients, kinds  # noqa: E402


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


class Standardised(nn.Module):
    """A kernel standardised by `F.batch_norm` in training mode, as in BiT and NFNets."""

    def __init__(self):
        super().__init__()
        self.w, self.o = nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Linear(4, 3)

    def forward(self, x):
        flat = self.w.reshape(1, 4, -1)
        w = F.batch_norm(flat, None, None, training=True).reshape_as(self.w)
        return self.o(torch.tanh(F.conv2d(x, w)).mean((2, 3)))


@pytest.mark.parametrize("n", [1, 4])
def test_standardised_weights_are_no_batch(n):
    relative, factors = error(Standardised().double(), data(n, 2, 6, 6), "full")
    assert_extracted(relative)
    assert engines(factors) == "vmap"


class Keeping(nn.Module):
    """A bias looked up once and kept in a dict, as LevIT does in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.l, self.biases, self.kept = nn.Linear(6, 4), nn.Parameter(torch.randn(3)), {}
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        if "cpu" not in self.kept:
            self.kept["cpu"] = self.biases[torch.tensor([0, 2, 1, 0])]
        return torch.tanh(self.l(x) + self.kept["cpu"])


@pytest.mark.parametrize("used", [False, True])
def test_what_a_network_keeps_hides_no_parameter(used):
    module, x = Keeping().double(), data()
    if used:
        module(x)
    kept, seen = dict(module.kept), list(module.seen)
    factors = entk.torch.factors(module, x, outputs="full")
    assert module.kept == kept
    assert module.seen == seen
    module.kept.clear()
    relative, _ = error(module, x, "full")
    assert_extracted(relative)
    assert np.any(factors["biases"].jac)
    assert engines(factors) == "vmap"


class Adapting(nn.Module):
    """A step of gradient descent inside the network, as in MAML."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 1, bias=False)

    def forward(self, x):
        w = self.l.weight
        learned = []
        for task in x:
            loss = (task[:2] @ w.T).square().mean()
            (step,) = torch.autograd.grad(loss, w, create_graph=True)
            learned.append((task[2:] @ (w - 0.1 * step).T)[:, 0])
        return torch.stack(learned)


def test_a_network_that_differentiates_itself_is_exact():
    relative, _ = error(Adapting().double(), data(4, 5, 6), "full")
    assert_extracted(relative)


class Sparse(nn.Module):
    """A sparse buffer, such as the edges of a graph."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 4)
        self.register_buffer("edges", torch.eye(5, dtype=torch.float64).roll(1, 0).to_sparse())

    def forward(self, x):
        return torch.stack([torch.tanh(torch.sparse.mm(self.edges, self.l(e))).mean(0) for e in x])


def test_a_sparse_buffer_is_left_alone(tmp_path):
    module, x = Sparse().double(), data(3, 5, 6)
    relative, factors = error(module, x, "full")
    assert_extracted(relative)
    stored = entk.torch.write_factors(tmp_path / "F.entk", module, x.split(2), outputs="full")
    assert np.array_equal(stored["l.weight"].cots, factors["l.weight"].cots)


class Elsewhere(nn.Module):
    """Something that `torch.func` computes otherwise than autograd does."""

    def __init__(self):
        super().__init__()
        self.l, self.o = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        inside = torch._C._functorch.maybe_current_level() is not None
        return self.o(torch.tanh(self.l(x)) * (2.0 if inside else 1.0))


def test_an_engine_that_is_wrong_costs_no_leaf_its_structure():
    relative, factors = error(Elsewhere().double(), data(), "full")
    assert_extracted(relative)
    assert engines(factors) == "loop"
    assert kinds(factors)["l.weight"] == kinds(factors)["o.weight"] == "Outer"


class Late(nn.Module):
    """Asks for a number, which `torch.func` cannot give, where an example is special."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 3)

    def forward(self, x):
        y = self.l(x)
        if (x[:, 0] > 100).any():
            y = y * float(x[0, 1].abs() + 1.0)
        return y


def test_what_only_a_later_example_asks_changes_the_engine():
    x = data(9, 6)
    x[5, 0] = 200.0
    relative, factors = error(Late().double(), x, batch_size=3)
    assert_extracted(relative)
    assert engines(factors) == "loop"
    assert kinds(factors)["l.weight"] == "Outer"


class Masked(nn.Module):
    """An encoder with padding; frozen, it takes a short cut that zeroes the padding."""

    def __init__(self, *, frozen):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.t, self.o = nn.TransformerEncoder(layer, 1), nn.Linear(6, 3)
        self.t.requires_grad_(not frozen)

    def forward(self, x, padding):
        return self.o(self.t(x, src_key_padding_mask=padding).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:layer 'o.weight'")
@pytest.mark.parametrize("frozen", [False, True])
def test_an_encoder_with_padding_is_exact(frozen):
    padding = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1]]).bool()
    module = Masked(frozen=frozen).double().eval()
    relative, factors = error(module, (data(3, 3, 6), padding), "full")
    assert_extracted(relative)
    assert engines(factors) == ("loop" if frozen else "vmap")
