"""Networks without a gradient for each example are refused: never a number."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from bounds import assert_extracted  # noqa: E402
from entk import DTypeError, InputError, MemoryLimitError, ModelError, reference  # noqa: E402
from torch_oracle import difference, gradients, kernel  # noqa: E402


class Named(nn.Module):
    """A layer called `inner` between two linear ones."""

    def __init__(self, inner):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 6), inner, nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.inner(self.first(x)))


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def seeded(x):
    torch.manual_seed(0)
    return F.dropout(x, 0.5)


def own_generator(x):
    return x * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))


RANDOM = {
    "dropout": lambda: nn.Dropout(0.5),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "feature dropout": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.Dropout1d(0.5), nn.Flatten()
    ),
    "random leaky relu": lambda: nn.RReLU(),
    "functional dropout": lambda: Lambda(lambda x: F.dropout(x, 0.5)).eval(),
    "dropout with a fixed seed": lambda: Lambda(seeded).eval(),
    "drawn noise": lambda: Lambda(lambda x: x + torch.randn_like(x)).eval(),
    "noise of an own generator": lambda: Lambda(own_generator).eval(),
    "noise written in place": lambda: Lambda(lambda x: x * x.new_empty(6).bernoulli_(0.5)).eval(),
    "gumbel softmax": lambda: Lambda(F.gumbel_softmax).eval(),
}


@pytest.mark.parametrize("name", RANDOM)
def test_randomness_is_refused_by_the_name_of_the_layer(name):
    with pytest.raises(ModelError, match=r"layer 'inner.*random.*eval\(\)"):
        entk.torch.factors(Named(RANDOM[name]()), torch.randn(4, 6))


def test_dropout_inside_attention_and_recurrences_is_refused():
    attention = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
    with pytest.raises(ModelError, match=r"random.*eval\(\)"):
        entk.torch.factors(attention, torch.randn(3, 2, 6))
    recurrent = nn.Sequential(nn.LSTM(6, 5, num_layers=2, dropout=0.5, batch_first=True))
    with pytest.raises(ModelError, match=r"random.*eval\(\)"):
        entk.torch.factors(recurrent, torch.randn(3, 2, 6), output=0)


def test_attention_weights_that_are_dropped_are_refused():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(6, 6)

        def forward(self, x):
            q = self.l(x)
            return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)

    with pytest.raises(ModelError, match="random"):
        entk.torch.factors(Dropped().eval(), torch.randn(3, 2, 6))


def test_dropout_that_drops_nothing_is_fine():
    module = Named(nn.Dropout(0.0))
    assert entk.torch.factors(module, torch.randn(3, 6)).n == 3
    assert entk.torch.factors(Named(nn.Dropout(0.5)).eval(), torch.randn(3, 6)).n == 3


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm1d(6),
        lambda: nn.BatchNorm1d(6, track_running_stats=False).eval(),
        lambda: Lambda(lambda x: F.batch_norm(x, None, None, training=True)).eval(),
    ],
    ids=["training", "without running statistics", "functional"],
)
def test_statistics_of_the_batch_are_refused_by_the_name_of_the_layer(norm, n):
    with pytest.raises(ModelError, match=r"layer 'inner'.*batch.*eval\(\)"):
        entk.torch.factors(Named(norm()), torch.randn(n, 6))


MIXING = {
    "centring": lambda x: x - x.mean(0),
    "softmax over the batch": lambda x: x.softmax(0),
    "neighbours": lambda x: x + 0.01 * x.roll(1, 0),
    "first example": lambda x: x * x[:1],
}


@pytest.mark.parametrize("name", MIXING)
def test_examples_that_see_each_other_are_refused(name):
    with pytest.raises(ModelError, match=r"layer 'inner'.*mixes the examples"):
        entk.torch.factors(Named(Lambda(MIXING[name])), torch.randn(5, 6))


def test_time_on_the_first_axis_is_refused():
    with pytest.raises(ModelError, match="batch_first"):
        entk.torch.factors(nn.RNN(6, 5), torch.randn(3, 2, 6), output=0)


@pytest.mark.filterwarnings("ignore")  # what PyTorch's compiler says of itself
def test_a_branch_that_pytorch_compiles_is_refused():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return torch.cond(x.sum() > 0, self.a.forward, self.b.forward, (x,))

    with pytest.raises(ModelError, match=r"uses torch\.cond.*torch\.where"):
        entk.torch.factors(Choosing(), torch.randn(3, 6))


def test_a_loss_over_the_batch_is_refused():
    with pytest.raises(ModelError, match=r"first axis.*output="):
        entk.torch.factors(Lambda(lambda x: x.sum()).append_linear(), torch.randn(3, 6))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_sum_over_the_batch_is_refused_whatever_its_width(width):
    summed = nn.Sequential(nn.Linear(6, width), Lambda(lambda x: x.sum(0)))
    with pytest.raises(ModelError, match=r"first axis|may not depend on the batch"):
        entk.torch.factors(summed, torch.randn(3, 6))


@pytest.mark.parametrize("outputs", ["sum", "full"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_squeeze_that_takes_the_axis_of_one_example_is_fine(n, outputs):
    torch.manual_seed(0)
    first, last = nn.Conv1d(2, 4, 3), nn.Linear(4, 1)
    squeezing = nn.Sequential(first, Lambda(torch.squeeze), last, Lambda(torch.squeeze)).double()
    x = torch.randn(n, 2, 3, dtype=torch.float64)
    found = entk.torch.factors(squeezing, x, outputs=outputs, batch_size=2)
    assert found.n_outputs == 1
    plain = nn.Sequential(first, nn.Flatten(), last)
    want = kernel(gradients(plain, x))
    assert_extracted(difference(reference.assemble(found), want))


def _append_linear(self):
    """Return the network with a trained layer before the function."""
    return nn.Sequential(nn.Linear(6, 6), self)


Lambda.append_linear = _append_linear


def test_complex_parameters_are_refused():
    module = nn.Linear(3, 2, dtype=torch.complex64)
    with pytest.raises(DTypeError, match="layer 'weight' is complex"):
        entk.torch.factors(module, torch.randn(2, 3))


def test_complex_arithmetic_with_real_parameters_is_fine():
    module = Lambda(lambda x: torch.fft.rfft(x).abs()).append_linear()
    assert entk.torch.factors(module, torch.randn(3, 6)).n_outputs == 4


def test_layers_without_a_shape_are_refused():
    with pytest.raises(ModelError, match="layer 'weight' has no shape yet"):
        entk.torch.factors(nn.LazyLinear(3), torch.randn(2, 4))


@pytest.mark.parametrize(
    ("module", "x", "options", "text"),
    [
        (nn.Linear(3, 2).requires_grad_(False), torch.randn(2, 3), {}, "no parameter"),
        (lambda x: x, torch.randn(2, 3), {}, "expected a torch.nn.Module"),
        (nn.Linear(3, 2), 3.0, {}, "x is a float"),
        (nn.Linear(3, 2), (), {}, "no tensor"),
        (nn.Linear(3, 2), torch.tensor(1.0), {}, "without axes"),
        (nn.Bilinear(3, 3, 2), (torch.randn(2, 3), torch.randn(3, 3)), {}, r"\[2, 3\]"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"outputs": 2}, "outputs 0 to 1"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"outputs": -1}, "outputs 0 to 1"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"outputs": True}, "outputs=True"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"outputs": "trace"}, "not one direction"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"outputs": "all"}, "'sum', 'full'"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"outputs": [1.0, 2.0, 3.0]}, r"\(3,\)"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"outputs": [1.0, float("nan")]}, "finite"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"outputs": object()}, "a object"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"output": "logits"}, "output='logits'"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"batch_size": 0}, "batch_size"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"batch_size": True}, "batch_size"),
        (nn.Linear(3, 2), torch.randn(2, 3), {"memory": "4 gigs"}, "not understood"),
    ],
)
def test_bad_arguments_say_what_was_given(module, x, options, text):
    with pytest.raises(InputError, match=text):
        entk.torch.factors(module, x, **options)


def test_a_whole_number_output_is_refused():
    with pytest.raises(InputError, match=r"int64.*output="):
        entk.torch.factors(Lambda(lambda x: x.argmax(1)).append_linear(), torch.randn(2, 6))


def test_a_result_beyond_the_limit_is_refused_before_work():
    with pytest.raises(MemoryLimitError, match=r"at least .* bytes"):
        entk.torch.factors(nn.Linear(60, 60), torch.randn(100, 60), memory="1KiB")
