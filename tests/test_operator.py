"""`KernelOperator`: products, blocks and solvers agree with the assembled kernel."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, cg, eigsh, lobpcg

import entk
from bounds import U, assert_rounding, assert_same_bits
from cases import LEAVES, every_leaf, mlp, normal, one_leaf, outer
from entk import _core, _multiplication, reference
from entk._measure import Cost

# Products of at most this many terms are added on the way to one entry of the result.
TERMS = 64
# Seconds in which a Ctrl-C must be heard on a busy machine; 0.2 where it is quiet.
PROMPT = 1.0


@pytest.fixture(params=["jacobians", "entries"])
def way(request, monkeypatch):
    """Make operators multiply all leaves that can be in one of the two ways."""

    def chosen(job, products, k):
        leaves = job.problem.factors
        can = {name for name in products.names if leaves[name].kind != "Lookup"}
        return can if request.param == "entries" else set()

    monkeypatch.setattr(_multiplication, "entries_that_pay", chosen)
    return request.param


both_ways = pytest.mark.usefixtures("way")


def modes(rng, rows, n):
    """Every way to ask for one matrix of factors with `rows` output rows."""
    if rows == 1:
        return [None]
    each = rng.standard_normal((n, rows))
    return ["full", "sum", "trace", 1, rng.standard_normal(rows), each]


@both_ways
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", [*LEAVES])
def test_products_agree_with_the_assembled_kernel(rng, kind, rows):
    factors = one_leaf(kind, rng, 7, rows, dtype="float64")
    for outputs in modes(rng, rows, 7):
        kernel = entk.assemble(factors, outputs=outputs)
        op = entk.KernelOperator(factors, outputs=outputs)
        assert isinstance(op, LinearOperator)
        assert (op.shape, op.dtype) == (kernel.shape, np.float64)
        for k in (1, 2, 9):
            v = rng.standard_normal((len(kernel), k))
            assert_rounding(op @ v, kernel @ v, TERMS)
            assert_rounding(op.rmatmat(v), kernel @ v, TERMS)
        assert_rounding(op.matvec(v[:, 0]), kernel @ v[:, 0], TERMS)
        assert_rounding(op.rmatvec(v[:, 0]), kernel @ v[:, 0], TERMS)


@both_ways
@pytest.mark.parametrize("rows", [1, 3])
def test_cross_products_agree_both_ways(rng, rows):
    left = every_leaf(rng, 7, rows, dtype="float64")
    right = every_leaf(rng, 4, rows, dtype="float64")
    asked = [None] if rows == 1 else ["full", "sum", "trace", 2]
    if rows > 1:
        asked.append((rng.standard_normal((7, rows)), rng.standard_normal((4, rows))))
    for outputs in asked:
        kernel = entk.assemble(left, right, outputs=outputs)
        op = entk.KernelOperator(left, right, outputs=outputs)
        v, u = rng.standard_normal((kernel.shape[1], 3)), rng.standard_normal(kernel.shape[0])
        assert_rounding(op @ v, kernel @ v, TERMS)
        assert_rounding(op.rmatvec(u), kernel.T @ u, TERMS)
        assert_rounding(op.T @ u, kernel.T @ u, TERMS)


@both_ways
@pytest.mark.parametrize("memory", [32_000, 80_000, 400_000])
@pytest.mark.parametrize("rows", [1, 3])
def test_any_memory_limit_gives_the_same_product(rng, rows, memory):
    factors = every_leaf(rng, 7, rows, dtype="float64")
    for outputs in modes(rng, rows, 7):
        whole = entk.KernelOperator(factors, outputs=outputs)
        v = rng.standard_normal((whole.shape[1], 5))
        tight = entk.KernelOperator(factors, outputs=outputs, memory=memory, threads=3)
        assert_rounding(tight @ v, whole @ v, TERMS)


@both_ways
@pytest.mark.parametrize("accumulate", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 2])
def test_threads_change_no_bits(rng, rows, accumulate):
    factors = every_leaf(rng, 700, rows, dtype="float32")
    v = rng.standard_normal((700 * rows, 33))

    def product(threads, k, **options):
        options |= {"threads": threads, "accumulate": accumulate}
        return entk.KernelOperator(factors, **options) @ v[:, :k]

    for k in (1, 33):
        alone = product(1, k)
        for threads in (2, 5):
            assert_same_bits(product(threads, k), alone)
    tight = {"memory": "3MiB"}
    assert_same_bits(product(4, 33, **tight), product(1, 33, **tight))


@both_ways
def test_instruction_sets_change_no_bits(rng, monkeypatch):
    factors = every_leaf(rng, 40, 2)
    v, found = rng.standard_normal((80, 5)), []
    for isa in _core.instruction_sets():
        monkeypatch.setenv("ENTK_ISA", isa)
        found.append(entk.KernelOperator(factors) @ v)
    for other in found[1:]:
        assert_same_bits(other, found[0])


@both_ways
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("width", [1, 5, 16, 20, 33, 48, 100])
def test_any_width_on_either_side_agrees_over_several_chains(rng, rows, width):
    leaf = outer(rng, 530, rows, d_in=width, d_out=101 - width, dtype="float64")
    factors = entk.Factors({"w": leaf, "b": entk.Dense(leaf.cots)})
    v = rng.standard_normal((530 * rows, 7))
    kernel = entk.assemble(factors)
    for accumulate, u in (("float64", U["float64"]), ("float32", U["float32"])):
        some = factors if accumulate == "float64" else _single(factors)
        got = entk.KernelOperator(some, accumulate=accumulate) @ v
        assert_rounding(got, kernel @ v, 8 * TERMS, u)


def _single(factors):
    return entk.Factors(
        {
            name: entk.Outer(leaf.acts.astype("f4"), leaf.cots.astype("f4"))
            if isinstance(leaf, entk.Outer)
            else entk.Dense(leaf.jac.astype("f4"))
            for name, leaf in factors.items()
        }
    )


def test_a_product_counts_what_it_adds_against_the_limit(rng):
    op = entk.KernelOperator(mlp(rng, 50), memory=20_000)
    assert np.isfinite(op @ np.ones((50, 2))).all()
    with pytest.raises(entk.MemoryLimitError, match="fewer vectors at a time"):
        op @ np.ones((50, 60))


@both_ways
@pytest.mark.parametrize("accumulate", ["float32", "float64"])
def test_a_product_stays_within_its_limit(rng, accumulate):
    # The tables of all vectors at once would take more than 100 MB.
    leaf = outer(rng, 600, d_in=900, d_out=900)
    factors = entk.Factors({"w": leaf, "j": entk.Dense(normal(rng, (600, 30_000)))})
    op = entk.KernelOperator(factors, accumulate=accumulate, memory="24MiB", threads=2)
    v = rng.standard_normal((600, 32)).astype(accumulate)
    op @ v[:, :1]
    with Cost() as cost:
        y = op @ v
    assert cost.peak_bytes <= 24 << 20
    assert_rounding(y, entk.assemble(factors, dtype="float64") @ v, 600, U[accumulate])


@both_ways
def test_leaf_weights_scale_leaves_and_drop_them(rng):
    factors = mlp(rng, 6, dtype="float64")
    weights = {"fc1.*": 0.25, "fc2.bias": 0.0}
    op = entk.KernelOperator(factors, leaf_weights=weights)
    kernel = entk.assemble(factors, leaf_weights=weights)
    assert_rounding(op @ np.eye(6), kernel, TERMS)


@both_ways
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_factors_are_multiplied_in_float64(rng, dtype):
    factors = every_leaf(rng, 6, 2, dtype=dtype)
    v = rng.standard_normal((12, 3))
    assert_rounding(entk.KernelOperator(factors) @ v, reference.assemble(factors) @ v, TERMS)


def test_single_precision_is_a_choice_for_factors_that_it_holds(rng):
    op = entk.KernelOperator(mlp(rng, 6), accumulate="float32")
    assert (op @ np.ones(6)).dtype == op.dtype == np.float32
    with pytest.raises(entk.InputError, match="narrower"):
        entk.KernelOperator(mlp(rng, 6, dtype="float64"), accumulate="float32")


@both_ways
def test_strided_vectors_and_foreign_layouts_are_read_as_they_are(rng):
    acts = normal(rng, (5, 12), "float64")[::-1, ::2].astype(">f8")
    factors = entk.Factors({"w": entk.Outer(acts, np.asfortranarray(normal(rng, (5, 4))))})
    v = np.asfortranarray(rng.standard_normal((10, 6)))[::2, ::-1]
    assert_rounding(entk.KernelOperator(factors) @ v, entk.assemble(factors) @ v, TERMS)


def test_complex_vectors_keep_their_imaginary_part(rng):
    factors = mlp(rng, 5, dtype="float64")
    v = rng.standard_normal(5) + 1j * rng.standard_normal(5)
    got, want = entk.KernelOperator(factors) @ v, entk.assemble(factors) @ v
    assert_rounding(got.real, want.real, TERMS)
    assert_rounding(got.imag, want.imag, TERMS)


def test_no_vectors_and_no_examples_are_no_work(rng):
    factors = mlp(rng, 5)
    assert (entk.KernelOperator(factors) @ np.empty((5, 0))).shape == (5, 0)
    none = entk.KernelOperator(factors, factors.take(slice(0, 0)))
    assert_same_bits(none @ np.empty(0), np.zeros(5))


def test_a_product_can_be_interrupted(rng):
    leaf = entk.Outer(normal(rng, (4096, 700)), normal(rng, (4096, 700)))
    op, v = entk.KernelOperator({"w": leaf}, threads=2), np.ones((4096, 96))
    sent = []

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        op @ v
    assert time.monotonic() - sent[0] < PROMPT
    assert_rounding(op @ v[:, :1], entk.assemble({"w": leaf}, dtype="float64") @ v[:, :1], TERMS)


# Entries. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_blocks_rows_and_diagonal_have_the_bits_of_assemble(rng, rows):
    factors = every_leaf(rng, 9, rows, dtype="float64")
    for outputs in modes(rng, rows, 9):
        kernel = entk.assemble(factors, outputs=outputs)
        op = entk.KernelOperator(factors, outputs=outputs)
        some = rng.integers(-len(kernel), len(kernel), 6)
        mask = rng.random(len(kernel)) < 0.5
        assert_same_bits(op.diagonal(), np.diagonal(kernel))
        assert_same_bits(op.rows(some), kernel[some])
        assert_same_bits(op.rows(-1), kernel[-1])
        assert_same_bits(op.block(some, slice(None, None, -2)), kernel[some][:, ::-2])
        assert_same_bits(op.block(slice(2, 7), slice(1, 4)), kernel[2:7, 1:4])
        assert_same_bits(op.block(mask, 3), kernel[mask, 3])
        assert_same_bits(op.block([], some), kernel[:0, some])
        assert_rounding(op.trace(), np.trace(kernel), TERMS)


def test_a_large_full_block_is_computed_in_parts(rng):
    factors = one_leaf("outer", rng, 400, 6, dtype="float64")
    kernel = entk.assemble(factors)
    index = rng.permutation(len(kernel))[:700]
    op = entk.KernelOperator(factors, memory="24MiB")
    assert_same_bits(op.block(index, slice(0, 900)), kernel[index, :900])


def test_blocks_of_a_cross_kernel_take_from_both_sides(rng):
    left, right = every_leaf(rng, 8, 2), every_leaf(rng, 5, 2)
    kernel = entk.assemble(left, right, dtype="float64", outputs="trace")
    op = entk.KernelOperator(left, right, outputs="trace")
    assert_same_bits(op.block([5, 1, 5], [4, 0]), kernel[np.ix_([5, 1, 5], [4, 0])])
    with pytest.raises(entk.InputError, match="no diagonal"):
        op.diagonal()


@pytest.mark.parametrize("index", [[9], [-10], 9, [0.5], np.ones(8, bool), [[0]]])
def test_an_index_that_is_none_is_refused(rng, index):
    with pytest.raises(entk.InputError, match="rows"):
        entk.KernelOperator(mlp(rng, 9)).rows(index)


# Solvers. ----------------------------------------------------------------------------------------


def test_scipy_solvers_take_the_operator(rng):
    factors = every_leaf(rng, 40, dtype="float64")
    kernel, op = entk.assemble(factors), entk.KernelOperator(factors)
    values = np.linalg.eigvalsh(kernel)
    assert_rounding(eigsh(op, 3, v0=np.ones(40))[0], values[-3:], 40 * TERMS)
    found = lobpcg(op, rng.standard_normal((40, 3)), tol=1e-9 * values[-1], maxiter=300)[0]
    assert_rounding(np.sort(found), values[-3:], 40 * TERMS)
    ridge = values[-1]
    shifted = op + ridge * LinearOperator(op.shape, matvec=lambda v: v, dtype=op.dtype)
    b = kernel @ np.ones(40) + ridge
    x, status = cg(shifted, b, rtol=1e-13)
    assert status == 0
    assert_rounding(x, np.ones(40), 40 * TERMS)


def test_low_rank_and_linalg_take_the_operator(rng):
    factors = every_leaf(rng, 30, dtype="float64")
    kernel, op = entk.assemble(factors), entk.KernelOperator(factors)
    low = entk.lowrank.rpcholesky(op, 12, seed=3)
    assert_same_bits(low.pivots, entk.lowrank.rpcholesky(kernel, 12, seed=3).pivots)
    assert_rounding(low.trace_residual, np.trace(kernel - low.factor @ low.factor.T), 30 * TERMS)
    top = entk.linalg.eigsh(op, 2).values
    assert_rounding(top, np.linalg.eigvalsh(kernel)[-2:], 30 * TERMS)


# Refusals. ---------------------------------------------------------------------------------------


def test_nan_in_a_factor_is_refused_when_the_operator_is_made(rng):
    jac = normal(rng, (4, 3))
    jac[2, 1] = np.nan
    with pytest.raises(entk.NonFiniteError, match=r"layer 'b' Jacobian\[2, 1\]"):
        entk.KernelOperator({"b": entk.Dense(jac)})


def test_one_kernel_for_each_output_is_no_operator(rng):
    with pytest.raises(entk.InputError, match="not one operator"):
        entk.KernelOperator(mlp(rng, rows=2), outputs="diagonal")


@both_ways
def test_an_overflow_is_an_error_and_not_infinity():
    factors = entk.Factors({"b": entk.Dense(np.full((2, 1), 1e200))})
    with pytest.raises(entk.KernelOverflowError, match="overflowed float64"):
        entk.KernelOperator(factors) @ np.ones(2)
