"""Kernels on disk: the same bits as in memory, for us and for plain readers."""

import os

import numpy as np
import pytest

import bounds
import entk
from cases import every_leaf, mlp

FORMATS = ["npy", "zarr"]


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(bits(a), bits(b))


def plain(path):
    """Read a store as somebody without entk does."""
    if str(path).endswith(".npy"):
        return np.load(path, mmap_mode="r")[...]
    import zarr

    return zarr.open_group(path, mode="r")["kernel"][...]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("tile", [1, 3, 7, 16, 17, 100])
def test_a_stored_kernel_has_the_bits_of_the_one_in_memory(rng, tmp_path, suffix, tile):
    factors = mlp(rng, 17)
    want = entk.assemble(factors)
    kernel = entk.assemble(factors, out=tmp_path / f"K.{suffix}", tile=tile)
    assert same_bits(np.asarray(kernel), want)
    assert same_bits(plain(kernel.path), want)
    assert kernel.complete
    assert kernel.tile == min(tile, 17)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("outputs", [None, "full", "sum", "trace", "diagonal", 1])
def test_every_outputs_is_stored(rng, tmp_path, suffix, outputs):
    factors = every_leaf(rng, 11, rows=3)
    want = entk.assemble(factors, outputs=outputs)
    kernel = entk.assemble(factors, out=tmp_path / f"K.{suffix}", tile=5, outputs=outputs)
    assert same_bits(np.asarray(kernel), want)
    assert same_bits(plain(kernel.path), want)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("tile", [2, 5, 100])
def test_cross_kernels_are_stored(rng, tmp_path, suffix, tile):
    both = every_leaf(rng, 16, rows=2)
    rows, cols = both.take(slice(0, 9)), both.take(slice(9, 16))
    for outputs in ("full", "diagonal", "sum"):
        path = tmp_path / f"{outputs}.{suffix}"
        kernel = entk.assemble(rows, cols, out=path, tile=tile, outputs=outputs)
        want = entk.assemble(rows, cols, outputs=outputs)
        assert same_bits(np.asarray(kernel), want)
        assert same_bits(plain(path), want)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_types_are_stored(rng, tmp_path, suffix, dtype):
    factors = mlp(rng, 9)
    kernel = entk.assemble(factors, out=tmp_path / f"K.{suffix}", tile=4, dtype=dtype)
    assert same_bits(np.asarray(kernel), entk.assemble(factors, dtype=dtype))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("outputs", ["sum", "diagonal"])
def test_the_lower_half_alone_reads_as_the_whole(rng, tmp_path, suffix, outputs):
    factors = every_leaf(rng, 13, rows=2)
    want = entk.assemble(factors, outputs=outputs)
    path = tmp_path / f"K.{suffix}"
    kernel = entk.assemble(factors, out=path, tile=4, triangle="lower", outputs=outputs)
    assert same_bits(np.asarray(kernel), want)
    seen = plain(path)
    above = np.triu_indices(13, 1)
    assert np.isnan(seen[..., above[0], above[1]]).all()
    below = np.tril_indices(13)
    assert np.array_equal(seen[..., below[0], below[1]], want[..., below[0], below[1]])


def test_the_lower_half_of_a_zarr_takes_half_the_files(rng, tmp_path):
    factors = mlp(rng, 32)
    count = {}
    for triangle in ("full", "lower"):
        path = tmp_path / f"{triangle}.zarr"
        entk.assemble(factors, out=path, tile=4, triangle=triangle)
        count[triangle] = sum(len(files) for _, _, files in os.walk(path / "kernel" / "c"))
    assert count == {"full": 64, "lower": 36}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("n", [0, 1])
def test_kernels_of_no_or_one_example_are_stored(rng, tmp_path, suffix, n):
    factors = mlp(rng, 3).take(slice(0, n))
    kernel = entk.assemble(factors, out=tmp_path / f"K.{suffix}")
    assert kernel.complete
    assert kernel.shape == (n, n)
    assert plain(kernel.path).shape == (n, n)
    assert same_bits(np.asarray(kernel), entk.assemble(factors))


