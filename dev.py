#!/usr/bin/env python3
"""Set up, build, check and try entk: ``python3 dev.py demo|test|bench|lint``.

Standard library only. The first run makes ``.venv``, installs what the command needs (the extras of
pyproject.toml) and builds the Rust core in release mode; later runs repeat only what changed.
Written so that an old Python can still read it, and say in one sentence what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = tuple[str, list[str] | Callable[[], int]]

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMPS = VENV / "entk-stamps"
MIN_PYTHON = (3, 11)

# What each command needs, as extras of pyproject.toml; maturin and pip come with every one.
EXTRAS = {
    "demo": ("jax", "plot", "sklearn"),
    "test": ("dev",),
    "lint": ("dev",),
    "bench": ("jax", "torch", "plot", "sklearn"),
}
# What cargo calls the module on Linux, macOS and Windows.
LIBRARIES = ("libentk.so", "libentk.dylib", "entk.dll")
BUILD_INPUTS = ("Cargo.toml", "Cargo.lock", "pyproject.toml", "LICENSE", "rust")


class SetupError(Exception):
    """Something outside the project is missing; the text is the one sentence to print."""


# Tools ------------------------------------------------------------------------------------------


def check_python() -> None:
    """Refuse a Python that is too old."""
    if sys.version_info < MIN_PYTHON:
        raise SetupError(
            "entk needs Python 3.11 or newer, but this is Python {}.{}; run `python3.11 dev.py` or "
            "newer, from https://www.python.org/downloads/.".format(*sys.version_info[:2])
        )


def cargo_home_bin() -> Path:
    """Where rustup puts cargo when PATH does not have it."""
    return Path(os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))) / "bin"


def check_rust() -> None:
    """Refuse a missing or too old Rust toolchain."""
    wanted = re.search(r'^rust-version = "([\d.]+)"', (ROOT / "Cargo.toml").read_text(), re.M)
    need = wanted.group(1) if wanted else "1.85"
    search = os.pathsep.join([os.environ.get("PATH", ""), str(cargo_home_bin())])
    rustc = shutil.which("rustc", path=search)
    if rustc is None or shutil.which("cargo", path=search) is None:
        raise SetupError(
            f"entk's core is written in Rust, and no Rust toolchain was found: install Rust "
            f"{need} or newer from https://rustup.rs and run this again."
        )
    said = subprocess.run([rustc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"rustc (\d+\.\d+)", said)
    if found is None or _version(found.group(1)) < _version(need):
        raise SetupError(
            f"entk needs Rust {need} or newer, but found {said.strip() or rustc}: "
            "run `rustup update`."
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def venv_python() -> Path:
    """Return the interpreter of the project's environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def environment() -> dict[str, str]:
    """Return the environment of every child: our interpreter first, cargo found."""
    env = dict(os.environ)
    path = [str(venv_python().parent), env.get("PATH", ""), str(cargo_home_bin())]
    env["PATH"] = os.pathsep.join(path)
    env["VIRTUAL_ENV"] = str(VENV)
    env["PYO3_PYTHON"] = str(venv_python())
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = env["PIP_QUIET"] = "1"
    env.pop("PYTHONHOME", None)
    return env


def run(command: list[str], **extra: str) -> int:
    """Run one command from the project's root with its output on ours; its exit status."""
    sys.stdout.flush()
    env = {**environment(), **extra}
    try:
        return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    except FileNotFoundError:
        print(f"dev.py: {command[0]} was not found", file=sys.stderr)
        return 127


def need(command: list[str], failed: str) -> None:
    """Run a set-up step that must succeed."""
    if run(command) != 0:
        raise SetupError(failed)


# Set-up, each step behind a stamp -----------------------------------------------------------------


def make_venv() -> None:
    """Create .venv if it is not there."""
    if venv_python().exists():
        return
    print("dev.py: making .venv")
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False)
    if made.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError(
            "Python could not make a virtual environment; on Debian and Ubuntu install the package "
            "python3-venv, then run this again."
        )


