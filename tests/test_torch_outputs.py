"""What may be asked of the torch front end: outputs, inputs, types, batches."""

import collections

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from bounds import assert_extracted  # noqa: E402
from entk import reference  # noqa: E402
from torch_oracle import difference, gradients, in_type, kernel, kinds, run  # noqa: E402


def network():
    net = nn.Sequential(nn.Conv1d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 4)).double()
    return net, torch.randn(5, 3, 5, dtype=torch.float64)


def test_sum_is_scaled_by_the_root_of_the_outputs():
    net, x = network()
    factors = entk.torch.factors(net, x)
    row = torch.full((1, 4), 0.5, dtype=torch.float64)
    assert_extracted(difference(reference.assemble(factors), kernel(gradients(net, x, row))))
    assert (factors.outputs, factors.rows, factors.n_outputs) == ("sum", 1, 4)


@pytest.mark.parametrize("output", [0, 3, np.int64(2)])
def test_one_output(output):
    net, x = network()
    factors = entk.torch.factors(net, x, outputs=output)
    row = torch.eye(4, dtype=torch.float64)[int(output)][None]
    assert_extracted(difference(reference.assemble(factors), kernel(gradients(net, x, row))))
    assert (factors.outputs, factors.rows, factors.n_outputs) == (int(output), 1, 4)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, list])
def test_weights_for_all_examples(kind, rng):
    net, x = network()
    w = rng.normal(size=4)
    factors = entk.torch.factors(net, x, outputs=kind(w))
    truth = kernel(gradients(net, x, torch.as_tensor(w)[None]))
    assert_extracted(difference(reference.assemble(factors), truth))
    assert (factors.outputs, factors.rows, factors.n_outputs) == ("weights", 1, 4)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_weights_of_each_example(size, rng):
    net, x = network()
    w = rng.normal(size=(5, 4))
    factors = entk.torch.factors(net, x, outputs=w, batch_size=size)
    rows = np.einsum("no,nop->np", w, gradients(net, x))
    assert_extracted(difference(reference.assemble(factors), rows @ rows.T))


def test_full_factors_contract_to_the_others():
    net, x = network()
    full = entk.torch.factors(net, x, outputs="full")
    one = entk.torch.factors(net, x)
    whole = reference.assemble(full, outputs="sum")
    assert_extracted(difference(whole, reference.assemble(one)))
    assert full.rows == full.n_outputs == 4


def test_a_single_output_is_the_same_in_every_word():
    net, x = nn.Linear(6, 1).double(), torch.randn(3, 6, dtype=torch.float64)
    kernels = [
        reference.assemble(entk.torch.factors(net, x, outputs=o)) for o in ("sum", "full", 0)
    ]
    assert_extracted(difference(kernels[0], kernels[1]))
    assert_extracted(difference(kernels[0], kernels[2]))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100, None])
def test_batches_do_not_matter(size):
    net, x = network()
    whole = entk.torch.factors(net, x, outputs="full")
    parts = entk.torch.factors(net, x, outputs="full", batch_size=size)
    assert kinds(whole) == kinds(parts)
    assert_extracted(difference(reference.assemble(parts), reference.assemble(whole)))


def test_no_example_gives_empty_factors():
    net, x = network()
    factors = entk.torch.factors(net, x[:0])
    assert factors.n == 0
    assert factors.leaves == entk.torch.factors(net, x).leaves
    assert reference.assemble(factors).shape == (0, 0)


def test_a_small_limit_makes_small_batches():
    net, x = network()
    calls = []
    entk.torch.factors(net, x, memory="12KiB", progress=lambda done, _: calls.append(done))
    assert calls[-1] == 5
    assert len(calls) > 2


def test_progress_never_goes_back():
    net, x = network()
    calls = []
    entk.torch.factors(net, x, batch_size=2, progress=lambda *seen: calls.append(seen))
    assert calls == [(0, 5), (2, 5), (4, 5), (5, 5)]


