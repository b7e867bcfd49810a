"""Devices: what has no values is refused; copies from a GPU are waited for (here, a simulated one).

No GPU is needed. What only one could show is the work of the driver: that an event which was
recorded after a copy is reached after it.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from entk import InputError  # noqa: E402
from entk.torch import _columns, _network  # noqa: E402


def without_values(name):
    if name == "a module":
        return nn.Linear(4, 3, device="meta"), torch.randn(2, 4)
    if name == "one layer":
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, device="meta")), torch.randn(2, 4)
    if name == "a buffer":
        net = nn.Sequential(nn.Linear(4, 3))
        net.register_buffer("scale", torch.empty(3, device="meta"))
        return net, torch.randn(2, 4)
    return nn.Linear(4, 3), torch.randn(2, 4, device="meta")


WORDS = {
    "a module": "layer 'weight' is on the meta device",
    "one layer": "layer '1.weight' is on the meta device",
    "a buffer": "layer 'scale' is on the meta device",
    "the examples": "x holds a tensor on the meta device",
}


@pytest.mark.parametrize("name", WORDS)
def test_what_has_no_values_is_refused_by_its_name(name, tmp_path):
    module, x = without_values(name)
    with pytest.raises(InputError, match=WORDS[name]):
        entk.torch.factors(module, x)
    with pytest.raises(InputError, match=WORDS[name]):
        entk.torch.write_factors(tmp_path / "F", module, [x])


class Elsewhere:
    """A tensor of another device, which notes how it is moved."""

    def __init__(self):
        self.moves = []

    def __getitem__(self, index):
        return self

    def to(self, device, non_blocking):
        self.moves.append((device.type, non_blocking))
        return torch.zeros(2, 4)


@pytest.mark.parametrize(("device", "at_once"), [("cpu", False), ("cuda", True)])
def test_examples_are_on_the_host_before_they_are_read(device, at_once):
    inputs = _network.Inputs(torch.zeros(2, 4))
    tensor = Elsewhere()
    inputs.tensors = [tensor]
    inputs.take(slice(0, 2), torch.device(device))
    assert tensor.moves == [(device, at_once)]


class Driver:
    """Copies that happen only when an event recorded after them is waited for."""

    def __init__(self, monkeypatch):
        self.pending, self.log = [], []
        monkeypatch.setattr(_columns, "_on_gpu", lambda _: True)
        monkeypatch.setattr(_columns, "_pinned", self.copy)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)

    def copy(self, array):
        buffer = torch.full_like(array, torch.nan if array.is_floating_point() else -7)
        self.pending.append((buffer, array.clone()))
        self.log.append("sent")
        return buffer

    def record_event(self):
        arriving, self.pending = self.pending, []
        return Event(self, arriving)


class Event:
    def __init__(self, driver, copies):
        self.driver, self.copies = driver, copies

    def synchronize(self):
        self.driver.log.append("waited")
        for buffer, values in self.copies:
            buffer.copy_(values)


NETWORKS = {
    "linear": (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(7, 4)),
    "embedding": (
        nn.Sequential(nn.Embedding(40, 4), nn.Linear(4, 3)),
        torch.randint(0, 40, (7, 2)),
    ),
}


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_copies_from_a_gpu_are_waited_for(name, size, monkeypatch):
    net, x = NETWORKS[name]
    want = entk.torch.factors(net, x, outputs="full", batch_size=size)
    driver = Driver(monkeypatch)
    found = entk.torch.factors(net, x, outputs="full", batch_size=size)
    for leaf in want:
        for a, b in zip(found[leaf]._parts, want[leaf]._parts, strict=True):
            assert np.array_equal(a.host.array, b.host.array)
    batches = -(-7 // size)
    assert driver.log.count("waited") == batches
    if batches > 1:  # the next batch is on its way before the one before it is waited for
        sent = driver.log.index("waited")
        assert driver.log[:sent].count("sent") == 2 * driver.log.count("sent") // batches


def test_an_error_of_a_later_batch_leaves_nothing_waiting(monkeypatch):
    driver = Driver(monkeypatch)
    table = nn.Embedding(5, 3)
    with pytest.raises(IndexError):
        entk.torch.factors(table, torch.tensor([[0], [1], [9], [2]]), batch_size=1)
    assert driver.log.count("waited") <= 2
