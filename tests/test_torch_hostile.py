"""Networks built to be got wrong: the kernel is right, or the network is refused.

For each there is the wrong kernel that would come out without the check that it is there for.
"""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from bounds import DIFFERENT, assert_extracted  # noqa: E402
from entk import ModelError, reference  # noqa: E402
from torch_oracle import difference, error, gradients, kernel, kinds  # noqa: E402
from torch_programs import Branching, Custom, Deciding, FalseProduct, OtherHalf  # noqa: E402


def data(n=6):
    return torch.randn(n, 6, dtype=torch.float64)


class Unseen(FalseProduct):
    """A product with a false gradient that no tap is told of."""

    generate_vmap_rule = False


class HalfHidden(nn.Module):
    """A weight used once in the open, and once where no tap can see it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6) / 2)

    def forward(self, x):
        return Unseen.apply(torch.tanh(x @ self.w), self.w)


def without_audit(monkeypatch):
    from entk.torch import _audit, _factors

    nothing = _audit.Verdict(frozenset(), frozenset(), frozenset())
    monkeypatch.setattr(_factors, "audit", lambda *_: nothing)


@pytest.mark.parametrize("outputs", ["sum", "full"])
def test_a_hidden_use_with_a_false_backward_is_wrong_only_without_the_audit(outputs, monkeypatch):
    module, x = HalfHidden().double(), data()
    with pytest.warns(UserWarning, match="layer 'w'.*kept dense"):
        right, factors = error(module, x, outputs)
    assert_extracted(right)
    assert kinds(factors) == {"w": "Dense"}
    without_audit(monkeypatch)
    wrong, factors = error(module, x, outputs)
    assert wrong > DIFFERENT
    assert kinds(factors) == {"w": "Outer"}


@pytest.mark.filterwarnings("ignore:layer 'both'")
def test_a_false_backward_is_followed_as_autograd_follows_it():
    relative, factors = error(Custom().double(), data(), "full")
    assert_extracted(relative)
    assert kinds(factors)["hidden"] == "Dense"


class Changed(nn.Module):
    """A weight that is changed between its two uses."""

    def __init__(self, change):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.w = nn.Parameter(torch.randn(6, 6) / 2)
        self.change = change

    def forward(self, x):
        x = torch.tanh(torch.tanh(self.first(x)) @ self.w)
        self.change(self)
        return torch.tanh(x @ self.w)


@torch.no_grad()
def halve(module):
    module.w.mul_(0.5)


@torch.no_grad()
def clear_a_row(module):
    module.w[0] = 0.0


WRITES = {
    "in place": halve,
    "an entry": clear_a_row,
    "through .data": lambda m: m.w.data.mul_(0.5),
    "through .detach()": lambda m: m.w.detach().mul_(0.5),
    "through NumPy": lambda m: m.w.detach().numpy().__imul__(0.5),
    "by other data": lambda m: setattr(m.w, "data", m.w.data * 0.5),
    "by very little": lambda m: m.w.data.add_(1e-6),
}


@pytest.mark.parametrize("audit", [True, False])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("how", WRITES)
def test_a_weight_that_the_network_changes_is_refused_by_its_name(how, n, audit):
    module, x = Changed(WRITES[how]).double(), data(n)
    before = module.w.detach().clone()
    with pytest.raises(ModelError, match=r"layer 'w': the network writes to this parameter"):
        entk.torch.factors(module, x, audit=audit)
    assert torch.equal(module.w, before)


class Overwritten(nn.Module):
    """An input of a layer that is written to after the layer has used it."""

    def __init__(self, write):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.write = write

    def forward(self, x):
        h = self.a(x)
        y = self.b(h)
        self.write(h)
        return y + torch.tanh(h)


LATE_WRITES = {
    "in place": torch.relu_,
    "an entry": lambda h: h.__setitem__((slice(None), 0), 1.0),
    "a view": lambda h: h[:, :2].zero_(),
    "through .detach()": lambda h: h.detach().mul_(2),
}


@pytest.mark.parametrize("audit", [True, False])
@pytest.mark.parametrize("how", LATE_WRITES)
def test_an_input_overwritten_after_its_use_is_refused_as_autograd_does(how, audit):
    module, x = Overwritten(LATE_WRITES[how]).double(), data()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(module, x)
    with pytest.raises(ModelError, match=r"layer 'b.weight': its input is overwritten"):
        entk.torch.factors(module, x, audit=audit)
    with pytest.raises(ModelError, match="modified by an inplace operation"):
        entk.torch.factors(module, x, audit=audit, structure=False)


def test_an_input_overwritten_after_its_use_would_be_wrong_unseen(monkeypatch):
    from entk.torch import _engines

    module, x = Overwritten(torch.relu_).double(), data()
    plain = Overwritten(lambda h: None).double()
    plain.load_state_dict(module.state_dict())
    plain.forward = lambda x: plain.b(plain.a(x)) + torch.tanh(torch.relu(plain.a(x)))
    monkeypatch.setattr(_engines, "_check_unwritten", lambda _: None)
    factors = entk.torch.factors(module, x, audit=False)
    row = torch.full((1, 6), 6**-0.5, dtype=torch.float64)
    assert difference(reference.assemble(factors), kernel(gradients(plain, x, row))) > DIFFERENT


def test_a_weight_changed_in_a_copy_is_right():
    def forward(self, x):
        w = self.w.clone()
        x = torch.tanh(torch.tanh(self.first(x)) @ w)
        w = w * 0.5
        return torch.tanh(x @ w)

    module = type("Copied", (Changed,), {"forward": forward})(None).double()
    relative, factors = error(module, data(), "full")
    assert_extracted(relative)
    assert kinds(factors)["w"] == "Outer"


def test_a_weight_that_is_replaced_between_its_uses_is_right():
    def replace(module):
        module.w = nn.Parameter(module.w.detach() * 0.5)

    module, x = Changed(replace).double(), data()
    factors = entk.torch.factors(module, x, outputs="full")
    own = [gradients(copy.deepcopy(module), one[None]) for one in x]
    assert_extracted(difference(reference.assemble(factors), kernel(np.concatenate(own))))


RANDOM_OR_MIXING = {
    "dropout": lambda: nn.Dropout(0.5),
    "functional dropout": lambda: Applied(lambda x: F.dropout(x, 0.5)),
    "BatchNorm in training mode": lambda: nn.BatchNorm1d(6),
    "centring by the batch": lambda: Applied(lambda x: x - x.mean(0)),
}


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("audit", [True, False])
@pytest.mark.parametrize("structure", [True, False])
@pytest.mark.parametrize("outputs", ["sum", "full"])
@pytest.mark.parametrize("name", RANDOM_OR_MIXING)
def test_no_option_makes_a_number_of_what_has_no_gradient(name, outputs, structure, audit):
    module = nn.Sequential(nn.Linear(6, 6), RANDOM_OR_MIXING[name](), nn.Linear(6, 2)).double()
    with pytest.raises(ModelError):
        entk.torch.factors(module, data(), outputs=outputs, structure=structure, audit=audit)


def test_a_centred_batch_would_be_wrong_without_the_comparison(monkeypatch):
    from entk.torch import _factors

    monkeypatch.setattr(_factors, "check_independent", lambda *_: None)
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), RANDOM_OR_MIXING["centring by the batch"]())
    made = entk.torch.factors(module.double(), data(), structure=False)
    truth = batch_gradients(module, data())
    assert difference(reference.assemble(made), kernel(truth)) > DIFFERENT


def batch_gradients(module, x):
    """Return the gradients of the sums of each example's outputs in the batch, ``(N, 1, P)``."""
    outs = module(x).sum(1) * 6**-0.5
    parameters = list(module.parameters())
    rows = [torch.autograd.grad(out, parameters, retain_graph=True) for out in outs]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])[:, None].numpy()


