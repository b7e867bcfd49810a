"""Factors written batch by batch are those made at once; a store goes on where it stopped."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import entk  # noqa: E402
import entk.torch  # noqa: E402
from bounds import assert_extracted  # noqa: E402
from entk import (  # noqa: E402
    InputError,
    StoreError,
    StoreMismatchError,
    reference,
)
from torch_networks import TiedReadout  # noqa: E402
from torch_oracle import difference, kinds  # noqa: E402
from torch_programs import Branching  # noqa: E402


def network():
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return net, torch.randn(7, 5, dtype=torch.float64)


@pytest.mark.parametrize("outputs", ["sum", "full", 1])
def test_a_store_holds_what_one_call_makes(tmp_path, outputs):
    net, x = network()
    stored = entk.torch.write_factors(tmp_path / "F", net, x.split(3), outputs=outputs)
    whole = entk.torch.factors(net, x, outputs=outputs)
    assert kinds(stored) == kinds(whole)
    assert (stored.outputs, stored.n_outputs) == (whole.outputs, whole.n_outputs)
    assert_extracted(difference(reference.assemble(stored), reference.assemble(whole)))


def test_weights_of_each_example_go_through_the_batches(tmp_path, rng):
    net, x = network()
    w = rng.normal(size=(7, 3))
    stored = entk.torch.write_factors(tmp_path / "F", net, x.split(2), outputs=w)
    whole = entk.torch.factors(net, x, outputs=w)
    assert_extracted(difference(reference.assemble(stored), reference.assemble(whole)))
    with pytest.raises(InputError, match="6 examples, but there are more"):
        entk.torch.write_factors(tmp_path / "G", net, x.split(2), outputs=w[:6])


def test_a_tied_table_and_a_batch_of_one_fit_the_store(tmp_path):
    net, ids = TiedReadout().double(), torch.randint(0, 30, (5, 2))
    stored = entk.torch.write_factors(tmp_path / "F", net, ids.split(2), outputs="full")
    whole = entk.torch.factors(net, ids, outputs="full")
    assert kinds(stored)["e.weight"] == "Tied"
    assert_extracted(difference(reference.assemble(stored), reference.assemble(whole)))


def test_batches_of_a_loader_are_taken_as_they_come(tmp_path):
    net, x = network()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4)
    stored = entk.torch.write_factors(tmp_path / "F", net, loader)
    whole = entk.torch.factors(net, x)
    assert_extracted(difference(reference.assemble(stored), reference.assemble(whole)))


class Counting(nn.Module):
    """Counts the examples that it has seen."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return self.net(x)


def test_a_stopped_store_goes_on(tmp_path):
    net, x = network()

    def until(stop):
        for number, batch in enumerate(x.split(2)):
            if number == stop:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        entk.torch.write_factors(tmp_path / "F", net, until(3))
    assert not (tmp_path / "F").exists()
    seen = []
    stored = entk.torch.write_factors(
        tmp_path / "F", net, x.split(2), resume=True, progress=lambda *s: seen.append(s)
    )
    assert seen[-1] == (4, 4)
    once = entk.torch.write_factors(tmp_path / "G", net, x.split(2))
    for name in stored:
        for a, b in zip(stored[name]._parts, once[name]._parts, strict=True):
            assert np.array_equal(a.host.array, b.host.array)


def test_a_finished_store_is_returned(tmp_path):
    net, x = network()
    entk.torch.write_factors(tmp_path / "F", net, x.split(2))
    counting = Counting(net)
    with pytest.raises(StoreError, match="resume=True"):
        entk.torch.write_factors(tmp_path / "F", net, x.split(2))
    again = entk.torch.write_factors(tmp_path / "F", net, x.split(2), resume=True)
    assert again.n == 7
    assert not counting.calls


def test_another_network_or_question_is_not_mixed_in(tmp_path):
    net, x = network()
    with pytest.raises(InputError, match="shapes"):
        entk.torch.write_factors(tmp_path / "F", net, [x[:3], x[3:, :4]])
    with pytest.raises(StoreMismatchError, match="meta"):
        entk.torch.write_factors(tmp_path / "F", net, x.split(3), resume=True, outputs=0)
    with pytest.raises(StoreMismatchError, match="examples"):
        entk.torch.write_factors(tmp_path / "F", net, x.split(2), resume=True)
    with torch.no_grad():
        net[0].bias.add_(1e-9)
    with pytest.raises(StoreMismatchError, match="meta"):
        entk.torch.write_factors(tmp_path / "F", net, x.split(3), resume=True)
    stored = entk.torch.write_factors(tmp_path / "F", net, x.split(3), overwrite=True)
    assert stored.n == 7


def test_a_batch_of_another_shape_is_refused(tmp_path):
    uneven = [torch.randn(2, 1, 6), torch.randn(2, 3, 6)]
    with pytest.raises(InputError, match="differs from the first one"):
        entk.torch.write_factors(tmp_path / "F", nn.Sequential(nn.Linear(6, 9), Mean()), uneven)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def test_no_batch_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one batch"):
        entk.torch.write_factors(tmp_path / "F", network()[0], [])


def test_a_network_run_one_by_one_can_be_written(tmp_path):
    net, x = Branching().double(), torch.randn(8, 6, dtype=torch.float64)
    x = torch.cat([x, -x])[torch.arange(16).reshape(2, 8).T.reshape(-1)]
    stored = entk.torch.write_factors(tmp_path / "F", net, x.split(4))
    whole = entk.torch.factors(net, x)
    assert_extracted(difference(reference.assemble(stored), reference.assemble(whole)))
