"""`entk.linalg` against LAPACK's own ratios, NumPy, and itself through every kind of kernel."""

import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import entk
from bounds import (
    LAPACK_RATIO,
    SIGMAS,
    assert_rounding,
    assert_same_solution,
    lapack_cholesky,
    lapack_eigen,
    lapack_solve,
    solver_rtol,
)
from entk import _dense, linalg, lowrank
from entk._errors import InternalError, MemoryLimitError, SizeError
from entk.linalg import _cholesky, _eigen, _limits, _tiled
from kernels import LAPACK_TYPES, Operator, Stored, gram, lapack_type, smooth, with_spectrum

SIZES = [0, 1, 2, 3, 5, 10, 50, 513]


@pytest.mark.parametrize("kind", LAPACK_TYPES)
@pytest.mark.parametrize("n", SIZES)
def test_cholesky_solve_and_eigen_meet_the_lapack_ratios(rng, kind, n):
    kernel = lapack_type(rng, kind, n)
    lower = linalg.cholesky(kernel)
    assert lapack_cholesky(kernel, lower) < LAPACK_RATIO
    np.testing.assert_array_equal(lower, np.tril(lower))

    b = rng.standard_normal((n, 2))
    assert lapack_solve(kernel, linalg.solve(kernel, b), b) < LAPACK_RATIO

    if n:
        residual, orthogonality = lapack_eigen(kernel, *linalg.eigsh(kernel, n)[:2])
        assert residual < LAPACK_RATIO
        assert orthogonality < LAPACK_RATIO


@pytest.mark.parametrize("kind", ["sqrt", "hard"])
def test_a_kernel_beyond_every_blocking_meets_the_lapack_ratios(rng, kind):
    kernel = lapack_type(rng, kind, 1025)
    assert lapack_cholesky(kernel, linalg.cholesky(kernel)) < LAPACK_RATIO
    values = linalg.eigvalsh(kernel)
    assert_rounding(values, np.linalg.eigvalsh(kernel), 1025)


@pytest.mark.parametrize("block", [1, 3, 20, 64])
@pytest.mark.parametrize("n", [1, 2, 65])
def test_the_factor_by_tiles_meets_the_lapack_ratio_for_any_tile(rng, monkeypatch, n, block):
    kernel = gram(rng, n)
    monkeypatch.setattr(_tiled, "side", lambda n, memory: block)
    out = np.empty((n, n), order="F")
    assert linalg.cholesky(Stored(kernel), ridge=0.5, out=out) is out
    assert lapack_cholesky(kernel + 0.5 * np.eye(n), out) < LAPACK_RATIO


def test_the_factor_goes_to_a_file_within_its_memory(rng, tmp_path):
    kernel = Stored(gram(rng, 400, dtype="float32"))
    memory = 1_000_000  # the factor alone is 1,280,000 bytes
    path = tmp_path / "L.npy"
    linalg.cholesky(kernel, ridge=1.0, out=tmp_path / "first.npy", memory=memory)  # imports
    (tmp_path / "first.npy").unlink()
    tracemalloc.start()
    lower = linalg.cholesky(kernel, ridge=1.0, out=path, memory=memory)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    side = _tiled.side(400, memory)
    assert 8 * (400 * side + 6 * side**2) <= memory
    assert peak <= memory
    assert lapack_cholesky(kernel[:, :] + np.eye(400), np.asarray(lower)) < LAPACK_RATIO
    assert [p.name for p in tmp_path.iterdir()] == ["L.npy"]
    assert not lower.flags.writeable

    b = rng.standard_normal(400)
    assert_same_solution(linalg.factored_solve(lower, b), linalg.solve(kernel, b, 1.0),
                         kernel[:, :], 1.0)  # fmt: skip


def test_a_factorisation_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(np.linalg.LinAlgError):
        linalg.cholesky(-np.eye(3) + 2.0, out=tmp_path / "L.npy")
    assert list(tmp_path.iterdir()) == []


def test_a_factor_that_does_not_fit_memory_says_what_it_needs(rng):
    with pytest.raises(MemoryLimitError, match=r'20000 bytes.*out="L.npy"'):
        linalg.cholesky(gram(rng, 50), memory="10KB")


@pytest.mark.parametrize(
    "wrap", [np.asarray, Stored, Operator, np.asfortranarray, aslinearoperator]
)
def test_every_kind_of_kernel_gives_the_same_answers(rng, wrap):
    kernel, b = gram(rng, 40), rng.standard_normal(40)
    assert_rounding(linalg.cholesky(wrap(kernel)), linalg.cholesky(kernel), 40)
    assert_same_solution(linalg.solve(wrap(kernel), b, 0.1), linalg.solve(kernel, b, 0.1), kernel)
    assert_rounding(linalg.eigvalsh(wrap(kernel)), np.linalg.eigvalsh(kernel), 40)
    assert_rounding(linalg.eigsh(wrap(kernel), 3).values, np.linalg.eigvalsh(kernel)[-3:], 40)
    assert_rounding(linalg.logdet(wrap(kernel), 0.1), linalg.logdet(kernel, 0.1), 40)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", ">f8"])
