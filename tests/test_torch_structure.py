"""Which leaves a parameter becomes: parts, ties, blocks, transposes, and nothing at all."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from bounds import DIFFERENT, assert_extracted  # noqa: E402
from entk import reference  # noqa: E402
from entk.torch._views import IndexMap, View  # noqa: E402
from torch_networks import (  # noqa: E402
    Batched,
    Functional,
    FusedParts,
    Joined,
    LearnedQueries,
    Partial,
    RowsByIndex,
    TiedAutoencoder,
    TiedConvolutions,
    TiedReadout,
    UsedTwice,
)
from torch_oracle import difference, error, gradients, in_type, kinds  # noqa: E402


def checked(module, x, outputs="full"):
    """Return the factors of a module in float64, after comparing them with autograd."""
    module, x = in_type(module, torch.float64), in_type(x, torch.float64)
    relative, factors = error(module, x, outputs)
    assert_extracted(relative)
    return factors


def test_parts_of_a_fused_parameter_are_leaves_of_their_own():
    factors = checked(FusedParts(), torch.randn(2, 2, 10), "sum")
    assert factors.leaves == tuple(
        f"{name}[{i}]"
        for name, parts in (("qkv", 3), ("kv", 2), ("stack", 2))
        for i in range(parts)
    )
    assert set(kinds(factors).values()) == {"Outer"}


def test_joined_parameters_keep_their_structure():
    factors = checked(Joined(), torch.randn(2, 9))
    assert {n: k for n, k in kinds(factors).items() if "kernels" not in n} == {
        "q": "Outer", "k": "Outer", "a": "Outer", "b": "Outer", "mixed": "Tied",
    }  # fmt: skip


def test_a_parameter_is_data_to_the_weight_that_meets_it():
    factors = checked(LearnedQueries(), torch.randn(2, 1, 12), "sum")
    found = kinds(factors)
    assert found["project.weight"] == found["values.weight"] == "Outer"
    assert found["queries"] == found["token"] == found["low"] == found["rank"] == "Dense"


def test_every_spelling_of_a_matrix_product_is_structured():
    factors = checked(Functional(), torch.randn(2, 2, 8), "sum")
    found = kinds(factors)
    assert found.pop("bias") == found.pop("pairs.bias") == "Dense"
    assert set(found.values()) == {"Outer"}


def test_blocks_of_a_weight_stay_blocks():
    factors = checked(Batched(), torch.randn(2, 6))
    assert factors["experts"].acts.shape == (2, 3, 1, 6)
    assert factors["more"].cots.shape == (2, factors.rows, 3, 1, 6)


def test_uses_of_one_weight_are_positions():
    factors = checked(UsedTwice(), torch.randn(2, 6), "sum")
    assert factors["l.weight"].acts.shape == (2, 2, 6)


def test_rows_read_by_index_are_looked_up():
    factors = checked(RowsByIndex(), torch.randint(0, 20, (3, 2)))
    assert set(kinds(factors).values()) == {"Lookup"}
    ids = factors["table"].ids
    assert ids.min() >= 0
    assert (ids.sum(1) == 2 * 39).all()


@pytest.mark.parametrize("make", [TiedAutoencoder, TiedConvolutions], ids=lambda m: m.__name__)
def test_two_orientations_of_one_matrix_are_tied(make):
    width = {"TiedAutoencoder": (9,), "TiedConvolutions": (8, 3)}[make.__name__]
    factors = checked(make(), torch.randn(2, *width))
    leaf = factors["w"]
    assert [use.transposed for use in leaf.uses] == [False, True]


def test_a_tied_readout_has_its_cross_terms():
    module = TiedReadout().double()
    ids = torch.randint(0, 30, (3, 2))
    factors = checked(module, ids)
    lookup, readout = factors["e.weight"].uses
    apart = entk.Factors({"a": lookup, "b": readout}, outputs="full")
    own = reference.assemble(factors.select("e.weight"))
    assert difference(reference.assemble(apart), own) > DIFFERENT


def test_tied_parameters_are_named_after_their_first():
    factors = entk.torch.factors(TiedReadout(), torch.randint(0, 30, (3, 2)))
    assert factors.leaves == ("e.weight", "l.weight", "l.bias")


def test_parameters_without_gradient_cost_nothing():
    factors = checked(Partial(), torch.randn(3, 6))
    unused = factors["unused"]
    assert unused.jac.strides == (0, 0, 0)
    assert "no gradient" in factors.reason("unused")
    assert not np.any(factors["cut.weight"].cots)


def test_dense_leaves_are_in_the_order_of_the_parameter():
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(75, 2)).double()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    for structure in (True, False):
        factors = entk.torch.factors(module, x, outputs="full", structure=structure)
        assert kinds(factors)["0.weight"] == "Dense"
        assert_extracted(difference(factors["0.weight"].jac, gradients(module, x)[..., :24]))


def test_without_structure_every_leaf_is_the_plain_jacobian():
    module = FusedParts().double()
    x = torch.randn(2, 2, 10, dtype=torch.float64)
    factors = entk.torch.factors(module, x, structure=False)
    assert factors.leaves == tuple(name for name, _ in module.named_parameters())
    jac = np.concatenate([leaf.jac for leaf in factors.values()], 1)
    row = torch.full((1, 10), 10**-0.5, dtype=torch.float64)
    assert_extracted(difference(jac, gradients(module, x, row)[:, 0]))


@pytest.mark.parametrize("audit", [True, False])
@pytest.mark.parametrize("how", ["item", "masked_fill_", "mul_", "mask"])
def test_a_weight_that_is_written_to_before_its_use_is_dense(how, audit):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 9))

        def forward(self, x):
            w = self.w.clone()
            mask = torch.ones(8, 9, dtype=x.dtype).triu()
            if how == "item":
                w[2] = 0.0
            elif how == "masked_fill_":
                w.masked_fill_(mask == 0, 0.0)
            elif how == "mul_":
                w.mul_(mask)
            else:
                w = w * mask
            return x @ w

    module, x = Masked().double(), torch.randn(2, 8, dtype=torch.float64)
    relative, factors = error(module, x, audit=audit)
    assert_extracted(relative)
    assert kinds(factors) == {"w": "Dense"}


def test_overlapping_parts_become_dense():
    class Overlap(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(12, 10))

        def forward(self, x):
            return x @ self.w[:8].T @ self.w[4:12]

    factors = checked(Overlap(), torch.randn(2, 10))
    assert kinds(factors) == {"w": "Dense"}
    assert "overlap" in factors.reason("w")


def test_entries_shown_twice_become_dense():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(9))

        def forward(self, x):
            return x @ self.w.expand(8, 9)

    assert kinds(checked(Repeated(), torch.randn(2, 8))) == {"w": "Dense"}


class Rearranged(nn.Module):
    """Weights used flipped, rolled, and repeated once."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 6, 3))
        self.w = nn.Parameter(torch.randn(8, 9))

    def forward(self, x):
        x = nn.functional.conv1d(x, self.kernel.flip(-1)).mT
        return torch.bmm(x, self.w.roll(2, 0).repeat(len(x), 1, 1)).sum(1)


