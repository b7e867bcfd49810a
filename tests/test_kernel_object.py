"""`entk.Kernel`: a read-only array on disk."""

import os
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import entk
from bounds import assert_close_in_float64
from cases import every_leaf, mlp

N, ROWS = 14, 3


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Kernels of every storage with their arrays."""
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("kernels")
    factors = every_leaf(rng, N, rows=ROWS)
    few = factors.take(slice(0, 9))
    made = []
    for suffix in ("npy", "zarr"):
        for triangle in ("full", "lower"):
            for outputs in ("sum", "diagonal"):
                path = folder / f"{triangle}-{outputs}.{suffix}"
                options = {"tile": 4, "outputs": outputs}
                entk.assemble(factors, out=path, triangle=triangle, **options)
                made.append((path, entk.assemble(factors, outputs=outputs)))
        path = folder / f"cross.{suffix}"
        entk.assemble(factors, few, out=path, tile=4, outputs="sum")
        made.append((path, entk.assemble(factors, few, outputs="sum")))
    return made


def pairs(stored):
    for path, array in stored:
        with entk.open(path) as kernel:
            yield kernel, array


BASIC = [
    (),
    (3,),
    (-1,),
    (slice(None),),
    (slice(2, 11, 3),),
    (slice(None, None, -1),),
    (slice(5, 5),),
    (np.int64(2), np.uint8(1)),
    (2, 1),
    (slice(1, 9), 4),
    (Ellipsis, 3),
    (2, Ellipsis),
    ([0, 5, 5, 2],),
    ([],),
    ([[0, 1], [2, 3]],),
    ([0, 5, 2], [1, 1, 8]),
    (np.array([[0], [5], [2]]), np.array([1, 8])),
    (slice(None), [3, -2]),
    ([3, -2], slice(1, 7, 2)),
    (2, [1, 7]),
    ([1, 7], 2),
]


@pytest.mark.parametrize("index", BASIC, ids=str)
def test_an_index_means_what_it_means_to_numpy(stored, index):
    for kernel, array in pairs(stored):
        dotted = any(part is Ellipsis for part in index)
        shaped = index if array.ndim == 2 or dotted else (slice(None), *index)
        want = array[shaped]
        got = kernel[shaped]
        assert type(got) is type(want)
        assert np.shape(got) == np.shape(want)
        assert np.array_equal(got, want)


def test_masks_and_planes_mean_what_they_mean_to_numpy(stored):
    for kernel, array in pairs(stored):
        mask = np.arange(array.shape[-2]) % 3 == 0
        assert np.array_equal(kernel[..., mask, :], array[..., mask, :])
        if array.ndim == 3:
            assert np.array_equal(kernel[[0, 2], [1, 3], [5, 5]], array[[0, 2], [1, 3], [5, 5]])
            assert np.array_equal(kernel[1], array[1])
            assert np.array_equal(kernel[1, [0, 3], [2, 2]], array[1, [0, 3], [2, 2]])
            assert np.array_equal(kernel[0, :, [1, 2]], array[0, :, [1, 2]])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_drawn_indices_mean_what_they_mean_to_numpy(stored, data):
    path, array = data.draw(st.sampled_from(stored))
    index = data.draw(hnp.basic_indices(array.shape, allow_newaxis=False))
    with entk.open(path) as kernel:
        assert np.array_equal(kernel[index], array[index])
    rows = data.draw(hnp.integer_array_indices(array.shape[-2:], result_shape=hnp.array_shapes()))
    with entk.open(path) as kernel:
        assert np.array_equal(kernel[(..., *rows)], array[(..., *rows)])


@pytest.mark.parametrize(
    "index", [(N,), (-N - 1,), ([0, N],), (0, 0, 0, 0), (None,), (1.5,), ("a",), (True,)], ids=str
)
def test_an_index_that_is_none_is_an_index_error(stored, index):
    for kernel, array in pairs(stored):
        shaped = (0, *index) if array.ndim == 3 else index
        with pytest.raises(IndexError):
            kernel[shaped]


def test_products_agree_with_the_array(stored, rng):
    for kernel, array in pairs(stored):
        for v in (rng.standard_normal(array.shape[-1]), rng.standard_normal((array.shape[-1], 2))):
            got, want = kernel @ v, array @ v
            assert got.shape == want.shape
            assert_close_in_float64(got, want, terms=N)
        for v in (rng.standard_normal(array.shape[-2]), rng.standard_normal((2, array.shape[-2]))):
            got, want = v @ kernel, v @ array
            assert got.shape == want.shape
            assert_close_in_float64(got, want, terms=N)
        with pytest.raises(entk.InputError, match="cannot be multiplied"):
            kernel @ np.ones(array.shape[-1] + 1)


def test_the_kernel_describes_itself(stored):
    for kernel, array in pairs(stored):
        assert kernel.shape == array.shape
        assert kernel.ndim == array.ndim
        assert kernel.dtype == array.dtype
        assert len(kernel) == len(array)
        assert kernel.tile == 4
        assert kernel.complete
        assert kernel.tiles_done == kernel.tiles_total == len(list(kernel.tiles()))
        assert str(kernel.path) in repr(kernel)


def test_tiles_are_the_entries_they_say(stored):
    for kernel, array in pairs(stored):
        seen = np.zeros(array.shape, bool)
        for (i0, i1, j0, j1), tile in kernel.tiles():
            assert np.array_equal(tile, array[..., i0:i1, j0:j1])
            seen[..., i0:i1, j0:j1] = True
            if kernel.info["symmetric"]:
                seen[..., j0:j1, i0:i1] = True
        assert seen.all()


def test_the_diagonal_is_that_of_the_array(stored):
    for kernel, array in pairs(stored):
        steps = np.arange(min(array.shape[-2:]))
        assert np.array_equal(kernel.diagonal(), array[..., steps, steps])


def test_conversion_takes_numpys_arguments(stored):
    for kernel, array in pairs(stored):
        assert np.asarray(kernel, dtype=np.float64).dtype == np.float64
        assert np.array_equal(np.array(kernel, copy=True), array)
        with pytest.raises(ValueError, match="copy"):
            np.array(kernel, copy=False)


def test_iteration_gives_rows(stored):
    path, array = stored[0]
    with entk.open(path) as kernel:
        assert all(np.array_equal(row, want) for row, want in zip(kernel, array, strict=True))


def test_export_writes_a_plain_file(stored, tmp_path):
    for number, (kernel, array) in enumerate(pairs(stored)):
        path = tmp_path / f"{number}.npy"
        kernel.to_npy(path)
        got = np.load(path)
        assert got.dtype == array.dtype
        assert np.array_equal(got, array)
        with pytest.raises(entk.StoreError, match="exists"):
            kernel.to_npy(path)
        kernel.to_npy(path, overwrite=True)
    assert all(name.endswith(".npy") for name in os.listdir(tmp_path))


def test_a_closed_kernel_reads_nothing(stored):
    path, _ = stored[0]
    with entk.open(path) as kernel:
        pass
    with pytest.raises(ValueError, match="closed"):
        kernel[0]


def test_a_plain_npy_is_a_kernel_without_checksums(tmp_path, rng):
    array = rng.standard_normal((6, 4))
    for order in "CF":
        np.save(tmp_path / "P.npy", np.asarray(array, order=order))
        with entk.open(tmp_path / "P.npy") as kernel:
            assert np.array_equal(np.asarray(kernel), array)
            assert np.array_equal(kernel[[1, 2], 1:], array[[1, 2], 1:])
            assert kernel.complete
            with pytest.raises(entk.StoreIncompleteError, match="no checksums"):
                kernel.verify()
    np.save(tmp_path / "P.npy", np.arange(4))
    with pytest.raises(entk.StoreFormatError, match="not a floating-point matrix"):
        entk.open(tmp_path / "P.npy")


def test_verification_takes_all_some_or_named_tiles(stored):
    for kernel, _ in pairs(stored):
        assert kernel.verify().checked == kernel.tiles_total
        assert kernel.verify(tiles=2).checked == 2
        assert kernel.verify(tiles=[(1, 0)]).checked == 1
        assert "all sound" in str(kernel.verify())
        with pytest.raises(entk.InputError, match="tiles"):
            kernel.verify(tiles="some")


def test_reading_never_unpickles(stored, monkeypatch):
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "load", None)
    monkeypatch.setattr(pickle, "Unpickler", None)
    for kernel, array in pairs(stored):
        assert np.array_equal(np.asarray(kernel), array)
        kernel.verify()


def test_a_forked_child_reads_too(stored):
    path, array = stored[1]
    with entk.open(path) as kernel:
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(np.asarray(kernel), array) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_several_threads_read_one_kernel(stored):
    from concurrent.futures import ThreadPoolExecutor

    for kernel, array in pairs(stored):
        with ThreadPoolExecutor(4) as pool:
            rows = list(pool.map(lambda i, k=kernel: k[..., i, :], [*range(N)] * 2))
        want = np.stack([array[..., i, :] for i in [*range(N)] * 2])
        assert np.array_equal(np.stack(rows), want)


def test_an_unfinished_kernel_shows_what_is_there(tmp_path, rng):
    factors = mlp(rng, 12)
    want = entk.assemble(factors)
    for suffix in ("npy", "zarr"):
        path = tmp_path / f"K.{suffix}"
        entk.assemble(factors, out=path, tile=4, part=(0, 2))
        for name in (path, f"{path}.partial"):
            with pytest.raises(entk.StoreIncompleteError, match="unfinished"):
                entk.open(name)
            with entk.open(name, partial=True) as kernel:
                assert not kernel.complete
                assert (kernel.tiles_done, kernel.tiles_total) == (3, 6)
                seen = np.asarray(kernel)
        there = ~np.isnan(seen)
        assert np.array_equal(there[::4, ::4][np.tril_indices(3)], kernel.done)
        assert np.array_equal(seen[there], want[there])