@pytest.mark.parametrize("suffix", FORMATS)
def test_propagated_nans_are_stored_where_they_belong(rng, tmp_path, suffix):
    factors = mlp(rng, 12)
    factors["fc1.weight"].acts[7, 2] = np.nan
    want = entk.assemble(factors, nonfinite="propagate")
    path = tmp_path / f"K.{suffix}"
    kernel = entk.assemble(factors, out=path, tile=5, nonfinite="propagate")
    np.testing.assert_array_equal(np.asarray(kernel), want)


@pytest.mark.parametrize("suffix", FORMATS)
def test_overflow_names_the_entry_of_the_whole_kernel(rng, tmp_path, suffix):
    factors = mlp(rng, 12)
    factors["fc1.weight"].acts[9] = 1e30
    factors["fc1.weight"].cots[9] = 1e30
    with pytest.raises(entk.KernelOverflowError) as ram:
        entk.assemble(factors)
    with pytest.raises(entk.KernelOverflowError) as disk:
        entk.assemble(factors, out=tmp_path / f"K.{suffix}", tile=5)
    assert "layer 'fc1.weight'" in str(disk.value)
    assert str(ram.value).partition("]")[2] == str(disk.value).partition("]")[2]
    place = [int(part) for part in str(disk.value).partition("]")[0][2:].split(",")]
    assert 9 in place


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_blas_engine_writes_files_too(rng, tmp_path, suffix):
    factors = mlp(rng, 17)
    kernel = entk.assemble(factors, out=tmp_path / f"K.{suffix}", tile=5, engine="blas")
    array = np.asarray(kernel)
    assert same_bits(array, array.T)
    assert same_bits(plain(kernel.path), array)
    bounds.check(array, factors)


def test_the_array_of_a_zarr_is_what_the_contract_says(rng, tmp_path):
    import zarr

    path = tmp_path / "K.zarr"
    entk.assemble(every_leaf(rng, 10, rows=2), out=path, tile=4, outputs="diagonal")
    group = zarr.open_group(path, mode="r")
    array = group["kernel"]
    assert array.chunks == (1, 4, 4)
    assert array.metadata.dimension_names == ("output", "row", "column")
    assert np.isnan(array.fill_value)
    codecs = [codec.to_dict()["name"] for codec in array.metadata.codecs]
    assert codecs == ["bytes", "crc32c"]
    assert dict(group.attrs)["entk"]["complete"] is True
    entk.assemble(mlp(rng, 10), out=tmp_path / "L.zarr", tile=4)
    array = zarr.open_group(tmp_path / "L.zarr", mode="r")["kernel"]
    assert array.chunks == (4, 4)
    assert array.metadata.dimension_names == ("row", "column")


def test_other_readers_see_the_kernel(rng, tmp_path):
    import dask.array
    import tensorstore
    import xarray

    factors = mlp(rng, 10)
    path = tmp_path / "K.zarr"
    want = np.asarray(entk.assemble(factors, out=path, tile=4))
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "kernel")}}
    assert same_bits(tensorstore.open(spec).result().read().result(), want)
    array = dask.array.from_zarr(str(path / "kernel"))
    assert same_bits(array.compute(scheduler="sync"), want)
    data = xarray.open_zarr(path)
    assert data["kernel"].dims == ("row", "column")
    assert same_bits(data["kernel"].values, want)


@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing_but_the_store_is_left(rng, tmp_path, suffix):
    entk.assemble(mlp(rng, 10), out=tmp_path / f"K.{suffix}", tile=4)
    want = {f"K.{suffix}"} | ({"K.npy.entk"} if suffix == "npy" else set())
    assert set(os.listdir(tmp_path)) == want