def test_weights_that_are_only_rearranged_keep_their_structure():
    factors = checked(Rearranged(), torch.randn(2, 6, 5))
    assert kinds(factors) == {"kernel": "Outer", "w": "Outer"}
    dense = checked(Rearranged(), torch.randn(2, 6, 40))
    assert kinds(dense) == {"kernel": "Dense", "w": "Dense"}


def test_index_maps_tell_views_apart():
    shape = torch.Size((4, 6))
    whole = View("w").index_map(shape, lambda w: w)
    turned = View("w").then(lambda w: w.T).index_map(shape, lambda w: w)
    assert turned.same(whole.transposed())
    assert not turned.same(whole)
    top, bottom, right = (
        View("w").index_map(shape, lambda w, part=part: w[part])
        for part in (slice(0, 2), slice(2, 4), (slice(None), slice(3, 6)))
    )
    assert top.disjoint(bottom)
    assert not top.disjoint(right)
    left = View("w").index_map(shape, lambda w: w[:, :3])
    assert left.disjoint(right)


def test_an_index_map_that_is_no_view_spells_its_places():
    shape = torch.Size((2, 3))
    spelled = View("w").index_map(shape, lambda w: w.T.reshape(2, 3))
    assert spelled.places.tolist() == [[0, 3, 1], [4, 2, 5]]
    strided = IndexMap((2, 3), 0, (3, 1))
    assert not spelled.same(strided)
    jac = torch.zeros(1, 1, 6)
    spelled.add(jac, torch.arange(6.0).reshape(1, 1, 2, 3))
    assert jac[0, 0, [0, 3, 1, 4, 2, 5]].tolist() == list(range(6))


def test_forms_follow_the_count():
    narrow = entk.torch.factors(nn.Linear(4, 4), torch.randn(2, 50, 4))
    wide = entk.torch.factors(nn.Linear(40, 40), torch.randn(2, 5, 40))
    assert kinds(narrow)["weight"] == "Dense"
    assert kinds(wide)["weight"] == "Outer"
    assert "dense is smaller" in narrow.reason("weight")
    assert "factors are smaller" in wide.reason("weight")
