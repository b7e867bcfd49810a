"""dev.py: what a person sees when something is missing, and what a second run repeats."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def dev(monkeypatch, tmp_path):
    """Give dev.py as a module whose project is a small copy in a temporary folder."""
    spec = importlib.util.spec_from_file_location("entk_dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "rust").mkdir()
    (tmp_path / "rust" / "lib.rs").write_text("// empty\n")
    (tmp_path / "python" / "entk").mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMPS", tmp_path / ".venv" / "entk-stamps")
    return module


def one_sentence(text):
    return text.startswith("dev.py: ") and text.count("\n") == 1 and text.endswith(".\n")


def test_an_old_python_gets_one_sentence(dev, monkeypatch, capsys):
    monkeypatch.setattr(dev.sys, "version_info", (3, 9, 1))
    assert dev.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert one_sentence(said)
    assert "Python 3.11 or newer" in said
    assert "Python 3.9" in said


def test_a_missing_rust_gets_one_sentence(dev, monkeypatch, capsys):
    monkeypatch.setattr(dev.shutil, "which", lambda *_args, **_kwargs: None)
    assert dev.main(["test"]) == 1
    said = capsys.readouterr().err
    assert one_sentence(said)
    assert "https://rustup.rs" in said


def test_an_old_rust_gets_one_sentence(dev, monkeypatch, capsys):
    old = subprocess.CompletedProcess([], 0, stdout="rustc 1.70.0 (90c541806 2023-05-31)\n")
    monkeypatch.setattr(dev.shutil, "which", lambda name, **_kwargs: f"/bin/{name}")
    monkeypatch.setattr(dev.subprocess, "run", lambda *_args, **_kwargs: old)
    assert dev.main(["bench"]) == 1
    said = capsys.readouterr().err
    assert one_sentence(said)
    assert "1.70.0" in said
    assert "rustup update" in said


def test_a_second_run_builds_again_only_after_a_change(dev, monkeypatch, capsys):
    built = []

    def maturin(command, _failed):
        built.append(command)
        (dev.ROOT / "python" / "entk" / "_core.abi3.so").touch()

    monkeypatch.setattr(dev, "need", maturin)
    dev.build()
    dev.build()
    assert len(built) == 1
    (dev.ROOT / "rust" / "lib.rs").write_text("// changed\n")
    dev.build()
    assert len(built) == 2
    (dev.ROOT / "python" / "entk" / "_core.abi3.so").unlink()
    dev.build()
    assert len(built) == 3


def test_extras_are_installed_once_and_without_our_own_name(dev, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(dev, "need", lambda command, _failed: commands.append(command))
    dev.install("test")
    dev.install("test")
    assert len(commands) == 1
    wanted = commands[0][commands[0].index("install") + 1 :]
    assert any(name.startswith("jax") for name in wanted)
    assert any(name.startswith("pytest") for name in wanted)
    assert not any(name.startswith("entk") for name in wanted)


def test_a_failing_step_fails_the_whole_and_the_rest_still_runs(dev, monkeypatch, capsys):
    seen = []

    def step(command):
        seen.append(command)
        return 1 if command[:2] == ["cargo", "fmt"] else 0

    monkeypatch.setattr(dev, "run", step)
    monkeypatch.setattr(dev, "kill_points", lambda: 0)
    assert dev.cmd_test([], fast=False) == 1
    said = capsys.readouterr().out
    assert "FAILED  cargo fmt" in said
    assert any("pytest" in command for command in seen)
    assert said.rstrip().endswith("failed before pytest: cargo fmt")


@pytest.mark.parametrize("status", [0, 1, 5])
def test_the_exit_status_is_that_of_pytest(dev, monkeypatch, capsys, status):
    monkeypatch.setattr(dev, "run", lambda command: status if "pytest" in command else 0)
    monkeypatch.setattr(dev, "kill_points", lambda: 0)
    assert dev.cmd_test([], fast=False) == int(status != 0)


@pytest.mark.parametrize("fast", [True, False])
def test_the_paper_has_benches_of_its_own(dev, monkeypatch, capsys, fast):
    seen = []
    monkeypatch.setattr(dev, "run", lambda command: seen.append(command[1:]) or 0)
    assert dev.cmd_bench(["--paper", "--record"], fast=fast) == 0
    assert [command[0] for command in seen] == ["benches/paper.py", "benches/accuracy.py"]
    assert ("--fast" in seen[0]) == ("--fast" in seen[1]) == fast
    assert "--record" in seen[0]
    assert "--paper" not in seen[0]
    for command in seen:
        assert (ROOT / command[0]).is_file()
