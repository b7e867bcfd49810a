"""Factors of single layers against autograd; many are cases that other tools get wrong."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

from bounds import assert_extracted  # noqa: E402
from entk import _forms  # noqa: E402
from torch_networks import (  # noqa: E402
    Attention,
    Bare,
    CellLoop,
    CrossAttention,
    Encoder,
    LowRank,
    Recurrent,
    TiedReadout,
    UsedTwice,
    sequential,
)
from torch_oracle import engines, error, in_type, kinds  # noqa: E402

# Said by PyTorch once a process, about its own kernels.
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]


def scaled(module):
    """Set the magnitudes of a weight normalisation apart from the norms."""
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(1.7)
    return module


def normalised(layer, shape):
    """Return a network with a normalisation whose parameters and statistics are not trivial."""
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(shape, 3))


def ids(count, *shape):
    return torch.randint(0, count, shape)


def image(*shape):
    return torch.randn(2, *shape)


def frozen(module, *layers):
    """Return a module whose layers of these numbers are not trained."""
    for number in layers:
        module[number].requires_grad_(False)
    return module


CASES = {
    "linear": lambda: (sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), image(6)),
    "linear on positions": lambda: (sequential(nn.Linear(6, 9), nn.Tanh()), image(2, 6)),
    "linear on a grid": lambda: (sequential(nn.Linear(12, 9), nn.Tanh()), image(2, 2, 12)),
    "convolution with stride and padding": lambda: (
        sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten()),
        image(3, 5, 5),
    ),
    "convolution with groups and dilation": lambda: (
        sequential(nn.Conv2d(8, 8, 3, groups=2, dilation=2, stride=(2, 1)), nn.Tanh()),
        image(8, 7, 6),
    ),
    "depthwise convolution": lambda: (nn.Conv2d(4, 8, 3, groups=4), image(4, 4, 4)),
    "convolution 'same' with an even kernel": lambda: (
        sequential(nn.Conv2d(6, 9, 2, padding="same", dilation=2), nn.Tanh()),
        image(6, 3, 2),
    ),
    "convolution 'valid' in one dimension": lambda: (
        nn.Conv1d(6, 9, 4, padding="valid", stride=3),
        image(6, 8),
    ),
    "circular convolution": lambda: (
        nn.Conv2d(6, 9, 3, padding=1, padding_mode="circular"),
        image(6, 3, 3),
    ),
    "reflected convolution": lambda: (
        nn.Conv1d(6, 9, 3, padding=1, padding_mode="reflect"),
        image(6, 4),
    ),
    "convolution in three dimensions": lambda: (
        nn.Conv3d(4, 8, (2, 1, 2), padding=(1, 0, 0)),
        image(4, 2, 2, 3),
    ),
    "transposed convolution": lambda: (
        nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
        image(8, 2, 3),
    ),
    "transposed convolution with groups and dilation": lambda: (
        nn.ConvTranspose1d(8, 6, 3, groups=2, dilation=3, output_padding=2, stride=1),
        image(8, 3),
    ),
    "transposed convolution in three dimensions": lambda: (
        nn.ConvTranspose3d(4, 6, 2, stride=2),
        image(4, 1, 1, 2),
    ),
    "LayerNorm": lambda: (normalised(nn.LayerNorm(6), 12), image(2, 6)),
    "RMSNorm": lambda: (normalised(nn.RMSNorm(6), 12), image(2, 6)),
    "GroupNorm": lambda: (normalised(nn.GroupNorm(2, 6), 24), image(6, 4)),
    "InstanceNorm": lambda: (normalised(nn.InstanceNorm1d(6, affine=True), 24), image(6, 4)),
    "BatchNorm in evaluation mode": lambda: (normalised(nn.BatchNorm1d(6), 6), image(6)),
    "PReLU": lambda: (sequential(nn.Linear(6, 5), nn.PReLU(5), nn.Linear(5, 3)), image(6)),
    "embedding": lambda: (sequential(nn.Embedding(40, 5), nn.Linear(5, 2)), ids(40, 3, 4)),
    "embedding with padding": lambda: (
        sequential(nn.Embedding(20, 5, padding_idx=-17), nn.Linear(5, 2)),
        ids(5, 3, 4),
    ),
    "embedding with a largest norm": lambda: (
        sequential(nn.Embedding(20, 5, max_norm=1.0), nn.Linear(5, 2)),
        ids(20, 3, 4),
    ),
    "embedding scaled by frequency": lambda: (
        sequential(nn.Embedding(20, 5, scale_grad_by_freq=True), nn.Linear(5, 2)),
        ids(5, 3, 4),
    ),
    "sparse embedding": lambda: (
        sequential(nn.Embedding(20, 5, sparse=True), nn.Linear(5, 2)),
        ids(20, 3, 4),
    ),
    "bag of embeddings": lambda: (
        sequential(nn.EmbeddingBag(20, 5, padding_idx=3), nn.Linear(5, 2)),
        ids(8, 3, 4),
    ),
    "weighted bag": lambda: (
        nn.EmbeddingBag(20, 5, mode="sum"),
        {"input": ids(20, 3, 4), "per_sample_weights": torch.randn(3, 4)},
    ),
    "largest of a bag": lambda: (nn.EmbeddingBag(20, 5, mode="max"), ids(20, 3, 4)),
    "one module used twice": lambda: (UsedTwice(), image(6)),
    "tied embedding and readout": lambda: (TiedReadout(), ids(30, 3, 2)),
    "bare parameters": lambda: (Bare(), image(2, 6)),
    "MultiheadAttention": lambda: (Attention(), image(3, 12)),
    "MultiheadAttention with extra keys": lambda: (
        Attention(add_bias_kv=True, add_zero_attn=True, bias=False),
        image(3, 12),
    ),
    "MultiheadAttention across": lambda: (
        CrossAttention(),
        (image(3, 12), image(2, 10), image(2, 9)),
    ),
    "TransformerEncoderLayer under a mask": lambda: (Encoder(), image(3, 12)),
    "LSTM": lambda: (Recurrent(nn.LSTM), image(3, 4)),
    "LSTM of two layers in both directions": lambda: (
        Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        image(3, 4),
    ),
    "LSTM with projections": lambda: (Recurrent(nn.LSTM, proj_size=3, bias=False), image(3, 4)),
    "GRU": lambda: (Recurrent(nn.GRU, num_layers=2, bidirectional=True), image(3, 4)),
    "RNN with tanh": lambda: (Recurrent(nn.RNN, num_layers=2), image(3, 4)),
    "RNN with relu": lambda: (Recurrent(nn.RNN, nonlinearity="relu"), image(3, 4)),
    "LSTMCell": lambda: (CellLoop(nn.LSTMCell), image(3, 4)),
    "GRUCell": lambda: (CellLoop(nn.GRUCell), image(3, 4)),
    "RNNCell": lambda: (CellLoop(nn.RNNCell), image(3, 4)),
    "weight normalisation": lambda: (
        scaled(parametrizations.weight_norm(nn.Linear(6, 4))),
        image(6),
    ),
    "spectral normalisation": lambda: (parametrizations.spectral_norm(nn.Linear(6, 4)), image(6)),
    "low-rank update of a frozen layer": lambda: (LowRank(), image(8)),
    "frozen layers": lambda: (
        frozen(sequential(nn.Conv1d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)), 0),
        image(3, 4),
    ),
    "ReLU in place": lambda: (
        sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 3)),
        image(6),
    ),
}


# What at least one of five other tools gets wrong without a word, drops or refuses.
ELSEWHERE = {
    "linear on positions", "linear on a grid", "convolution with stride and padding",
    "convolution with groups and dilation", "convolution 'same' with an even kernel",
    "circular convolution", "transposed convolution", "LayerNorm", "GroupNorm",
    "BatchNorm in evaluation mode", "PReLU", "embedding", "one module used twice",
    "tied embedding and readout", "bare parameters", "MultiheadAttention", "LSTM",
    "weight normalisation", "frozen layers",
}  # fmt: skip


def test_every_case_that_other_tools_fail_on_is_tried_here():
    assert set(CASES) >= ELSEWHERE


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("outputs", ["sum", "full"])
def test_kernel_equals_that_of_autograd(name, outputs):
    module, x = CASES[name]()
    x = in_type(x, torch.float64)
    relative, _ = error(in_type(module, torch.float64).eval(), x, outputs)
    assert_extracted(relative)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_stays_within_rounding(name):
    module, x = CASES[name]()
    relative, factors = error(module.eval(), x)
    assert_extracted(relative, "float32")
    assert factors.dtype == "float32"


def drawn_convolution(seed):
    """Return a convolution, plain or transposed, with drawn sizes, and an input that fits."""
    draw = np.random.default_rng(seed)
    axes, groups = int(draw.integers(1, 4)), int(draw.integers(1, 4))
    size, stride, dilation = (tuple(map(int, draw.integers(1, 4, axes))) for _ in range(3))
    padding = tuple(int(draw.integers(0, k + 1)) for k in size)
    channels = (groups * int(draw.integers(1, 4)), groups * int(draw.integers(1, 4)))
    options = {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding}
    if draw.integers(2):
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
        most = zip(stride, dilation, strict=True)
        options["output_padding"] = tuple(int(draw.integers(max(pair))) for pair in most)
        places = [int(draw.integers(3, 5)) + p for p in padding]
    else:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        places = [
            d * (k - 1) + int(draw.integers(1, 4)) for d, k in zip(dilation, size, strict=True)
        ]
    return kind(*channels, size, **options), torch.randn(2, channels[0], *places)


@pytest.mark.parametrize("seed", range(24))
def test_convolutions_of_any_geometry_are_exact(seed, monkeypatch):
    module, x = in_type(drawn_convolution(seed), torch.float64)
    module = sequential(module, nn.Tanh())
    monkeypatch.setattr(_forms, "choose", lambda *_: ("outer", "asked for"))
    relative, factors = error(module, x)
    assert_extracted(relative)
    assert kinds(factors)["0.weight"] == "Outer"


STRUCTURED = {
    "linear": {"0.weight": "Outer", "2.weight": "Outer"},
    "linear on positions": {"0.weight": "Outer"},
    "convolution with stride and padding": {"0.weight": "Dense"},
    "convolution 'same' with an even kernel": {"0.weight": "Outer"},
    "transposed convolution in three dimensions": {"weight": "Outer"},
    "embedding": {"0.weight": "Lookup"},
    "embedding with padding": {"0.weight": "Lookup"},
    "sparse embedding": {"0.weight": "Lookup"},
    "bag of embeddings": {"0.weight": "Lookup"},
    "weighted bag": {"weight": "Lookup"},
    "tied embedding and readout": {"e.weight": "Tied"},
    "MultiheadAttention": {"a.in_proj_weight": "Outer", "a.out_proj.weight": "Outer"},
    "MultiheadAttention across": {"a.q_proj_weight": "Outer", "a.k_proj_weight": "Outer"},
    "LSTM": {"r.weight_ih_l0": "Outer", "r.weight_hh_l0": "Outer"},
    "LSTM with projections": {"r.weight_hr_l0": "Outer", "r.weight_hh_l0": "Outer"},
    "GRU": {"r.weight_ih_l1_reverse": "Outer", "r.weight_hh_l1_reverse": "Outer"},
    "LSTMCell": {"r.weight_ih": "Outer", "r.weight_hh": "Outer"},
    "low-rank update of a frozen layer": {"a.weight": "Outer", "b.weight": "Outer"},
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_weights_keep_their_structure(name):
    import entk.torch

    module, x = CASES[name]()
    factors = entk.torch.factors(module.eval(), x)
    assert {k: kinds(factors)[k] for k in STRUCTURED[name]} == STRUCTURED[name]


@pytest.mark.parametrize("name", [n for n in CASES if n != "embedding with a largest norm"])
def test_no_layer_needs_the_loop_over_examples(name):
    import entk.torch

    module, x = CASES[name]()
    assert engines(entk.torch.factors(module.eval(), x)) == "vmap"