@pytest.mark.parametrize("suffix", FORMATS)
def test_progress_starts_at_what_is_done_and_never_goes_back(rng, tmp_path, suffix):
    factors = mlp(rng, 20)
    seen = []
    path = tmp_path / f"K.{suffix}"
    entk.assemble(factors, out=path, tile=5, progress=lambda *both: seen.append(both), part=(0, 2))
    entk.assemble(factors, out=path, tile=5, progress=lambda *both: seen.append(both), part=(1, 2))
    assert seen == [(done, 10) for done in [*range(6), *range(5, 11)]]


def test_the_manifest_says_what_is_stored(rng, tmp_path):
    factors = every_leaf(rng, 6, rows=3)
    kernel = entk.assemble(factors, out=tmp_path / "K.npy", outputs="trace", tile=4)
    info = kernel.info
    assert (info["outputs"], info["normalisation"]) == ("trace", "1/3")
    assert (info["accumulate"], info["engine"], info["tile"]) == ("float32", "fused", 4)
    assert list(info["fingerprints"]) == sorted(factors.leaves)
    assert info["leaves"] == list(factors.leaves)
    assert info["versions"]["numpy"] == np.__version__
    assert "certificate" in info


def test_fingerprints_are_of_values_not_of_layouts(rng, tmp_path):
    factors = mlp(rng, 9)
    changed = {}
    for name, leaf in factors.items():
        if isinstance(leaf, entk.Outer):
            changed[name] = entk.Outer(np.asfortranarray(leaf.acts), leaf.cots.astype(">f4"))
        else:
            changed[name] = entk.Dense(np.repeat(leaf.jac, 2, axis=0)[::2])
    path = tmp_path / "K.zarr"
    entk.assemble(factors, out=path, tile=4)
    kernel = entk.assemble(entk.Factors(changed), out=path, tile=4, resume=True)
    assert kernel.complete


@pytest.mark.parametrize("name", ["K", "K.h5", ".npy", "K.NPY", "K.zarr.zip"])
def test_names_of_other_formats_are_refused(rng, tmp_path, name):
    with pytest.raises(entk.InputError, match=r"must end in \.npy or \.zarr"):
        entk.assemble(mlp(rng, 3), out=tmp_path / name)


def test_more_tiles_than_can_be_kept_account_of_are_refused(tmp_path):
    many = entk.Factors({"w": entk.Dense(np.broadcast_to(np.float32(1), (50_000, 1)))})
    with pytest.raises(entk.InputError, match="too many tiles; take a larger one"):
        entk.assemble(many, out=tmp_path / "K.npy", tile=1)


def test_options_that_contradict_each_other_are_refused(rng, tmp_path):
    factors, path = mlp(rng, 4), tmp_path / "K.npy"
    with pytest.raises(entk.InputError, match="contradict"):
        entk.assemble(factors, out=path, resume=True, overwrite=True)
    with pytest.raises(entk.InputError, match="symmetric"):
        entk.assemble(factors, factors.take([0]), out=path, triangle="lower")
    with pytest.raises(entk.InputError, match="overwrite=True with part="):
        entk.assemble(factors, out=path, overwrite=True, part=(0, 2))
    with pytest.raises(entk.InputError, match="executor must be"):
        entk.assemble(factors, out=path, executor="processes")
    with pytest.raises(entk.StoreError, match="does not exist"):
        entk.assemble(factors, out=tmp_path / "nowhere" / "K.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", [None, 7])
@pytest.mark.parametrize("n", [10, 12])
def test_the_plan_of_a_file_says_how_often_examples_are_read(rng, other, n):
    left = mlp(rng, n)
    right = None if other is None else mlp(rng, other)
    planned = entk.plan(left, right, out="K.npy", tile=3)
    mine, theirs = left.nbytes / n, (right or left).nbytes / (other or n)
    # A tile smaller than a block reads its rows and its columns once.
    want = sum((t.i1 - t.i0) * mine + (t.j1 - t.j0) * theirs for t in planned.tiles)
    assert planned.read_bytes == round(want)
    assert f"(each example {planned.reads:.1f} times)" in str(planned)
