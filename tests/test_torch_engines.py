"""The ladder of engines: torch.func, autograd one by one, and the audit that watches both."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.utils.checkpoint as checkpointing  # noqa: E402
from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from bounds import DIFFERENT, assert_extracted  # noqa: E402
from entk import reference  # noqa: E402
from torch_oracle import difference, engines, error, gradients, kernel, kinds  # noqa: E402
from torch_programs import (  # noqa: E402
    Branching,
    Custom,
    Deciding,
    Ensemble,
    FalseProduct,
    ItemScaled,
    OtherHalf,
    Score,
)


def data(n=5, width=6):
    return torch.randn(n, width, dtype=torch.float64)


@pytest.mark.parametrize("outputs", ["sum", "full"])
@pytest.mark.parametrize("make", [Branching, ItemScaled], ids=lambda m: m.__name__)
def test_what_torch_func_cannot_run_is_run_one_by_one(make, outputs):
    relative, factors = error(make().double(), data(9), outputs)
    assert_extracted(relative)
    assert engines(factors) == "loop"
    assert kinds(factors)["a.weight"] == "Outer"


@pytest.mark.parametrize("outputs", ["sum", "full"])
def test_examples_that_decide_alike_are_run_together(outputs):
    relative, factors = error(Deciding().double(), data(17), outputs)
    assert_extracted(relative)
    assert engines(factors) == "vmap"
    assert kinds(factors)["a.weight"] == "Outer"


def test_a_branch_to_another_part_of_a_weight_is_another_leaf():
    x = data(9)
    x[[0, 4, 8], 0] = 1.0
    relative, factors = error(OtherHalf().double(), x, "full")
    assert_extracted(relative)
    assert engines(factors) == "loop"
    assert kinds(factors) == {"w[0]": "Outer", "w[1]": "Outer"}


def test_a_branch_met_late_changes_the_engine():
    x = data(9).abs()
    x[5] *= -1
    relative, factors = error(Branching().double(), x, batch_size=4)
    assert_extracted(relative)
    assert engines(factors) == "loop"
    assert kinds(factors) == {
        "a.weight": "Outer", "a.bias": "Dense", "b.weight": "Outer", "b.bias": "Dense",
        "o.weight": "Outer", "o.bias": "Dense",
    }  # fmt: skip


def test_examples_that_take_another_branch_fill_up_with_zeros():
    x = data(9)
    factors = entk.torch.factors(Branching().double(), x)
    taken = (x.sum(1) > 0).numpy()
    assert 0 < taken.sum() < 9
    assert np.any(factors["a.weight"].acts, axis=1).tolist() == taken.tolist()
    assert factors["b.weight"].acts.shape == (9, 2, 6)
    assert np.any(factors["b.weight"].acts, axis=(1, 2)).tolist() == (~taken).tolist()


def test_a_branch_first_taken_late_keeps_its_structure():
    x = data(9).abs()
    x[4] *= -1
    relative, factors = error(Branching().double(), x, batch_size=3)
    assert_extracted(relative)
    assert kinds(factors)["b.weight"] == "Outer"


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.reentrant = reentrant

    def forward(self, x):
        return checkpointing.checkpoint(
            lambda z: torch.tanh(self.b(z)), self.a(x), use_reentrant=self.reentrant
        )


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_change_nothing(reentrant):
    module, x = Checkpointed(reentrant).double(), data()
    before = checkpointing.CheckpointFunction.apply
    factors = entk.torch.factors(module, x, outputs="full")
    assert checkpointing.CheckpointFunction.apply == before
    assert engines(factors) == "vmap"
    module.reentrant = False
    assert_extracted(difference(reference.assemble(factors), kernel(gradients(module, x))))


def test_a_custom_backward_is_followed_and_a_hidden_use_found():
    with pytest.warns(UserWarning, match="layer 'both'.*kept dense"):
        relative, factors = error(Custom().double(), data(), "full")
    assert_extracted(relative)
    assert kinds(factors)["l.weight"] == "Outer"
    assert kinds(factors)["hidden"] == kinds(factors)["both"] == "Dense"


class NoRule(FalseProduct):
    """The same for autograd alone, whose forward no tap is told of."""

    generate_vmap_rule = False


class HalfHidden(nn.Module):
    """A weight used once in the open, and once where no tap can see it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6) / 2)

    def forward(self, x):
        return NoRule.apply(torch.tanh(x @ self.w), self.w)