def test_solvers_work_in_float64_whatever_the_kernel_is_stored_in(rng, dtype):
    kernel = (gram(rng, 20) * 64).round().astype(dtype)
    kernel = (kernel + kernel.T) / 2 + 64 * np.eye(20)
    exact = kernel.astype(np.float64)
    assert linalg.cholesky(kernel).dtype == np.float64
    assert lapack_cholesky(exact, linalg.cholesky(kernel)) < LAPACK_RATIO


@pytest.mark.parametrize("library", ["torch", "torch bfloat16", "jax", "ml_dtypes", "list"])
def test_arrays_of_other_libraries_are_kernels_too(rng, library):
    kernel = np.diag(rng.integers(1, 9, 5).astype(np.float32))
    if library.startswith("torch"):
        torch = pytest.importorskip("torch")
        given = torch.tensor(kernel, requires_grad=True)
        given = given.bfloat16() if library.endswith("16") else given
    elif library == "jax":
        given = pytest.importorskip("jax.numpy").asarray(kernel)
    elif library == "ml_dtypes":
        given = kernel.astype(pytest.importorskip("ml_dtypes").bfloat16)
    else:
        given = kernel.tolist()
    got = linalg.eigvalsh(given)
    assert_rounding(got, np.sort(np.diag(kernel)), 5)
    narrow = library in ("torch bfloat16", "ml_dtypes")
    assert (got.floor > 2.0**-10 * kernel.max()) == narrow


def test_arrays_that_are_no_kernels_are_refused():
    with pytest.raises(entk.DTypeError, match="complex"):
        linalg.eigvalsh(np.eye(3) * 1j)
    with pytest.raises(entk.InputError, match="3 axes"):
        linalg.cholesky(np.ones((2, 2, 2)))
    with pytest.raises(entk.InputError, match=r"shape \(2, 3\)"):
        linalg.logdet(np.ones((2, 3)))


def test_a_kernel_of_32768_rows_never_meets_a_32_bit_count(monkeypatch):
    n, drivers = 32_768, []

    def lapack(a, **options):
        drivers.append(options["driver"])
        values = np.zeros(len(a))
        return values if options.get("eigvals_only") else (values, np.zeros((1, 1)))

    virtual = np.broadcast_to(np.float64(0.0), (n, n))
    monkeypatch.setattr("scipy.linalg.eigh", lapack)
    monkeypatch.setattr(_eigen, "_prepare", _dense.read)
    monkeypatch.setattr(_dense.Matrix, "dense", lambda self: virtual)
    monkeypatch.setattr(_eigen, "_check_values", lambda *_: None)
    monkeypatch.setattr(_eigen, "_check_pairs", lambda *_: None)
    assert linalg.eigvalsh(virtual, memory="16GiB").shape == (n,)
    _eigen.eigh(_dense.read(virtual), "32GiB")
    assert drivers == ["evr", "evr"]


@pytest.mark.parametrize("ridge", [0.0, 0.3, "vector"])
def test_logdet_and_solve_agree_with_numpy(rng, ridge):
    kernel = gram(rng, 60)
    ridge = rng.uniform(0.1, 1.0, 60) if ridge == "vector" else ridge
    regular = kernel + np.diag(np.broadcast_to(ridge, 60))
    assert_rounding(linalg.logdet(kernel, ridge), np.linalg.slogdet(regular)[1], 60**2)
    b = rng.standard_normal((60, 3))
    assert_same_solution(linalg.solve(kernel, b, ridge), np.linalg.solve(regular, b), regular)


def test_solve_and_logdet_use_a_scratch_folder_and_leave_it_empty(rng, tmp_path):
    kernel, b = gram(rng, 200), rng.standard_normal(200)
    with pytest.raises(MemoryLimitError, match=r'scratch="a folder"'):
        linalg.solve(kernel, b, memory="100KB")
    got = linalg.solve(kernel, b, 0.1, memory="200KB", scratch=tmp_path)
    assert_same_solution(got, linalg.solve(kernel, b, 0.1), kernel, 0.1)
    got = linalg.logdet(kernel, 0.1, memory="200KB", scratch=tmp_path)
    assert_rounding(got, linalg.logdet(kernel, 0.1), 200)
    assert list(tmp_path.iterdir()) == []