def project_requirements(extras: tuple[str, ...]) -> list[str]:
    """List the requirements of the package with these extras, `entk[...]` inside them resolved."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    optional = project["project"]["optional-dependencies"]
    wanted = dict.fromkeys(project["build-system"]["requires"])
    wanted.update(dict.fromkeys(project["project"]["dependencies"]))
    pending = list(extras)
    while pending:
        for requirement in optional[pending.pop()]:
            own = re.fullmatch(r"entk\[([\w,\s-]+)\]", requirement)
            if own:
                pending += [name.strip() for name in own.group(1).split(",")]
            else:
                wanted[requirement] = None
    return sorted(wanted)


def digest(*texts: str) -> str:
    """One hash over several texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def build_digest() -> str:
    """One hash over everything the compiled module is made of."""
    files = []
    for name in BUILD_INPUTS:
        path = ROOT / name
        files += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    parts = [sys.version, str(ROOT)]
    for path in files:
        parts += [str(path.relative_to(ROOT)), hashlib.sha256(path.read_bytes()).hexdigest()]
    return digest(*parts)


def stamped(name: str, value: str) -> bool:
    """Whether the step's stamp holds this value."""
    stamp = STAMPS / name
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == value


def write_stamp(name: str, value: str) -> None:
    """Remember that the step is done."""
    STAMPS.mkdir(parents=True, exist_ok=True)
    (STAMPS / name).write_text(value, encoding="utf-8")


def install(command: str) -> None:
    """Install what the command needs, unless the stamp says that it is there."""
    wanted = project_requirements(EXTRAS[command])
    name, value = "install-" + "-".join(EXTRAS[command]), digest(sys.version, *wanted)
    if stamped(name, value):
        return
    print(f"dev.py: installing {len(wanted)} requirements ({', '.join(EXTRAS[command])})")
    pip = [str(venv_python()), "-m", "pip", "install"]
    need([*pip, *wanted], "pip could not install the requirements; its own words are above.")
    write_stamp(name, value)


def build() -> None:
    """Build the Rust core in release mode and install the package in place."""
    value = build_digest()
    package = ROOT / "python" / "entk"
    built = [*package.glob("_core*.so"), *package.glob("_core*.pyd")]
    if built and stamped("build", value):
        return
    print("dev.py: building the Rust core (release)")
    maturin = [str(venv_python()), "-m", "maturin", "develop", "--release", "--quiet"]
    need(maturin, "The Rust core did not build; the compiler's words are above.")
    write_stamp("build", value)


def set_up(command: str) -> None:
    """Everything before the command itself."""
    started = time.monotonic()
    check_python()
    check_rust()
    make_venv()
    install(command)
    build()
    print(f"dev.py: ready after {time.monotonic() - started:.1f} s", flush=True)


# Commands -----------------------------------------------------------------------------------------


def python(*arguments: str) -> list[str]:
    """Make a command line for the environment's interpreter."""
    return [str(venv_python()), *arguments]


def lint_steps(*, fast: bool) -> list[Step]:
    """Format, lints and types; `fast` leaves out what compiles or imports much."""
    clippy = ["cargo", "clippy", "--quiet", "--all-targets"]
    deny = ["--", "-D", "warnings"]
    stubtest = ("-m", "mypy.stubtest", "--mypy-config-file", "pyproject.toml", "entk._core")
    steps: list[Step] = [
        ("cargo fmt", ["cargo", "fmt", "--check"]),
        ("ruff check", python("-m", "ruff", "check", ".")),
        ("ruff format", python("-m", "ruff", "format", "--check", ".")),
    ]
    if not fast:
        steps += [
            ("cargo clippy", [*clippy, *deny]),
            ("cargo clippy python", [*clippy, "--features", "python", *deny]),
            ("mypy", python("-m", "mypy")),
            ("stubtest", python(*stubtest)),
        ]
    return steps


