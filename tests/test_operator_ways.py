"""`KernelOperator` multiplies each leaf by Jacobians or by tiles of entries: which, and how."""

import numpy as np
import pytest

import entk
from bounds import assert_rounding, assert_same_bits
from cases import every_leaf, normal, outer
from entk import _entries, _multiplication

# Products of at most this many terms are added on the way to one entry of the result.
TERMS = 64


def every_leaf_by_entries(job, products, k):
    """Choose entries wherever there can be a choice."""
    return {name for name in products.names if job.problem.factors[name].kind != "Lookup"}


@pytest.mark.parametrize("rows", [1, 3])
def test_products_over_several_tiles_agree(rng, rows, monkeypatch):
    monkeypatch.setattr(_entries, "MOST", 4)
    monkeypatch.setattr(_entries, "FEWEST", 1)
    monkeypatch.setattr(_multiplication, "entries_that_pay", every_leaf_by_entries)
    left, right = (every_leaf(rng, n, rows, dtype="float64") for n in (11, 6))
    for outputs in [None] if rows == 1 else ["full", "sum", "trace", 2]:
        kernel, v = entk.assemble(left, outputs=outputs), rng.standard_normal(11 * rows)
        assert_rounding(
            entk.KernelOperator(left, outputs=outputs) @ v[: len(kernel)],
            kernel @ v[: len(kernel)],
            TERMS,
        )
    cross, v = entk.assemble(left, right), rng.standard_normal((6 * rows, 2))
    op = entk.KernelOperator(left, right)
    assert_rounding(op @ v, cross @ v, TERMS)
    assert_rounding(op.T @ (op @ v), cross.T @ (cross @ v), 4 * TERMS)


def test_each_leaf_is_multiplied_in_the_way_that_takes_fewer_operations(rng):
    n = 40
    wide, narrow = outer(rng, n, d_in=300, d_out=200), outer(rng, n, t=30, d_in=3, d_out=2)
    ids = entk.Lookup(np.arange(n)[:, None], normal(rng, (n, 1, 400)))
    factors = entk.Factors({"wide": wide, "narrow": narrow, "ids": ids})
    kernel = Multiplied(entk.KernelOperator(factors))
    assert kernel.ways(1) == (["wide"], ["narrow", "ids"])
    assert kernel.ways(30) == (["wide", "narrow"], ["ids"])
    many = factors.take(np.zeros(9000, int))
    assert Multiplied(entk.KernelOperator(many)).ways(1) == ([], [*factors])
    v = rng.standard_normal((n, 3))
    assert_rounding(
        entk.KernelOperator(factors) @ v, entk.assemble(factors, dtype="float64") @ v, 60_000
    )


class Multiplied:
    """Names of leaves by the way in which an operator multiplies them."""

    def __init__(self, op):
        self._multiplication = op._multiplication

    def ways(self, vectors):
        """Return what goes by entries, and what by Jacobians."""
        entries, jacobians = self._multiplication.ways(vectors)
        return (
            [] if entries is None else entries.problem.names,
            [] if jacobians is None else jacobians.names,
        )


def test_without_room_for_a_tile_all_leaves_go_by_jacobians(rng, monkeypatch):
    factors = entk.Factors({"w": outer(rng, 600, d_in=90, d_out=80, dtype="float64")})
    v = rng.standard_normal((600, 8))
    op = entk.KernelOperator(factors, memory="6MiB")
    assert Multiplied(op).ways(8) == (["w"], [])
    got = op @ v
    monkeypatch.setattr(_multiplication, "entries_that_pay", lambda *_: set())
    assert_same_bits(got, entk.KernelOperator(factors, memory="6MiB") @ v)


def test_entries_that_were_added_before_room_ran_out_do_not_stay(rng, monkeypatch):
    monkeypatch.setattr(_entries, "MOST", 4)
    factors = entk.Factors({"w": outer(rng, 11, d_in=90, d_out=80, dtype="float64")})
    op, v, add, calls = (
        entk.KernelOperator(factors),
        rng.standard_normal((11, 2)),
        _entries._add,
        [],
    )

    def once(*given):
        calls.append(given)
        if len(calls) > 1:
            raise entk.MemoryLimitError("no room")
        add(*given)

    monkeypatch.setattr(_entries, "_add", once)
    assert_rounding(op @ v, entk.assemble(factors) @ v, 90 * 80)
    assert len(calls) == 2


def test_threads_do_not_choose_the_way_under_a_tight_limit(rng):
    factors = entk.Factors({"w": outer(rng, 600, d_in=90, d_out=80, dtype="float64")})
    v, ways = rng.standard_normal((600, 32)), []
    for memory in range(4 << 20, 10 << 20, 1 << 15):
        ops = [entk.KernelOperator(factors, memory=memory, threads=count) for count in (1, 16)]
        ways.append(Multiplied(ops[0]).ways(32))
        assert Multiplied(ops[1]).ways(32) == ways[-1]
        assert_same_bits(ops[1] @ v, ops[0] @ v)
    assert ways[0] != ways[-1]