def test_logdet_states_the_error_that_the_noise_floor_allows(rng):
    exact = with_spectrum(rng, np.geomspace(1e-8, 1.0, 100))
    stored = exact.astype(np.float32)
    with pytest.warns(linalg.PrecisionWarning, match=r"noise floor .* exceeds pivot"):
        assert linalg.logdet(stored).error == float("inf")
    got = linalg.logdet(stored, ridge=0.1)
    assert abs(got - linalg.logdet(exact, ridge=0.1)) <= got.error
    assert got.error < abs(got)


@pytest.mark.parametrize("which", ["LM", "LA", "SM", "SA"])
def test_eigsh_picks_the_end_that_was_asked(rng, which):
    values = np.array([-3.0, -0.5, 0.1, 1.0, 2.0])
    want = {"LM": [-3, 2], "LA": [1, 2], "SM": [-0.5, 0.1], "SA": [-3, -0.5]}[which]
    got = linalg.eigsh(with_spectrum(rng, values), 2, which)
    assert_rounding(got.values, want, 5)


def test_an_operator_that_only_multiplies_is_multiplied_few_times(rng, monkeypatch):
    monkeypatch.setattr(_eigen, "DENSE_ROWS", 100)
    kernel = gram(rng, 300, d=20) + 0.01 * np.eye(300)
    columns = []

    def product(v):
        columns.append(v.shape[1] if v.ndim == 2 else 1)
        return kernel @ v

    op = LinearOperator((300, 300), matvec=product, matmat=product, dtype=np.float64)
    got = linalg.eigsh(op, 2, "LA")
    assert_rounding(got.values, np.linalg.eigvalsh(kernel)[-2:], 300)
    assert sum(columns) < 300
    columns.clear()
    linalg.cg(op, np.ones(300), ridge=1.0)
    assert sum(columns) < 300
    columns.clear()
    assert lowrank.rpcholesky(op, 3).rank == 3
    assert sum(columns) <= 300 + 3 * 2 * 10  # the diagonal, then a column a pivot or proposal


def test_lanczos_finds_the_top_of_a_kernel_too_large_for_lapack(rng, monkeypatch):
    monkeypatch.setattr(_eigen, "DENSE_ROWS", 100)
    kernel = gram(rng, 300, d=20) + 0.01 * np.eye(300)
    op = Operator(kernel)
    got = linalg.eigsh(op, 3, "LA")
    assert op.entries == 0
    assert_rounding(got.values, np.linalg.eigvalsh(kernel)[-3:], 300)
    residual, orthogonality = lapack_eigen(kernel, got.values, got.vectors)
    assert max(residual, orthogonality) < LAPACK_RATIO


def test_syevd_is_refused_where_its_workspace_overflows_and_syevr_is_not():
    _limits.check_lapack("eigh of ?syevd", 32_766)
    with pytest.raises(SizeError, match=r"eigh workspace of 2,147,549,181 elements exceeds"):
        _limits.check_lapack("eigh of ?syevd", 32_767)
    _limits.check_lapack("eigh of ?syevr", 1_000_000)
    _limits.check_lapack("eigh of ?syevd", 1_000_000, integers=2**63 - 1)


def test_condition_number_agrees_with_numpy_and_says_when_it_is_rounding(rng):
    kernel = gram(rng, 30)
    got = linalg.condition_number(kernel)
    assert abs(got / np.linalg.cond(kernel) - 1) <= solver_rtol(kernel)
    assert got.error < got
    assert linalg.condition_number(smooth(60)).error == float("inf")


@pytest.mark.parametrize("columns", [None, 4])
def test_cg_solves_all_columns_at_once(rng, columns):
    kernel = gram(rng, 80)
    b = rng.standard_normal(80 if columns is None else (80, columns))
    op = Operator(kernel)
    got = linalg.cg(op, b, ridge=0.1, tol=1e-12)
    regular = kernel + 0.1 * np.eye(80)
    assert got.x.shape == b.shape
    assert got.residual <= 1e-12
    assert op.products <= got.iterations + 2
    assert np.linalg.norm(regular @ got.x - b) <= 1e-12 * np.linalg.norm(b) * np.sqrt(columns or 1)


def test_a_low_rank_preconditioner_cuts_the_iterations(rng):
    values = np.concatenate([np.geomspace(1e-3, 1.0, 280), np.geomspace(10, 1e4, 20)])
    kernel, b = with_spectrum(rng, values), rng.standard_normal(300)
    plain = linalg.cg(kernel, b, ridge=0.5, tol=1e-8)
    factor = lowrank.rpcholesky(kernel, 60, seed=0)
    fast = linalg.cg(kernel, b, ridge=0.5, tol=1e-8, preconditioner=factor)
    assert fast.iterations < plain.iterations / 2
    assert_same_solution(fast.x, plain.x, kernel, 1e8 * 2.0**-53)


