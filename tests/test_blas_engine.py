"""``engine="blas"``: within the bounds of the fused engine, checked, and never trusted blindly."""

import ctypes
import os
import signal
import threading
import time

import numpy as np
import pytest

import entk
from bounds import assert_same_bits, check
from cases import FAMILIES, LEAVES, every_leaf, family, mlp, one_leaf, outer
from entk import _blas, _blas_threads, _core

MODES = ["full", "sum", "trace", "diagonal", 1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [*LEAVES])
def test_every_leaf_is_within_its_bound(rng, kind, dtype):
    for rows in (1, 3):
        factors = one_leaf(kind, rng, 21, rows, dtype=dtype)
        for outputs in [None] if rows == 1 else [*MODES, rng.standard_normal((21, rows))]:
            kernel = entk.assemble(factors, outputs=outputs, engine="blas", threads=2)
            check(kernel, factors, outputs=outputs)
            assert_same_bits(kernel, np.swapaxes(kernel, -1, -2))


@pytest.mark.filterwarnings("ignore:layer .* contributes less than")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("t", [None, 3])
def test_every_family_is_within_its_bound(rng, name, t):
    factors = family(name, rng, t=t)
    check(entk.assemble(factors, engine="blas"), factors)


@pytest.mark.parametrize("outputs", [None, *MODES])
def test_cross_kernels_are_within_their_bound(rng, outputs):
    left, right = every_leaf(rng, 9, 3), every_leaf(rng, 14, 3)
    kernel = entk.assemble(left, right, outputs=outputs, engine="blas")
    check(kernel, left, other=right, outputs=outputs)


def many_outputs(rng, n, *, t=5, rows=40, dtype="float32", groups=None):
    """Return factors for which one side's gradient is expanded: few positions, many outputs."""
    return entk.Factors({"w": outer(rng, n, rows, groups, t, 24, 24, dtype)})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("groups", [None, 2])
def test_one_side_expanded_is_within_its_bound(rng, groups, dtype):
    factors = many_outputs(rng, 23, groups=groups, dtype=dtype)
    assert "one side" in entk.plan(factors, engine="blas").leaves[0].contraction
    kernel = entk.assemble(factors, engine="blas", threads=2)
    check(kernel, factors)
    assert_same_bits(kernel, kernel.T)


def test_one_side_expanded_takes_sides_of_other_lengths(rng):
    left, right = many_outputs(rng, 4, t=7), many_outputs(rng, 9, t=5)
    assert "one side" in entk.plan(left, right, engine="blas").leaves[0].contraction
    check(entk.assemble(left, right, engine="blas"), left, other=right)


def test_one_side_expanded_costs_fewer_flops_than_the_fused_engine_says(rng):
    factors = many_outputs(rng, 3)
    t, rows, d = 5, 40, 24
    one_side = 2 * t * rows * d * (d + rows)
    assert entk.plan(factors, engine="blas").flops == one_side * 3 * 4 // 2
    assert entk.plan(factors).flops >= 2 * one_side * 3 * 4 // 2
    trace = entk.plan(factors, outputs="trace", engine="blas")
    assert "one side" not in trace.leaves[0].contraction


@pytest.mark.parametrize("accumulate", ["float32", "float64"])
def test_wide_leaves_are_multiplied_in_chunks(rng, accumulate):
    factors = family("F4-non-negative", rng, 40, 1000, 300)
    check(
        entk.assemble(factors, engine="blas", accumulate=accumulate),
        factors,
        accumulate=accumulate,
    )


def test_many_blocks_meet_without_gaps_and_fill_any_array(rng):
    factors = every_leaf(rng, 300)
    whole = np.full((600, 300), np.nan, np.float32)[::2].T
    entk.assemble(factors, engine="blas", out=whole, threads=2)
    check(whole, factors)
    assert_same_bits(whole, whole.T)


def test_tight_memory_makes_smaller_blocks(rng):
    factors, few = mlp(rng, 1500), slice(700, 740)
    out = np.empty((1500, 1500), np.float32)
    entk.assemble(factors, engine="blas", out=out, memory="5MiB", threads=2)
    check(out[few, few], factors.take(few))
    check(out[few, :40], factors.take(few), other=factors.take(slice(0, 40)))


def test_leaf_weights_and_nan_rows_are_those_of_the_fused_engine(rng):
    factors = mlp(rng, 12)
    factors["fc1.weight"].acts[3, 1] = np.nan
    options = {"leaf_weights": {"fc2.*": 0.5}, "nonfinite": "propagate"}
    kernel = entk.assemble(factors, engine="blas", **options)
    assert_same_bits(np.isnan(kernel), np.isnan(entk.assemble(factors, **options)))


def test_an_overflow_is_named(rng):
    factors = entk.Factors({"w": outer(rng, 6, d_in=8, d_out=8)})
    factors["w"].acts[2] = 3e37
    with pytest.raises(entk.KernelOverflowError, match="layer 'w'"):
        entk.assemble(factors, engine="blas")


