"""Factors on disk: what is written is read back, batch by batch, and nothing else is believed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import entk
from cases import DTYPES, LEAVES, arrays_of, cast, every_leaf, mlp, one_leaf
from entk._manifest import canonical, sealed
from entk._store import FactorWriter


def same_factors(a, b):
    assert a.leaves == b.leaves
    assert (a.n, a.rows, a.n_outputs, a.outputs) == (b.n, b.rows, b.n_outputs, b.outputs)
    assert a.dtype == b.dtype
    for name in a:
        assert a.reason(name) == b.reason(name)
        assert a[name]._signature == b[name]._signature
        for left, right in zip(arrays_of(a[name]), arrays_of(b[name]), strict=True):
            assert np.asarray(left).dtype == np.asarray(right).dtype
            np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
    return True


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize("rows", [1, 3])
def test_every_kind_of_leaf_is_read_back(rng, tmp_path, kind, rows):
    factors = one_leaf(kind, rng, 7, rows)
    factors.save(tmp_path / "F")
    assert same_factors(entk.open(tmp_path / "F"), factors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_p16_every_type_is_read_back_as_itself(rng, tmp_path, dtype):
    factors = every_leaf(rng, 6, dtype=dtype)
    factors.save(tmp_path / "F")
    back = entk.open(tmp_path / "F")
    assert same_factors(back, factors)
    np.testing.assert_array_equal(entk.assemble(back), entk.assemble(factors))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "bool"])
def test_p16_integers_are_read_back_as_themselves(rng, tmp_path, dtype):
    factors = entk.Factors({"a": entk.Dense(cast(rng.integers(0, 2, (4, 3)), dtype))})
    factors.save(tmp_path / "F")
    assert same_factors(entk.open(tmp_path / "F"), factors)


@pytest.mark.parametrize("layout", ["F", "strided", "reversed", "swapped"])
def test_p16_layouts_and_byte_orders_do_not_matter(rng, tmp_path, layout):
    array = rng.standard_normal((6, 8))
    given = {
        "F": np.asfortranarray(array),
        "strided": np.repeat(array, 2, axis=1)[:, ::2],
        "reversed": array[::-1].copy()[::-1],
        "swapped": array.astype(">f8"),
    }[layout]
    entk.Factors({"a": entk.Dense(given)}).save(tmp_path / "F")
    np.testing.assert_array_equal(np.asarray(entk.open(tmp_path / "F")["a"].jac), array)


def test_what_the_rows_mean_is_kept(rng, tmp_path):
    for number, meaning in enumerate(
        ({"outputs": "sum", "n_outputs": 10}, {"outputs": 3, "n_outputs": 7}, {})
    ):
        leaves = {"a": entk.Dense(rng.standard_normal((3, 2)))}
        factors = entk.Factors(leaves, reasons={"a": "because"}, **meaning)
        factors.save(tmp_path / f"{number}")
        assert same_factors(entk.open(tmp_path / f"{number}"), factors)


def test_no_examples_are_kept_too(rng, tmp_path):
    factors = every_leaf(rng, 3).take(slice(0, 0))
    factors.save(tmp_path / "F")
    assert same_factors(entk.open(tmp_path / "F"), factors)


@pytest.mark.parametrize("name", ["a/b", "../../etc/x", "a\\b", "C:", "Fc", "fc", "ü" * 100, "."])
def test_row_75_names_are_data_and_never_paths(rng, tmp_path, name):
    factors = entk.Factors(
        {name: entk.Dense(rng.standard_normal((3, 2))), "fC": mlp(rng, 3)["fc1.bias"]}
    )
    factors.save(tmp_path / "F")
    assert same_factors(entk.open(tmp_path / "F"), factors)
    assert set(os.listdir(tmp_path)) == {"F"}
    assert set(os.listdir(tmp_path / "F")) == {"manifest.json", "000000.bin", "000001.bin"}


def test_arrays_that_leaves_share_are_stored_once(rng, tmp_path):
    factors = mlp(rng, 5)
    factors.save(tmp_path / "F")
    # The biases' Jacobians are the matrices' cotangents.
    assert len(list((tmp_path / "F").glob("*.bin"))) == 4
    assert entk.open(tmp_path / "F").nbytes == factors.nbytes


def test_a_path_stands_for_its_factors(rng, tmp_path):
    factors = mlp(rng, 8)
    factors.save(tmp_path / "F")
    want = entk.assemble(factors)
    np.testing.assert_array_equal(entk.assemble(tmp_path / "F"), want)
    np.testing.assert_array_equal(entk.assemble(str(tmp_path / "F"), factors), want)
    kernel = entk.assemble(factors, out=tmp_path / "K.npy", tile=3)
    again = entk.assemble(str(tmp_path / "F"), out=tmp_path / "K.npy", tile=3, resume=True)
    assert kernel.info == again.info


def test_an_existing_store_is_not_replaced_unasked(rng, tmp_path):
    mlp(rng, 4).save(tmp_path / "F")
    with pytest.raises(entk.StoreError, match="exists; pass overwrite=True or resume=True"):
        mlp(rng, 4).save(tmp_path / "F")


# Batch by batch -----------------------------------------------------------------------------------


def batches_of(factors, size=3):
    return [factors.take(slice(k, k + size)) for k in range(0, factors.n, size)]


def write(path, batches, **options):
    with FactorWriter(path, **options) as writer:
        for batch in batches[writer.batches_done :]:
            writer.append(batch)
        return writer.finish()


@pytest.mark.parametrize("stop", [0, 1, 2, 4])
def test_a_writer_goes_on_where_it_stopped(rng, tmp_path, stop):
    factors = every_leaf(rng, 11)
    batches = batches_of(factors)
    path = tmp_path / "F"
    with FactorWriter(path) as writer:
        for batch in batches[:stop]:
            writer.append(batch)
    assert not path.exists()
    with pytest.raises(entk.StoreIncompleteError, match="unfinished"):
        entk.open(path)
    with FactorWriter(path, resume=True) as writer:
        assert writer.batches_done == stop
        assert writer.rows_done == min(3 * stop, 11)
    assert same_factors(write(path, batches, resume=True), factors)
    with FactorWriter(path, resume=True) as writer:
        assert writer.complete
        assert same_factors(writer.finish(), factors)
    assert set(os.listdir(tmp_path)) == {"F"}


def test_a_torn_batch_is_written_again(rng, tmp_path):
    factors = mlp(rng, 9)
    batches = batches_of(factors)
    path = tmp_path / "F"
    with FactorWriter(path) as writer:
        writer.append(batches[0])
        writer.append(batches[1])
    log = Path(f"{path}.partial/batches.log")
    log.write_bytes(log.read_bytes()[:-3])
    data = Path(f"{path}.partial/000000.bin")
    data.write_bytes(data.read_bytes() + b"leftover of a batch in flight")
    with FactorWriter(path, resume=True) as writer:
        assert writer.batches_done == 1
    assert same_factors(write(path, batches, resume=True), factors)


def test_overwriting_keeps_the_old_store_until_the_end(rng, tmp_path):
    old, new = mlp(rng, 5), mlp(rng, 9)
    path = tmp_path / "F"
    old.save(path)
    with FactorWriter(path, overwrite=True) as writer:
        writer.append(batches_of(new)[0])
    assert same_factors(entk.open(path), old)
    assert same_factors(write(path, batches_of(new), overwrite=True), new)
    assert set(os.listdir(tmp_path)) == {"F"}


def test_a_batch_of_another_network_is_refused(rng, tmp_path):
    with FactorWriter(tmp_path / "F") as writer:
        writer.append(mlp(rng, 3))
        for other in (mlp(rng, 3, widths=((6, 4), (4, 5))), mlp(rng, 3, dtype="float64")):
            with pytest.raises(entk.InputError, match="batch 1 differs from the first one"):
                writer.append(other)
        writer.append(mlp(rng, 2))
        assert writer.finish().n == 5


def test_other_meta_are_refused(rng, tmp_path):
    write(tmp_path / "F", [mlp(rng, 3)], meta={"model": "a"})
    with pytest.raises(entk.StoreMismatchError, match="meta: "):
        FactorWriter(tmp_path / "F", resume=True, meta={"model": "b"})
    FactorWriter(tmp_path / "F", resume=True, meta={"model": "a"}).close()


def test_options_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(entk.InputError, match="contradict"):
        FactorWriter(tmp_path / "F", resume=True, overwrite=True)
    with (
        pytest.raises(entk.InputError, match="at least one batch"),
        FactorWriter(tmp_path / "F") as w,
    ):
        w.finish()
    with pytest.raises(entk.StoreError, match="does not exist"):
        FactorWriter(tmp_path / "nowhere" / "F")
    assert entk.clean(tmp_path / "F")
    assert not os.listdir(tmp_path)


def test_a_second_writer_is_refused(rng, tmp_path):
    with (
        FactorWriter(tmp_path / "F"),
        pytest.raises(entk.StoreLockedError, match=f"pid {os.getpid()}"),
    ):
        FactorWriter(tmp_path / "F", resume=True)


def test_a_killed_writer_goes_on(rng, tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from cases import mlp
from entk._store import FactorWriter
factors = mlp(np.random.default_rng(0), 12)
writer = FactorWriter({str(tmp_path / "F")!r})
for k in (0, 3, 6):
    writer.append(factors.take(slice(k, k + 3)))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    factors = mlp(np.random.default_rng(0), 12)
    with FactorWriter(tmp_path / "F", resume=True) as writer:
        assert writer.batches_done == 3
    assert same_factors(write(tmp_path / "F", batches_of(factors), resume=True), factors)


# Damage -------------------------------------------------------------------------------------------


@pytest.fixture
def store(rng, tmp_path):
    mlp(rng, 6).save(tmp_path / "F")
    return tmp_path / "F"


def rewrite(store, change):
    manifest = json.loads((store / "manifest.json").read_bytes())
    change(manifest)
    (store / "manifest.json").write_bytes(canonical(sealed(manifest)))


@pytest.mark.parametrize(
    "name", ["../../etc/x", "/etc/passwd", "a\0b", "..\\x", "C:x", "000001.bin", "", None, 3]
)
def test_row_75_a_manifest_that_names_other_files_is_unsafe(store, name):
    rewrite(store, lambda manifest: manifest["arrays"][0].update(file=name))
    with pytest.raises(entk.UnsafePathError) as caught:
        entk.open(store)
    assert f"the manifest names {name!r}; entries of a store are numbered files" in str(
        caught.value
    )


def test_row_76_a_link_in_a_store_is_unsafe(store, tmp_path):
    (store / "000000.bin").rename(tmp_path / "elsewhere")
    (store / "000000.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(entk.UnsafePathError, match="symbolic link"):
        entk.open(store)
    (store / "manifest.json").rename(tmp_path / "manifest")
    (store / "manifest.json").symlink_to(tmp_path / "manifest")
    with pytest.raises(entk.UnsafePathError, match="symbolic link"):
        entk.open(store)


def test_a_pipe_in_a_store_does_not_hang(store):
    (store / "000000.bin").unlink()
    os.mkfifo(store / "000000.bin")
    with pytest.raises(entk.UnsafePathError, match="not a plain file"):
        entk.open(store)


def test_a_changed_byte_is_found_at_opening(store):
    data = bytearray((store / "000001.bin").read_bytes())
    data[5] ^= 1
    (store / "000001.bin").write_bytes(bytes(data))
    with pytest.raises(entk.StoreCorruptError, match=r"000001.bin, batch 0: crc32c 0x"):
        entk.open(store)


def test_missing_and_short_files_are_found_at_opening(store):
    data = (store / "000001.bin").read_bytes()
    (store / "000001.bin").write_bytes(data[:-1])
    with pytest.raises(
        entk.StoreCorruptError, match=r"000001.bin is [0-9,]+ bytes, its shape needs"
    ):
        entk.open(store)
    (store / "000001.bin").unlink()
    with pytest.raises(entk.StoreIncompleteError, match=r"000001.bin"):
        entk.open(store)


CHANGES = {
    "n": lambda m: m.update(n=7),
    "negative": lambda m: m["arrays"][0].update(shape=[-1, 4]),
    "huge": lambda m: m["arrays"][0].update(shape=[6, 2**63]),
    "true": lambda m: m["arrays"][0].update(shape=[6, True]),
    "dtype": lambda m: m["arrays"][0].update(dtype="O"),
    "kind": lambda m: m["leaves"][0].update(kind="os.system"),
    "number": lambda m: m["leaves"][0].update(arrays=[0, 99]),
    "too few": lambda m: m["leaves"][0].update(arrays=[0]),
    "name": lambda m: m["leaves"][0].update(name=3),
    "no leaves": lambda m: m.update(leaves=[]),
    "twice": lambda m: m["leaves"][0].update(name=m["leaves"][1]["name"]),
    "batches": lambda m: m["arrays"][0].update(batches=[[5, 0]]),
    "arrays": lambda m: m.update(arrays={}),
    "format": lambda m: m.update(format=2),
    "a kernel": lambda m: m.update(kind="kernel"),
    "unknown": lambda m: m.update(hook="os.system"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_that_does_not_describe_factors_is_refused(store, change):
    rewrite(store, CHANGES[change])
    with pytest.raises((entk.StoreFormatError, entk.StoreCorruptError)):
        entk.open(store)


def test_no_prefix_and_no_flipped_bit_of_a_manifest_is_accepted(store, rng):
    held = (store / "manifest.json").read_bytes()
    for end in range(0, len(held), 37):
        (store / "manifest.json").write_bytes(held[:end])
        with pytest.raises((entk.StoreError,)):
            entk.open(store)
    for at in rng.integers(0, len(held), 100):
        changed = bytearray(held)
        changed[at] ^= 1 << int(rng.integers(8))
        (store / "manifest.json").write_bytes(bytes(changed))
        with pytest.raises((entk.StoreError,)):
            entk.open(store)


def test_a_manifest_of_a_later_version_says_so(store):
    def later(manifest):
        manifest["format"] = 4
        manifest["versions"]["entk"] = "3.1"

    rewrite(store, later)
    text = r"written by entk 3.1 \(format 4\); this version reads 1-1"
    with pytest.raises(entk.StoreFormatError, match=text):
        entk.open(store)


def test_opening_what_is_not_there_says_so(tmp_path):
    for name in ("F", "K.npy", "K.zarr"):
        with pytest.raises(entk.StoreIncompleteError, match="does not exist"):
            entk.open(tmp_path / name)
    (tmp_path / "x.txt").touch()
    with pytest.raises(entk.StoreFormatError, match="neither a kernel"):
        entk.open(tmp_path / "x.txt")
    with pytest.raises(entk.StoreError):
        entk.assemble(str(tmp_path / "F"))


def test_row_89_a_mapped_file_that_changes_is_noticed(rng, tmp_path):
    factors = mlp(rng, 12)
    factors.save(tmp_path / "F")
    opened = entk.open(tmp_path / "F")

    def report(done, _):
        if done == 2:
            with open(tmp_path / "F" / "000000.bin", "r+b") as file:
                file.write(b"xxxx")
            os.utime(tmp_path / "F" / "000000.bin", ns=(1, 1))

    with pytest.raises(entk.InputChangedError, match=r"000000.bin changed"):
        entk.assemble(opened, out=tmp_path / "K.npy", tile=4, progress=report)


def test_row_90_a_mapped_file_that_is_replaced_is_read_to_its_end(rng, tmp_path):
    factors, other = mlp(rng, 12), mlp(rng, 12)
    factors.save(tmp_path / "F")
    other.save(tmp_path / "G")
    opened = entk.open(tmp_path / "F")
    os.replace(tmp_path / "G" / "000000.bin", tmp_path / "F" / "000000.bin")
    kernel = entk.assemble(opened, out=tmp_path / "K.npy", tile=4)
    np.testing.assert_array_equal(np.asarray(kernel), entk.assemble(factors))