def pytest_command(extra: list[str], *, fast: bool) -> list[str]:
    """Pytest over the tests, the docstrings and the pages; or over what the user names."""
    if extra:
        return python("-m", "pytest", *extra)
    what = ["tests"]
    if not fast:
        pages = [str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/*.md"))]
        what += ["python/entk", "README.md", *pages, "--doctest-modules", "--doctest-glob=*.md"]
    return python("-m", "pytest", "-q", *(["-x"] if fast else []), *what)


def run_steps(steps: list[Step]) -> list[tuple[str, int, float]]:
    """Run every step, also after a failure, so that one run shows all there is to mend."""
    results = []
    for name, step in steps:
        print(f"\n--- {name}", flush=True)
        started = time.monotonic()
        status = step() if callable(step) else run(step)
        results.append((name, status, time.monotonic() - started))
    return results


def kill_points() -> int:
    """Run the tests that kill a process at named points, on a build that has such points.

    A release has none, so the package is built and copied apart from the one in use.
    """
    features = ["--features", "python,fault"]
    status = run(["cargo", "build", "--quiet", *features], PYO3_BUILD_EXTENSION_MODULE="1")
    target = Path(os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target")))
    made = [target / "debug" / name for name in LIBRARIES if (target / "debug" / name).exists()]
    if status or not made:
        return status or 1
    apart = target / "fault"
    shutil.rmtree(apart, ignore_errors=True)
    skip = shutil.ignore_patterns("_core*.so", "_core*.pyd", "__pycache__")
    shutil.copytree(ROOT / "python" / "entk", apart / "entk", ignore=skip)
    suffix = ".pyd" if os.name == "nt" else ".abi3.so"
    shutil.copy(made[0], apart / "entk" / f"_core{suffix}")
    tests = ["-q", "tests/test_store_kills.py", "-k", "named_point"]
    return run(python("-m", "pytest", *tests), PYTHONPATH=str(apart))


def summary(results: list[tuple[str, int, float]]) -> None:
    """One line a step."""
    print()
    for name, status, seconds in results:
        print(f"{'ok' if status == 0 else 'FAILED':>8}  {name:<20} {seconds:7.1f} s")
    print(flush=True)


def cmd_lint(extra: list[str], *, fast: bool) -> int:
    """Run formatters, lints and types."""
    if extra:
        raise SetupError("dev.py lint takes no further arguments.")
    results = run_steps(lint_steps(fast=fast))
    summary(results)
    return int(any(status for _, status, _ in results))


def cmd_test(extra: list[str], *, fast: bool) -> int:
    """Run all checks; pytest comes last, so that its own summary closes the log."""
    steps = [] if extra else [*lint_steps(fast=fast), ("cargo test", ["cargo", "test"])]
    if not (extra or fast):
        steps.append(("kill points", kill_points))
    results = run_steps(steps)
    if results:
        summary(results)
    print("--- pytest", flush=True)
    status = run(pytest_command(extra, fast=fast))
    failed = [name for name, code, _ in results if code]
    if failed:
        print(f"dev.py: failed before pytest: {', '.join(failed)}", flush=True)
    return int(bool(failed) or status != 0)


def cmd_demo(extra: list[str], *, fast: bool) -> int:
    """Run the demonstration on scikit-learn's digits."""
    return run(python("-m", "entk", "demo", *(["--fast"] if fast else []), *extra))


def cmd_bench(extra: list[str], *, fast: bool) -> int:
    """Run the core's table and the memory bench; --peers: all that compare; --paper: figures."""
    short = ["--fast"] if fast else []
    rest = [word for word in extra if word not in ("--paper", "--peers")]
    steps: list[Step] = [
        ("core", python("benches/core.py", *(short or ["--rounds", "3"]), *rest)),
        ("memory", python("benches/memory.py", "--fast")),
    ]
    if "--peers" in extra:
        names = ("core", "assembly", "scaling", "memory", "stores", "products")
        names += ("peer_neural_tangents",)
        steps = [(name, python(f"benches/{name}.py", *short, *rest)) for name in names]
        names = ("contractions", "extraction", "extraction_torch", "products_jax", "lowrank")
        steps += [(name, python(f"benches/{name}.py", *rest)) for name in names]
    if "--paper" in extra:
        picture = ["--plot", "bench-out/pntk-convergence.png"]
        steps = [
            ("convergence", python("benches/paper.py", *short, *picture, *rest)),
            ("accuracy", python("benches/accuracy.py", *short, *rest)),
        ]
    results = run_steps(steps)
    summary(results)
    return int(any(status for _, status, _ in results))


COMMANDS = {"demo": cmd_demo, "test": cmd_test, "bench": cmd_bench, "lint": cmd_lint}


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our command and flag; everything else goes to the command."""
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description=__doc__.split("\n\n")[0],
        epilog="bench --peers runs every bench that compares, bench --paper reproduces figures of "
        "the pNTK's paper; anything else goes on to the command (test tests/test_bits.py -k zarr).",
    )
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument(
        "--fast",
        action="store_true",
        help="demo, bench: smaller; lint: no clippy, mypy, stubtest; test: also no doctests, stop "
        "at the first failure",
    )
    return parser.parse_known_args(arguments)


def main(arguments: list[str]) -> int:
    """Set up, then run the command; the exit status is the command's."""
    options, extra = parse(arguments)
    try:
        set_up(options.command)
        return COMMANDS[options.command](extra, fast=options.fast)
    except SetupError as missing:
        print(f"dev.py: {missing}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
