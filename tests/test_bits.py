"""The same bits: promises P1 (in RAM), P2, P3, P4, P6 and P7 of ``entk.assemble``."""

import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import entk
import golden
from bounds import assert_same_bits
from cases import DTYPES, LEAVES, every_leaf, family, integers, mlp, one_leaf, outer
from entk import _plan
from isolated import run_json
from layouts import LAYOUTS, relaid
from memory import smallest

# P1: any threads, tile, memory and layout. -------------------------------------------------------

THREADS = (1, 2, 3, 5, 8, 16)
TILES = (1, 7, 16, 33, 64, 100, 128)
WIDTHS = (1, 2, 255, 256, 257, 515)
SIZES = (1, 2, 31, 65, 257)
CONFIGURATIONS = 8


def configurations(rng, n):
    """Draw settings that must not change a bit: each row of the product is met now and then."""
    for _ in range(CONFIGURATIONS):
        yield {
            "threads": int(rng.choice(THREADS)),
            "tile": int(rng.choice([*TILES, n, n + 1])),
            "memory": rng.choice([None, 2**27, 2**30]),
            "layout": str(rng.choice(list(LAYOUTS))),
        }


def assert_one_result(rng, factors, **options):
    """Assert that `factors` give the same bits in many settings."""
    expected = entk.assemble(factors, **options)
    for setting in configurations(rng, factors.n):
        layout = setting.pop("layout")
        got = entk.assemble(relaid(factors, layout), **setting, **options)
        assert_same_bits(got, expected)


def test_p1_the_kinds_of_leaves_meet_every_contraction(rng):
    """A contraction that no test meets has bits that no test holds."""
    met = {leaf.contraction for leaf in entk.plan(every_leaf(rng)).leaves}
    # One side expanded is for `engine="blas"`, which promises no bits.
    assert met == set(_plan._WORDS.values()) - {_plan._WORDS["one-side"]}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rows", [1, 3])
def test_p1_every_kind_of_leaf_at_every_size(rng, n, rows):
    assert_one_result(rng, every_leaf(rng, n, rows))


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_p1_every_width_and_type(rng, d, dtype):
    assert_one_result(rng, family("F3-gaussian", rng, 33, d, 5, dtype=dtype))


@pytest.mark.parametrize("outputs", ["full", "sum", "trace", "diagonal", 1, "weights"])
def test_p1_every_contraction_of_outputs(rng, outputs):
    factors = every_leaf(rng, 31, 3)
    if outputs == "weights":
        outputs = rng.standard_normal((31, 3))
    assert_one_result(rng, factors, outputs=outputs)


@pytest.mark.parametrize("options", [{"accumulate": "float64"}, {"dtype": "float64"}])
def test_p1_every_precision(rng, options):
    assert_one_result(rng, every_leaf(rng, 31), **options)


@pytest.mark.parametrize("t", [2, 9, 40])
def test_p1_every_number_of_positions(rng, t):
    assert_one_result(rng, entk.Factors({"w": outer(rng, 33, t=t, d_in=12, d_out=10)}))


