"""What stands around a call: the state of the modules, and float32 that means float32.

Each guard is seen from where it matters: from inside the network's own forward pass, or from what
the network can reach past the copies that it is run with.
"""

import warnings
from operator import attrgetter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import entk.torch  # noqa: E402


class Reaching(nn.Module):
    """A network that keeps its own tensors under names that no module system knows."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(5, 3)
        self.frozen = nn.Linear(5, 3).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(2))
        self.aside = [self.l.weight, self.l.bias, self.frozen.weight, self.calls]
        self.kept: dict[str, torch.Tensor] = {}

    def forward(self, x):
        weight, bias, frozen, calls = self.aside
        calls += 1
        weight.grad = torch.ones_like(weight)
        bias.grad = None
        frozen.requires_grad_()
        self.train()
        self.register_forward_hook(lambda *_: None)
        if "scale" not in self.kept:
            self.kept["scale"] = self.l.bias.exp()
        return self.l(x) * self.kept["scale"] + self.frozen(x)


@pytest.fixture
def reaching():
    module = Reaching().eval()
    module.kept["scale"] = module.l.bias.exp()  # as a forward pass of the user's left it
    module.l.bias.grad = torch.full((3,), 7.0)
    return module


def stop(done, _):
    if done == 1:
        raise KeyboardInterrupt


def write(module, x, folder, **options):
    entk.torch.write_factors(folder / "F.entk", module, [x], **options)


def make(module, x, folder, **options):
    entk.torch.factors(module, x, **options)


@pytest.mark.parametrize("structure", [True, False])
@pytest.mark.parametrize("work", [make, write])
def test_what_a_network_reaches_past_its_copies_is_put_back(reaching, work, structure, tmp_path):
    kept, bias_grad = reaching.kept["scale"], reaching.l.bias.grad
    work(reaching, torch.randn(4, 5), tmp_path, structure=structure)
    assert torch.equal(reaching.calls, torch.zeros(2))
    assert reaching.l.weight.grad is None
    assert reaching.l.bias.grad is bias_grad
    assert torch.equal(bias_grad, torch.full((3,), 7.0))
    assert not reaching.frozen.weight.requires_grad
    assert reaching.l.weight.requires_grad
    assert not any(m.training or m._forward_hooks for m in reaching.modules())
    assert list(reaching.kept) == ["scale"]
    assert reaching.kept["scale"] is kept


def test_what_a_network_reaches_is_put_back_after_ctrl_c(reaching):
    kept = reaching.kept["scale"]
    with pytest.raises(KeyboardInterrupt):
        entk.torch.factors(reaching, torch.randn(4, 5), batch_size=1, progress=stop)
    assert torch.equal(reaching.calls, torch.zeros(2))
    assert reaching.l.weight.grad is None
    assert not reaching.frozen.weight.requires_grad
    assert reaching.kept["scale"] is kept


def test_the_buffers_of_torchscript_are_put_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(5, 3)
            self.register_buffer("calls", torch.zeros(2))

        def forward(self, x):
            self.calls.add_(1)
            return self.l(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch would have something else used
        module = torch.jit.script(Counting())
    entk.torch.factors(module, torch.randn(4, 5))
    assert torch.equal(module.calls, torch.zeros(2))


SWITCHES = [
    "cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn",
]  # fmt: skip


def precision():
    """Return how precisely products, convolutions and recurrences of float32 are computed."""
    return [attrgetter(name)(torch.backends).fp32_precision for name in SWITCHES]


class Looking(nn.Module):
    """A network that tells how it is run."""

    def __init__(self, tell):
        super().__init__()
        self.l = nn.Linear(5, 3)
        self.tell = tell

    def forward(self, x):
        out = self.l(x)
        self.tell((precision(), out.dtype))
        return out


def fast_products():
    torch.set_float32_matmul_precision("medium")


def fast_everywhere():
    torch.backends.fp32_precision = "tf32"


def fast_one_by_one():
    for number, name in enumerate(SWITCHES):
        attrgetter(name)(torch.backends).fp32_precision = "tf32" if number < 3 else "bf16"


def fast_nothing():
    for name in SWITCHES:
        attrgetter(name)(torch.backends).fp32_precision = "none"
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(params=[fast_products, fast_everywhere, fast_one_by_one], ids=lambda f: f.__name__)
def fast(request):
    """Let the caller have asked for speed."""
    request.param()
    yield
    fast_nothing()


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("options", [{}, {"structure": False}, {"audit": False}], ids=str)
@pytest.mark.parametrize("work", [make, write])
def test_every_run_of_the_network_is_in_full_precision(work, options, tmp_path):
    told = []
    before = precision()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        work(Looking(told.append), torch.randn(4, 5), tmp_path, **options)
    assert len(told) > 1
    assert all(found == (["ieee"] * len(SWITCHES), torch.float32) for found in told)
    assert precision() == before


@pytest.mark.usefixtures("fast")
def test_no_bit_of_the_factors_depends_on_what_the_caller_set():
    """Wide enough for the processor's own products of bfloat16, where it has them."""
    module = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 3))
    x = torch.randn(64, 256)
    found = entk.torch.factors(module, x)
    fast_nothing()
    plain = entk.torch.factors(module, x)
    for name in ("0.weight", "2.weight"):
        assert np.array_equal(found[name].acts, plain[name].acts)
        assert np.array_equal(found[name].cots, plain[name].cots)


def test_the_filters_of_warnings_are_as_before():
    before = list(warnings.filters)
    entk.torch.factors(nn.Linear(5, 3), torch.randn(4, 5))
    assert warnings.filters == before
