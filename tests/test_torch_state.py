"""A call leaves everything as it was: also after an error, a refusal or Ctrl-C."""

import copy
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from entk import ModelError  # noqa: E402


class Busy(nn.Module):
    """A network whose forward pass writes to everything that it can reach."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 5, max_norm=0.5)
        self.l = nn.Linear(5, 4)
        self.norm = nn.InstanceNorm1d(2, track_running_stats=True)
        self.frozen = nn.Embedding(12, 5, max_norm=0.5).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.seen = "nothing"
        self.fail: type[BaseException] | None = None

    def forward(self, ids):
        x = self.table(ids) + self.frozen(ids)
        x = self.l(self.norm(x)).sum(1)
        self.calls += 1
        self.hidden.add_(3)
        self.seen = x
        self.fresh = x
        random.random()
        np.random.rand()  # noqa: NPY002
        if self.fail is not None and len(self.__dict__["_forward_pre_hooks"]) > 1:
            raise self.fail("stop")
        return x


def snapshot(module):
    """Return all that a call could change, in a form that compares."""
    tensors = {k: t.clone() for k, t in (*module.named_parameters(), *module.named_buffers())}
    grads = {k: None if p.grad is None else p.grad.clone() for k, p in module.named_parameters()}
    flags = {
        k: (m.training, sorted(m.__dict__), len(m._forward_hooks))
        for k, m in module.named_modules()
    }
    identities = [id(t) for t in (*module.parameters(), *module.buffers())]
    trained = [p.requires_grad for p in module.parameters()]
    return tensors, grads, flags, identities, trained, module.seen


def same(a, b):
    tensors = all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    grads = all((a[1][k] is None) == (b[1][k] is None) for k in a[1])
    values = all(torch.equal(a[1][k], b[1][k]) for k in a[1] if a[1][k] is not None)
    return tensors and grads and values and a[2:5] == b[2:5] and a[5] is b[5]


def random_states():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002


def assert_same_random(before):
    after = random_states()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert all(np.array_equal(a, b) for a, b in zip(before[2], after[2], strict=True))


@pytest.fixture
def busy():
    module = Busy()
    module.train()
    module.l(torch.randn(3, 5)).sum().backward()
    module.l.register_forward_hook(lambda *_: None)
    return module


IDS = torch.arange(12).reshape(3, 4)[:, :2]


@pytest.mark.parametrize("outputs", ["sum", "full"])
@pytest.mark.parametrize("structure", [True, False])
def test_a_call_changes_nothing(busy, outputs, structure):
    before, states = snapshot(busy), random_states()
    factors = entk.torch.factors(busy, IDS, outputs=outputs, structure=structure)
    assert factors.n == 3
    assert same(before, snapshot(busy))
    assert_same_random(states)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, ValueError])
def test_an_error_in_the_network_changes_nothing(busy, error):
    busy.fail = error
    busy.register_forward_pre_hook(lambda *_: None)
    busy.register_forward_pre_hook(lambda *_: None)
    before, states = snapshot(busy), random_states()
    with pytest.raises(error, match="stop"):
        entk.torch.factors(busy, IDS)
    assert same(before, snapshot(busy))
    assert_same_random(states)


def test_ctrl_c_between_batches_changes_nothing(busy):
    def interrupt(done, _):
        if done == 2:
            raise KeyboardInterrupt

    before, states = snapshot(busy), random_states()
    with pytest.raises(KeyboardInterrupt):
        entk.torch.factors(busy, IDS, batch_size=1, progress=interrupt)
    assert same(before, snapshot(busy))
    assert_same_random(states)


def test_a_refusal_changes_nothing():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    module.seen = None
    x = torch.randn(3, 4)
    before, states = snapshot(module), random_states()
    with pytest.raises(ModelError):
        entk.torch.factors(module, x)
    with pytest.raises(ModelError):
        entk.torch.factors(module[2:].append(module[0]), x)
    assert same(before, snapshot(module))
    assert_same_random(states)


def switches():
    backends = torch.backends
    return [
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.rnn.fp32_precision,
        backends.mkldnn.matmul.fp32_precision,
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
    ]


def test_float32_means_float32_whatever_the_caller_set():
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    x = torch.randn(4, 64)
    plain = entk.torch.factors(module, x)["0.weight"]
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            before = switches()
            found = entk.torch.factors(module, x)["0.weight"]
            assert switches() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert np.array_equal(found.acts, plain.acts)
    assert np.array_equal(found.cots, plain.cots)


def test_callers_without_gradients_get_them():
    module, x = nn.Linear(5, 3), torch.randn(4, 5)
    plain = entk.torch.factors(module, x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = entk.torch.factors(module, x.clone())
        assert np.array_equal(found["weight"].cots, plain["weight"].cots)


@pytest.mark.parametrize("outputs", ["sum", "full", 1, [1.0, 2.0, 3.0]])
def test_the_default_device_does_not_matter(outputs):
    module = nn.Sequential(nn.Conv1d(4, 6, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    x = torch.randn(4, 4, 3)
    plain = entk.torch.factors(module, x, outputs=outputs, batch_size=3)
    with torch.device("meta"):
        found = entk.torch.factors(module, x, outputs=outputs, batch_size=3)
    assert np.array_equal(found["0.weight"].cots, plain["0.weight"].cots)


def test_the_result_does_not_share_memory_with_the_callers_tensors():
    module, x = nn.Linear(5, 3), torch.randn(4, 5)
    factors = entk.torch.factors(module, x)
    kept = copy.deepcopy(factors["weight"].acts)
    x.zero_()
    with torch.no_grad():
        module.weight.zero_()
    assert np.array_equal(factors["weight"].acts, kept)