class Many(nn.Module):
    """Arguments and results in every shape of container."""

    Result = collections.namedtuple("Result", "a b")

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 3)

    def forward(self, x, *, pair=None, flag=False):
        y = self.l(x)
        extra = y if pair is None else y * pair["k"][0]
        return {"z": y, "both": [extra.tanh(), Many.Result(y[:, :1], -y)], "flag": None}


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "nested"])
def test_inputs_of_every_shape(kind):
    module = Many().double()
    x, k = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    given = {
        "tensor": x,
        "tuple": (x,),
        "dict": {"x": x},
        "nested": {"x": x, "pair": {"k": [k]}},
    }[kind]
    factors = entk.torch.factors(module, given, outputs="full")
    assert factors.n_outputs == 10
    truth = kernel(gradients(module, given, output=flat))
    assert_extracted(difference(reference.assemble(factors), truth))


def flat(out):
    """Return the leaves side by side, in the order of `torch.utils._pytree`."""
    first, second = out["both"]
    return torch.cat([out["z"], first, second.a, second.b], 1)


def test_arguments_that_are_no_tensors_are_passed_on():
    factors = entk.torch.factors(Many(), {"x": torch.randn(3, 4), "flag": True, "pair": None})
    assert factors.n == 3


@pytest.mark.parametrize(
    ("output", "pick"),
    [
        ("z", lambda out: out["z"]),
        (lambda out: out["both"][1].b, lambda out: out["both"][1].b),
        ("both", lambda out: torch.cat([out["both"][0], *out["both"][1]], 1)),
    ],
    ids=["name", "function", "part"],
)
def test_a_part_of_the_output_can_be_chosen(output, pick):
    module, x = Many().double(), torch.randn(3, 4, dtype=torch.float64)
    factors = entk.torch.factors(module, x, output=output, outputs="full")
    assert_extracted(
        difference(reference.assemble(factors), kernel(gradients(module, x, output=pick)))
    )


def test_an_output_is_chosen_by_its_index():
    module = nn.LSTM(4, 3, batch_first=True)
    factors = entk.torch.factors(module, torch.randn(2, 3, 4), output=0)
    assert factors.n_outputs == 9


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_factors_have_the_type_of_the_network(name):
    dtype = getattr(torch, name)
    net = in_type(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), dtype)
    x = torch.randn(4, 6)
    factors = entk.torch.factors(net, x.to(dtype))
    assert {part.host.dtype for leaf in factors.values() for part in leaf._parts} == {name}
    double = in_type(net, torch.float64)
    row = torch.full((1, 3), 3**-0.5, dtype=torch.float64)
    truth = kernel(gradients(double, x.to(dtype).double(), row))
    assert_extracted(difference(reference.assemble(factors), truth), name)


def test_leaves_of_a_mixed_network_keep_their_types():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3).double()

        def forward(self, x):
            return self.b(self.a(x).double())

    factors = entk.torch.factors(Mixed(), torch.randn(2, 6))
    assert factors["a.weight"].cots.dtype == np.float32
    assert factors["b.weight"].cots.dtype == np.float64
    assert factors.dtype == "float64"


def test_train_and_test_meet_in_one_kernel():
    net, x = network()
    train, test = entk.torch.factors(net, x[:3]), entk.torch.factors(net, x[3:])
    both = reference.assemble(entk.torch.factors(net, x))
    assert_extracted(difference(reference.assemble(train, test), both[:3, 3:]))


def test_an_error_says_where_it_happened():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Embedding(5, 3)

        def forward(self, ids):
            return self.l(ids)

    ids = torch.tensor([[0], [1], [2], [7], [4]])
    with pytest.raises(IndexError) as caught:
        entk.torch.factors(Late(), ids, batch_size=1)
    assert any("batch 3 of 5, examples 3 to 3" in note for note in caught.value.__notes__)


def test_a_dict_of_a_tokenizer_is_a_dict():
    class Encoding(collections.UserDict):
        """Like the result of a tokenizer: a mapping that is no dict."""

    module, x = Many(), torch.randn(3, 4)
    given = Encoding({"x": x})
    assert entk.torch.factors(module, given).n == len(run(module, dict(given))["z"])
