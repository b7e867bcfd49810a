"""The demonstration at its smallest: what it prints and draws, with and without matplotlib."""

from __future__ import annotations

import json
import sys

import pytest

from entk import _demo
from entk._demo import COLUMNS, Size
from entk._measure import Cost

TINY = Size(epochs=1, subset=20, held_out=30)
HEAD = b"\x89PNG"


@pytest.fixture(scope="module")
def studies():
    """Give what is found for the smaller network."""
    from entk._demo_networks import load

    return [_demo.study("MLP", load(), TINY)]


@pytest.fixture
def only_the_mlp(studies, monkeypatch):
    """Let the demonstration find what was found already."""
    from entk import _demo_networks

    monkeypatch.setattr(_demo_networks, "NETWORKS", {"MLP": None})
    monkeypatch.setattr(_demo, "study", lambda _name, _digits, _size: studies[0])


def test_every_kernel_is_in_the_table_with_its_figures(studies):
    lines = _demo.table(studies).splitlines()
    assert all(name in lines[0] for name in COLUMNS)
    methods = [line.split("  ")[0] for line in lines[2:]]
    kernels = ["pNTK, all images", "pNTK, subset", "trace, subset", "full eNTK, subset"]
    assert methods == [f"MLP: {name}" for name in ["the network", *kernels]]
    assert all("%" in line for line in lines[2:])


def test_kernels_of_one_epoch_are_better_than_chance_ten_times(studies):
    found = {row.method: row.accuracy for row in studies[0].rows}
    assert found["pNTK, all images"] > 0.9
    assert min(found.values()) > 0.4


def test_entries_count_kernel_and_cross_kernel(studies):
    entries = {row.method: row.entries for row in studies[0].rows}
    n, m = TINY.subset, TINY.held_out
    assert entries["trace, subset"] == n * n + m * n
    assert entries["full eNTK, subset"] == 100 * (n * n + m * n)
    assert entries["pNTK, all images"] == 1797**2


def test_pictures_are_drawn(only_the_mlp, tmp_path, capsys):
    assert _demo.run(tmp_path) == 0
    for name in ("kernel.png", "spectrum.png"):
        assert (tmp_path / name).read_bytes().startswith(HEAD)
    said = capsys.readouterr().out
    assert "kernel.png" in said
    assert "to stand for the full kernel" in said


def test_without_matplotlib_it_says_so_and_goes_on(only_the_mlp, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert _demo.run(tmp_path / "out") == 0
    assert "matplotlib is missing: no pictures" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_without_jax_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax", None)
    assert _demo.run(tmp_path) == 1
    assert "pip install 'entk[jax,sklearn,plot]'" in capsys.readouterr().out


def test_a_script_gets_json(only_the_mlp, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_demo, "draw", lambda *_: [])
    assert _demo.run(tmp_path, as_json=True) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["networks"]["MLP"][0]["method"] == "the network"


def test_cost_sees_memory_that_came_and_went():
    # Linux counts resident pages per thread and adds them up every 64 pages.
    size, lag = 64 * 2**20, 2**20
    with Cost() as cost:
        held = bytearray(size)
        held[:: 2**12] = b"x" * len(held[:: 2**12])
        del held
    assert size - lag <= cost.peak_bytes < 2 * size
    assert cost.seconds > 0