@pytest.mark.parametrize("size", [None, 1, 4])
@pytest.mark.parametrize("outputs", ["sum", "full"])
@pytest.mark.parametrize("make", [Branching, Deciding, OtherHalf], ids=lambda m: m.__name__)
def test_a_branch_on_the_data_is_right_in_every_batch(make, outputs, size):
    relative, _ = error(make().double(), data(11), outputs, batch_size=size)
    assert_extracted(relative)


def test_a_branch_would_be_wrong_if_the_tables_were_not_compared(monkeypatch):
    from entk.torch import _engines

    x = data(9)
    x[[0, 4, 8], 0] = 1.0  # the examples looked at first agree
    module = OtherHalf().double()
    right, _ = error(module, x)
    assert_extracted(right)
    monkeypatch.setattr(_engines, "_check_tables", lambda *_: None)
    wrong, _ = error(module, x)
    assert wrong > DIFFERENT


class Aside(nn.Module):
    """A network that reaches one of its parameters past the attribute."""

    def __init__(self, how):
        super().__init__()
        self.first = nn.Linear(6, 5, dtype=torch.float64)
        self.last = nn.Linear(5, 3, dtype=torch.float64)
        weight = self.first.weight
        ways = {
            "list": lambda: weight,
            "closure": lambda: weight * 1.0,
            "made before": lambda made=weight.T: made.T,
        }
        self.reached = ways[how]

    def forward(self, x):
        return self.last(torch.tanh(nn.functional.linear(x, self.reached(), self.first.bias)))


@pytest.mark.parametrize("audit", [True, False])
@pytest.mark.parametrize("how", ["list", "closure", "made before"])
def test_a_parameter_that_is_reached_past_its_name_is_refused(how, audit):
    module = Aside(how)
    with pytest.raises(ModelError, match=r"layer 'first.weight'.*by another way than its name"):
        entk.torch.factors(module, data(), audit=audit)


def test_a_parameter_that_is_only_looked_at_past_its_name_is_fine():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    weight = module[0].weight
    module.register_forward_pre_hook(lambda *_: print(weight.norm()))
    relative, _ = error(module, data(), "sum")
    assert_extracted(relative)
