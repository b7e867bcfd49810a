"""The command `entk`: what it prints, where, and how it exits."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import entk
from entk._cli import COMMANDS, main
from entk._progress import Progress

TILE = 16
N = 50


@pytest.fixture(scope="module")
def factors():
    """Give factors of two outputs: one outer and one dense leaf."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    leaves = {
        "fc.weight": entk.Outer(draw(N, 5), draw(N, 2, 4)),
        "fc.bias": entk.Dense(draw(N, 2, 3)),
    }
    return entk.Factors(leaves)


@pytest.fixture(scope="module")
def store(factors, tmp_path_factory):
    """Give the path of the factors on disk."""
    path = tmp_path_factory.mktemp("factors") / "F.entk"
    factors.save(path)
    return str(path)


@pytest.fixture
def kernel(store, tmp_path):
    """Give the path of a finished kernel made of the trace."""
    path = str(tmp_path / "K.zarr")
    arguments = ["assemble", store, path, "--tile", str(TILE), "--outputs", "trace", "--quiet"]
    assert main(arguments) == 0
    return path


def said(capsys):
    """Read what a command printed with --json."""
    return json.loads(capsys.readouterr().out)


class Terminal(io.StringIO):
    """A stream that a person watches."""

    def isatty(self):
        return True


@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_help_is_there_for_every_command(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*([command] if command else []), "--help"])
    assert left.value.code == 0
    assert "usage: entk" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["assemble"],
        ["assemble", "F"],
        ["assemble", "F", "K.npy", "--out", "K.zarr"],
        ["assemble", "F", "K.npy", "--part", "4/4"],
        ["assemble", "F", "K.npy", "--part", "1"],
        ["assemble", "F", "K.npy", "--tile", "0"],
        ["assemble", "F", "K.npy", "--threads", "-1"],
        ["assemble", "F", "K.npy", "--memory", "4 gigs"],
        ["assemble", "F", "K.npy", "--outputs", "some"],
        ["assemble", "F", "K.npy", "--leaf-weight", "fc"],
        ["assemble", "F", "K.npy", "--leaf-weight", "fc=much"],
        ["assemble", "F", "K.npy", "--resume", "--overwrite"],
        ["assemble", "F", "K.npy", "--engine", "fast"],
        ["verify", "K.npy", "--tiles", "some"],
        ["spectrum", "K.npy", "-k", "0"],
        ["export", "K.zarr"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: entk" in capsys.readouterr().err


def test_a_failure_exits_with_1_and_names_the_class(tmp_path, capsys):
    missing = str(tmp_path / "missing")
    assert main(["info", missing]) == 1
    got = capsys.readouterr()
    assert got.out == ""
    assert got.err.startswith("entk: ")
    assert "missing" in got.err


def test_plan_prints_what_the_function_says(store, capsys):
    assert main(["plan", store, "--tile", str(TILE), "--json"]) == 0
    got = said(capsys)
    want = entk.plan(store, tile=TILE)
    assert got["peak_bytes"] == want.peak_bytes
    assert got["flops"] == want.flops
    assert len(got["leaves"]) == 2
    assert main(["plan", store]) == 0
    assert "fc.weight" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_assemble_writes_the_bits_of_the_function(factors, store, suffix, tmp_path, capsys):
    path = str(tmp_path / f"K.{suffix}")
    arguments = ["assemble", store, "--out", path, "--tile", str(TILE), "--outputs", "sum"]
    assert main([*arguments, "--leaf-weight", "*.bias=0.5", "--json"]) == 0
    assert said(capsys)["complete"]
    want = entk.assemble(factors, outputs="sum", leaf_weights={"*.bias": 0.5})
    with entk.open(path) as got:
        np.testing.assert_array_equal(np.asarray(got), want)


def test_an_existing_output_is_kept_unless_told(store, kernel, capsys):
    arguments = ["assemble", store, kernel, "--tile", str(TILE), "--outputs", "trace", "--quiet"]
    assert main(arguments) == 1
    assert "overwrite" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert main([*arguments, "--overwrite"]) == 0


def test_shares_make_one_kernel_and_status_counts_its_tiles(factors, store, tmp_path, capsys):
    path = str(tmp_path / "K.zarr")
    arguments = ["assemble", store, path, "--tile", str(TILE), "--outputs", "trace", "--json"]
    assert main([*arguments, "--part", "0/2"]) == 0
    assert not said(capsys)["complete"]
    assert main(["status", path, "--json"]) == 0
    half = said(capsys)
    assert not half["complete"]
    assert 0 < half["done"] < half["tiles"]
    assert main(["verify", path]) == 1
    capsys.readouterr()
    assert main([*arguments, "--part", "1/2"]) == 0
    assert said(capsys)["complete"]
    assert main(["status", path, "--json"]) == 0
    full = said(capsys)
    assert full["complete"]
    assert full["done"] == full["tiles"] == half["tiles"]
    with entk.open(path) as got:
        np.testing.assert_array_equal(np.asarray(got), entk.assemble(factors, outputs="trace"))


def test_info_describes_factors_and_kernels_and_the_installation(store, kernel, capsys):
    assert main(["info", store, "--json"]) == 0
    got = said(capsys)
    assert got["kind"] == "factors"
    assert [leaf["name"] for leaf in got["leaves"]] == ["fc.weight", "fc.bias"]
    assert main(["info", kernel, "--json"]) == 0
    got = said(capsys)
    assert got["kind"] == "kernel"
    assert got["shape"] == [N, N]
    assert main(["info", kernel]) == 0
    assert "float32" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert capsys.readouterr().out


def test_verify_finds_a_flipped_byte_and_repair_mends_it(store, kernel, capsys):
    assert main(["verify", kernel, "--json"]) == 0
    assert said(capsys)["ok"]
    chunk = Path(kernel) / "kernel" / "c" / "1" / "0"
    held = bytearray(chunk.read_bytes())
    held[100] ^= 1
    chunk.write_bytes(bytes(held))
    assert main(["verify", kernel]) == 1
    assert "(1, 0)" in capsys.readouterr().err
    assert main(["repair", kernel, store]) == 0
    assert main(["verify", kernel]) == 0


def test_spectrum_agrees_with_numpy(kernel, capsys):
    with entk.open(kernel) as held:
        want = np.linalg.eigvalsh(np.asarray(held, dtype=np.float64))
    assert main(["spectrum", kernel, "--all", "--json"]) == 0
    got = said(capsys)["values"]
    bound = N * 2.0**-24 * want[-1]
    assert np.abs(np.sort(got) - want).max() <= bound
    assert main(["spectrum", kernel, "-k", "3", "--json"]) == 0
    got = said(capsys)["values"]
    assert np.abs(np.sort(got) - want[-3:]).max() <= bound


def test_export_writes_a_plain_npy_file(kernel, tmp_path, capsys):
    out = str(tmp_path / "plain.npy")
    assert main(["export", kernel, out]) == 0
    with entk.open(kernel) as held:
        np.testing.assert_array_equal(np.load(out), np.asarray(held))


def test_clean_removes_what_a_share_left(store, tmp_path, capsys):
    path = tmp_path / "K.zarr"
    assert main(["assemble", store, str(path), "--tile", str(TILE), "--part", "0/3", "-q"]) == 0
    assert list(tmp_path.iterdir())
    assert main(["clean", str(path)]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_stopped_run_leaves_a_store_that_resumes(store, factors, tmp_path, number, status):
    path = str(tmp_path / "K.zarr")
    command = [sys.executable, "-m", "entk", "assemble", store, path, "--tile", "4"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        line = next(line for line in running.stderr if not line.startswith("entk: 0/"))
        running.send_signal(number)
        running.stderr.read()
    assert "tiles" in line
    assert running.returncode == status
    assert not Path(path).exists()
    assert main(["assemble", store, path, "--tile", "4", "--resume", "--quiet"]) == 0
    with entk.open(path) as got:
        np.testing.assert_array_equal(np.asarray(got), entk.assemble(factors))


def test_a_log_gets_a_line_for_each_tenth_and_never_goes_back():
    stream = io.StringIO()
    with Progress(stream) as progress:
        for done in range(1001):
            progress(done, 1000)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11
    assert all(line.startswith("entk: ") for line in lines)
    assert lines[-1].startswith("entk: 1000/1000 tiles, 100 %")


def test_a_terminal_gets_one_line_that_is_drawn_again():
    stream = Terminal()
    with Progress(stream) as progress:
        progress(0, 4)
        progress(4, 4)
    drawn = stream.getvalue()
    assert drawn.count("\r") == 2
    assert drawn.count("\n") == 1
    assert "4/4 tiles, 100 %" in drawn


def test_progress_of_an_empty_kernel_is_complete():
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress(0, 0)
    assert "100 %" in stream.getvalue()


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "entk", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.split() == ["entk", metadata.version("entk")]