def test_the_audit_finds_a_use_that_nothing_else_shows():
    module, x = HalfHidden().double(), data()
    wrong, factors = error(module, x, audit=False)
    assert kinds(factors)["w"] == "Outer"
    assert wrong > DIFFERENT
    with pytest.warns(UserWarning, match="layer 'w'.*kept dense"):
        right, factors = error(module, x)
    assert kinds(factors)["w"] == "Dense"
    assert_extracted(right)


def test_a_wrong_rule_is_found_and_repaired(monkeypatch):
    from entk.torch import _sites, _taps

    def halved(tagged, args, kwargs):
        use = _sites.linear(tagged, args, kwargs)
        return _sites.Use(use.weight, use.acts / 2, use.cots, use.table)

    monkeypatch.setitem(_taps.RULES, nn.functional.linear, halved)
    module, x = nn.Linear(6, 6).double(), data()
    wrong, _ = error(module, x, audit=False)
    assert wrong > DIFFERENT
    with pytest.warns(UserWarning, match="layer 'weight'"):
        right, factors = error(module, x)
    assert_extracted(right)
    assert kinds(factors)["weight"] == "Dense"


@pytest.mark.parametrize("make", [Ensemble, Score], ids=lambda m: m.__name__)
def test_a_network_that_uses_torch_func_itself_is_exact(make):
    relative, factors = error(make().double(), data(), "full")
    assert_extracted(relative)
    assert engines(factors) == "vmap"


@pytest.mark.parametrize(("size", "runs"), [(None, 1), (5, 1), (2, 3), (1, 6)])
def test_the_batch_that_the_engine_is_tried_on_is_kept(size, runs, monkeypatch):
    """Only of single examples two are tried at once, and run again."""
    from entk.torch._engines import Together

    counted, once = [], Together._batch
    monkeypatch.setattr(Together, "_batch", lambda *args: counted.append(1) or once(*args))
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = data()
    factors = entk.torch.factors(module, x, batch_size=size, outputs="full")
    assert len(counted) == runs
    assert_extracted(difference(reference.assemble(factors), kernel(gradients(module, x))))


def test_prelu_is_right_where_nested_vmap_is_not():
    module = nn.Sequential(nn.Linear(6, 5), nn.PReLU(5), nn.Linear(5, 4)).double()
    relative, factors = error(module, data(), "full")
    assert_extracted(relative)
    assert engines(factors) == "vmap"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_exact_by_autograd():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripts = [torch.jit.script(module), torch.jit.trace(module, x)]
    for script in scripts:
        factors = entk.torch.factors(script, x, outputs="full")
        assert_extracted(difference(reference.assemble(factors), kernel(gradients(module, x))))
        assert all(p.grad is None and p.requires_grad for p in script.parameters())


def test_a_compiled_module_is_its_own_original():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = data()
    whole, inner = torch.compile(module), nn.Sequential(torch.compile(module))
    for compiled, prefix in ((whole, ""), (inner, "0._orig_mod.")):
        factors = entk.torch.factors(compiled, x, outputs="full")
        assert_extracted(difference(reference.assemble(factors), kernel(gradients(module, x))))
        assert factors.leaves[0] == prefix + "0.weight"
        assert kinds(factors)[prefix + "0.weight"] == "Outer"


def test_a_packed_sequence_of_each_example_is_structured():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.r = nn.LSTM(6, 5, batch_first=True)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            )
            _, (h, _) = self.r(packed)
            return h[0]

    lengths = torch.tensor([4, 2, 3])
    relative, factors = error(Packed().double(), (torch.randn(3, 4, 6).double(), lengths))
    assert_extracted(relative)
    assert kinds(factors)["r.weight_hh_l0"] == "Outer"
    assert factors["r.weight_ih_l0"].acts.shape == (3, 4, 6)