def test_cg_of_a_zero_right_hand_side_is_zero(rng):
    got = linalg.cg(gram(rng, 5), np.zeros(5), 1.0)
    assert got.iterations == 0
    assert not got.x.any()


def test_slq_agrees_with_the_exact_logdet_within_its_error_bar(rng):
    kernel = gram(rng, 150)
    got = linalg.slq_logdet(Operator(kernel), ridge=0.5, seed=1)
    assert abs(got.value - linalg.logdet(kernel, 0.5)) <= SIGMAS * got.stderr
    assert 0 < got.stderr < abs(got.value)


def test_no_samples_give_empty_answers():
    empty = np.empty((0, 0))
    assert linalg.cholesky(empty).shape == (0, 0)
    assert linalg.eigvalsh(empty).shape == (0,)
    assert linalg.solve(empty, np.empty(0)).shape == (0,)
    assert linalg.logdet(empty) == 0.0


def test_no_samples_give_an_empty_file(tmp_path):
    assert linalg.cholesky(np.empty((0, 0)), out=tmp_path / "L.npy").shape == (0, 0)
    assert np.load(tmp_path / "L.npy").shape == (0, 0)


def corrupt_tail(lower):
    lower[len(lower) // 2 :, 3] *= 1.001


def corrupt_entry(lower):
    lower[-1, 0] += 1e-3


def corrupt_tile(lower):
    lower[20:30, 5:10] = 0.0


@pytest.mark.parametrize("damage", ["zeros", "nan", "one value", "one vector"])
def test_a_lapack_that_returns_wrong_eigenvalues_is_found_out(rng, monkeypatch, damage):
    kernel, honest = gram(rng, 50), scipy.linalg.eigh

    def faulty(a, **options):
        found = honest(a, **options)
        values, vectors = (found, None) if options.get("eigvals_only") else found
        if damage == "one vector" and vectors is not None:
            vectors[:, 20] *= 0.99
        elif damage == "one value":
            values[20] *= 1.01
        elif damage != "one vector":
            values[:] = 0.0 if damage == "zeros" else np.nan
        return values if vectors is None else (values, vectors)

    monkeypatch.setattr("scipy.linalg.eigh", faulty)
    with pytest.raises(InternalError, match="do not reproduce the kernel"):
        linalg.eigsh(kernel, 3)
    if damage != "one vector":
        with pytest.raises(InternalError, match="do not add up to the kernel"):
            linalg.eigvalsh(kernel)


@pytest.mark.parametrize("damage", [corrupt_tail, corrupt_entry, corrupt_tile])
def test_a_blas_that_returns_a_wrong_factor_is_found_out(rng, monkeypatch, damage):
    kernel = gram(rng, 50)
    honest = _cholesky._in_place

    def faulty(matrix, ridge, out):
        lower = honest(matrix, ridge, out)
        damage(lower)
        return lower

    monkeypatch.setattr(_cholesky, "_in_place", faulty)
    with pytest.raises(InternalError, match="does not reproduce the kernel"):
        linalg.cholesky(kernel)


@pytest.mark.parametrize(
    ("dtype", "ridge", "task", "enough", "says"),
    [
        ("float32", 1e-2, "regression", True, "times the noise floor"),
        ("float32", 3e-5, "regression", False, 'accumulate="float64"'),
        ("float32", 1e-8, "regression", False, 'dtype="float64"'),
        ("float32", 1e-2, "logdet", False, 'accumulate="float64"'),
        ("float32", 1e-2, "spectrum", False, 'dtype="float64"'),
        ("float64", 1e-2, "logdet", True, "float64 is enough"),
        ("float64", 0.0, "spectrum", True, "are rounding"),
        ("float64", 0.0, "regression", True, "raise the ridge"),
    ],
)
def test_the_rule_of_precision_is_applied_and_said(rng, dtype, ridge, task, enough, says):
    """Kernels of 100 rows: a floor of 9e-6 of the mean diagonal in float32, 4e-7 if only stored."""
    kernel = gram(rng, 100).astype(dtype)
    got = linalg.precision(kernel, ridge * float(np.mean(np.diag(kernel))), task=task)
    assert got.enough == enough
    assert says in str(got)


def test_a_kernel_summed_in_float64_is_known_by_its_record(rng):
    kernel = gram(rng, 100, dtype="float32")
    summed = linalg.precision(Stored(kernel, {"accumulate": "float64"}))
    measured = linalg.precision(Stored(kernel, {"certificate": {"rho_rms": 0.01}}))
    assert measured.floor < summed.floor < linalg.precision(kernel).floor / 10