def wide_and_many(rng, n):
    """More than one pass is needed where memory is short."""
    sizes = [{"d_in": 1000, "d_out": 3}, {"t": 20, "d_in": 30, "d_out": 40}, {"t": 3, "g": 2}]
    leaves = {str(i): outer(rng, n, **size) for i, size in enumerate(sizes)}
    return entk.Factors({**leaves, **every_leaf(rng, n)})


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [65, 300])
def test_p1_the_smallest_memory_gives_the_same_bits(rng, n, threads):
    factors = wide_and_many(rng, n)
    expected = entk.assemble(factors)
    for tile in (16, 4096):
        limit, _ = smallest(factors, tile=tile, threads=threads)
        got = entk.assemble(factors, tile=tile, threads=threads, memory=limit)
        assert_same_bits(got, expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_p1_the_smallest_memory_gives_the_same_bits_for_every_kind_of_leaf(rng, rows):
    for kind in LEAVES:
        factors = one_leaf(kind, rng, 65, rows)
        limit, _ = smallest(factors, threads=1)
        got = entk.assemble(factors, threads=1, memory=limit)
        assert_same_bits(got, entk.assemble(factors))


def test_p1_leaves_that_share_arrays_give_the_bits_of_leaves_that_do_not(rng):
    shared = mlp(rng, 33)
    apart = {name: leaf._rebuild(lambda p: p.given().array.copy()) for name, leaf in shared.items()}
    assert_same_bits(entk.assemble(shared), entk.assemble(apart))


def test_p1_an_array_to_fill_gets_the_same_bits(rng):
    factors = every_leaf(rng, 31)
    out = np.empty((31, 62), np.float32, order="F")[:, ::-2]
    assert_same_bits(entk.assemble(factors, out=out, tile=16), entk.assemble(factors))


# P2: any instruction set. ------------------------------------------------------------------------

PRINT_HASHES = "import json, golden; print(json.dumps(golden.hashes()))"


def instruction_sets():
    """Instruction sets this CPU has, by its own account."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    found = ["portable"]
    if {"avx2", "fma"} <= flags:
        found.append("avx2")
    if "avx512f" in flags:
        found.append("avx512")
    if platform.machine() in ("aarch64", "arm64"):
        found.append("neon")
    return found


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "neon"])
def test_p2_golden_problems_have_the_same_bits_on_every_instruction_set(isa):
    if isa not in instruction_sets():
        assert isa not in os.environ.get("ENTK_REQUIRE_ISA", "").split(","), f"{isa} is missing"
        pytest.skip(f"this CPU has no {isa}")
    expected = json.loads(golden.FILE.read_text())
    assert run_json(PRINT_HASHES, ENTK_ISA=isa) == expected


def test_p2_golden_problems_have_the_same_bits_here():
    assert golden.hashes() == json.loads(golden.FILE.read_text())


# P3: symmetry. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LEAVES)
def test_p3_a_symmetric_result_equals_its_transpose(rng, kind, dtype):
    kernel = entk.assemble(one_leaf(kind, rng, 37, dtype=dtype), tile=16)
    assert_same_bits(kernel, kernel.T)


@pytest.mark.parametrize("outputs", ["full", "sum", "trace", "diagonal", 1, "weights"])
def test_p3_every_contraction_of_outputs_is_symmetric(rng, outputs):
    if outputs == "weights":
        outputs = rng.standard_normal((37, 3))
    kernel = entk.assemble(every_leaf(rng, 37, 3), outputs=outputs, tile=16)
    assert_same_bits(kernel, kernel.swapaxes(-1, -2))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", LEAVES)
def test_p3_a_copy_as_the_other_side_gives_the_same_bits(rng, kind, rows):
    factors = one_leaf(kind, rng, 37, rows)
    copy = factors.take(np.arange(37))
    assert_same_bits(entk.assemble(factors, copy), entk.assemble(factors))


# P4: position independence. ----------------------------------------------------------------------

N = 40


@st.composite
def problems(draw):
    """Factors of one kind of leaf and a choice of its examples."""
    kind = draw(st.sampled_from([*LEAVES, "all"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    make = every_leaf if kind == "all" else lambda *args: one_leaf(kind, *args)
    return make(rng, N, draw(st.sampled_from([1, 2])))


def block_index(examples, rows):
    """Rows of a full kernel that belong to `examples`."""
    return (np.asarray(examples, int)[:, None] * rows + np.arange(rows)).ravel()


@settings(deadline=None, max_examples=25)
@given(problems(), st.permutations(range(N)), st.sampled_from([16, 4096]))
def test_p4_permuted_examples_give_the_permuted_kernel(factors, order, tile):
    index = block_index(order, factors.rows)
    permuted = entk.assemble(factors.take(order), tile=tile)
    assert_same_bits(permuted, entk.assemble(factors)[np.ix_(index, index)])


@settings(deadline=None, max_examples=25)
@given(problems(), *(st.lists(st.integers(0, N - 1), max_size=20) for _ in range(2)))
def test_p4_chosen_examples_give_the_chosen_entries(factors, left, right):
    rows, columns = (block_index(side, factors.rows) for side in (left, right))
    cross = entk.assemble(factors.take(left), factors.take(right))
    assert_same_bits(cross, entk.assemble(factors)[np.ix_(rows, columns)])


@settings(deadline=None, max_examples=25)
@given(problems(), st.integers(0, N - 1), st.integers(0, N - 1))
def test_p4_equal_samples_give_equal_rows(factors, original, place):
    order = [*range(N)]
    order[place] = original
    kernel = entk.assemble(factors.take(order), tile=16)
    a, b = (block_index([i], factors.rows) for i in (original, place))
    assert_same_bits(kernel[a], kernel[b])


def test_p4_more_positions_than_one_chain_block(rng):
    factors = entk.Factors({"w": outer(rng, 9, t=30, d_in=40, d_out=40)})
    order = rng.permutation(9)
    expected = entk.assemble(factors)[np.ix_(order, order)]
    assert_same_bits(entk.assemble(factors.take(order)), expected)


# P6: errors are deterministic. -------------------------------------------------------------------


def test_p6_the_same_bad_input_gives_the_same_message(rng):
    acts = rng.standard_normal((90, 5)).astype(np.float32)
    acts[[40, 80], [1, 2]] = np.nan
    cots = rng.standard_normal((90, 3)).astype(np.float32)
    cots[3, 0] = np.inf
    factors = entk.Factors({"a": outer(rng, 90), "b": entk.Outer(acts, cots), "c": outer(rng, 90)})
    messages = set()
    for threads in THREADS:
        for tile in (7, 16, 4096):
            with pytest.raises(entk.NonFiniteError) as caught:
                entk.assemble(factors, threads=threads, tile=tile)
            messages.add(str(caught.value))
    assert len(messages) == 1, messages


def test_p6_the_lowest_layer_and_sample_are_named(rng):
    bad = np.ones((90, 3), np.float32)
    bad[[70, 30], 1] = np.nan
    late, early = bad.copy(), bad[::-1].copy()
    leaves = {"a": entk.Dense(late), "b": entk.Dense(early)}
    with pytest.raises(entk.NonFiniteError, match=r"layer 'a' Jacobian\[30, 1\] is nan; 2 samples"):
        entk.assemble(leaves, threads=8, tile=7)


def test_p6_overflow_has_one_message(rng):
    acts = rng.standard_normal((90, 5)).astype(np.float32)
    acts[20:] *= 1e19
    factors = entk.Factors({"a": outer(rng, 90), "b": entk.Outer(acts, acts)})
    messages = set()
    for threads in THREADS:
        for tile in (7, 16, 4096):
            with pytest.raises(entk.KernelOverflowError) as caught:
                entk.assemble(factors, threads=threads, tile=tile)
            messages.add(str(caught.value))
    assert len(messages) == 1, messages


# P7: small integers are exact. -------------------------------------------------------------------


def integer_kernel(factors):
    """The kernel in int64."""
    total = np.zeros((factors.n, factors.n), np.int64)
    for leaf in factors.values():
        a, c = (np.asarray(x).astype(np.int64) for x in (leaf.acts, leaf.cots))
        a, c = (x if x.ndim == 3 else x[:, None] for x in (a, c))
        jac = np.einsum("nta,ntb->nab", a, c).reshape(factors.n, -1)
        total += jac @ jac.T
    return total


@pytest.mark.parametrize("dtype", [*DTYPES, "int8", "int64"])
@pytest.mark.parametrize(("d_in", "t"), [(1, None), (33, None), (257, None), (515, None), (20, 9)])
def test_p7_small_integers_are_exact(rng, dtype, d_in, t):
    factors = integers(rng, 37, d_in, 5, t, dtype=dtype)
    places = t or 1
    assert (9 * d_in * places) * (9 * 5 * places) * len(factors) < 2**24
    for options in ({}, {"tile": 16, "threads": 3}, {"accumulate": "float64", "dtype": "float64"}):
        np.testing.assert_array_equal(entk.assemble(factors, **options), integer_kernel(factors))


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_p7_small_integers_are_exact_on_every_instruction_set(isa):
    if isa not in instruction_sets():
        pytest.skip(f"this CPU has no {isa}")
    code = """
import numpy as np, entk
from cases import integers
from test_bits import integer_kernel
factors = integers(np.random.default_rng(0), 37, 515, 5)
print(int((entk.assemble(factors) != integer_kernel(factors)).sum()))
"""
    assert run_json(code, ENTK_ISA=isa) == 0