def test_progress_comes_from_the_calling_thread_and_ends_at_all(rng):
    seen = []
    entk.assemble(
        mlp(rng, 500),
        engine="blas",
        progress=lambda done, total: seen.append((done, total, threading.get_ident())),
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert {who for *_, who in seen} == {threading.get_ident()}


def test_an_interrupt_stops_the_work(rng):
    # Seconds of work for one core: an interrupt after a fraction of one meets it everywhere.
    factors = entk.Factors({"w": outer(rng, 4000, d_in=6000, d_out=6000)})
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        entk.assemble(factors, engine="blas", nonfinite="propagate", threads=1)
    assert time.monotonic() - start < 20


def test_stores_take_the_engine(rng, tmp_path):
    factors = mlp(rng, 60)
    kernel = entk.assemble(factors, engine="blas", out=tmp_path / "K.npy", tile=20)
    check(np.asarray(kernel), factors)


# A library that is wrong. ------------------------------------------------------------------------

_POINTERS = [ctypes.c_char_p] * 2 + [ctypes.c_void_p] * 11
_GEMM = ctypes.CFUNCTYPE(None, *_POINTERS)


def capsule_of(damage, numbers, columns=5):
    """Return a capsule like SciPy's, of a GEMM in NumPy that damages results of many columns."""

    def gemm(_ta, _tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        del alpha
        m, n, k, lda, ldb, ldc = (
            ctypes.c_int.from_address(x).value for x in (m, n, k, lda, ldb, ldc)
        )

        def matrix(address, rows, cols, stride):
            kind = ctypes.c_double if numbers == np.float64 else ctypes.c_float
            flat = (kind * ((rows - 1) * stride + cols)).from_address(address)
            step = np.dtype(numbers).itemsize
            return np.lib.stride_tricks.as_strided(
                np.frombuffer(flat, numbers), (rows, cols), (stride * step, step), writeable=True
            )

        if not k:
            return
        result = matrix(c, n, m, ldc)
        kind = ctypes.c_double if numbers == np.float64 else ctypes.c_float
        keep = kind.from_address(beta).value
        product = matrix(b, n, k, ldb) @ matrix(a, m, k, lda).T
        result[...] = product + (result if keep else 0)
        if m >= columns:
            damage(result)

    function = _GEMM(gemm)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    signature = f"void (char *, char *, {', '.join(['int *'] * 11)})"
    text = ctypes.c_char_p(signature.encode())
    _KEEP.extend((function, text))
    return new(ctypes.cast(function, ctypes.c_void_p), text, None), signature


_KEEP = []


def damaged(damage):
    return _core.Blas(capsule_of(damage, np.float32), capsule_of(damage, np.float64), False)


def one_entry(result):
    result[result.shape[0] // 2, result.shape[1] // 3] += 1.0


def column_tail(result):
    result[result.shape[0] // 2 :, -1] = 0.0


def everything(result):
    result *= 1.5


def not_a_number(result):
    result[0, 0] = np.nan


DAMAGES = [one_entry, column_tail, everything, not_a_number]


def nothing(result):
    del result


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_another_gemm_is_taken_if_it_is_right(rng, monkeypatch, dtype):
    monkeypatch.setattr(_blas, "published", lambda: damaged(nothing))
    factors = every_leaf(rng, 11, dtype=dtype)
    check(entk.assemble(factors, engine="blas", threads=1), factors)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["dense", "outer", "outer-pairs", "outer-positions"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_p11_a_wrong_product_is_found_and_the_fused_engine_takes_over(
    rng, monkeypatch, damage, kind, dtype
):
    monkeypatch.setattr(_blas, "published", lambda: damaged(damage))
    factors = one_leaf(kind, rng, 30, dtype=dtype)
    with pytest.warns(RuntimeWarning, match='wrong product.*engine="fused"'):
        kernel = entk.assemble(factors, engine="blas", threads=1)
    assert_same_bits(kernel, entk.assemble(factors))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_p11_a_wrong_product_is_found_where_one_side_is_expanded(rng, monkeypatch, damage, dtype):
    monkeypatch.setattr(_blas, "published", lambda: damaged(damage))
    factors = many_outputs(rng, 6, dtype=dtype)
    with pytest.warns(RuntimeWarning, match='wrong product.*engine="fused"'):
        kernel = entk.assemble(factors, engine="blas", threads=1)
    assert_same_bits(kernel, entk.assemble(factors))


def test_a_routine_that_fails_its_own_test_is_not_used(rng, monkeypatch):
    wrong, right = capsule_of(everything, np.float32, columns=1), capsule_of(nothing, np.float64)
    with pytest.raises(entk.InternalError, match="sgemm gave a wrong product"):
        _core.Blas(wrong, right, False)

    def refuse():
        raise entk.InternalError("sgemm gave a wrong product")

    monkeypatch.setattr(_blas, "published", refuse)
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        kernel = entk.assemble(mlp(rng, 6), engine="blas")
    assert kernel.shape == (6, 6)


@pytest.mark.parametrize("signature", ["", "void (int *)", "void (char *, char *, int *)"])
def test_another_signature_is_refused(signature):
    from scipy.linalg import cython_blas

    capsule = cython_blas.__pyx_capi__["dgemm"]
    good = (capsule, _blas._name(capsule))
    new = ctypes.pythonapi.PyCapsule_New
    text = ctypes.c_char_p(signature.encode())
    _KEEP.append(text)
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    with pytest.raises(entk.InternalError, match="signature"):
        _core.Blas((new(1, text, None), signature), good, False)


def test_a_blas_that_cannot_be_held_at_one_thread_gets_one_worker(rng, monkeypatch):
    asked = []
    real = _blas_threads.blas_threads

    def stubborn(count):
        asked.append(count)
        held = real(count)
        held.gen = (False for _ in [None])
        return held

    monkeypatch.setattr(_blas, "blas_threads", stubborn)
    factors = mlp(rng, 50)
    check(entk.assemble(factors, engine="blas", threads=3), factors)
    assert asked == [1, 3]


def test_the_limit_on_threads_is_read_back_and_restored():
    before = _threads()
    with _blas_threads.blas_threads(1) as held:
        assert held
        assert set(_threads()) == {1}
    assert _threads() == before


def test_overlapping_calls_give_the_first_number_back():
    before = _threads()
    first, second = _blas_threads.blas_threads(1), _blas_threads.blas_threads(1)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(_threads()) == {1}
    second.__exit__(None, None, None)
    assert _threads() == before


def _threads():
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
