"""Break the code on purpose, a bug a promise, and see tests fail: `python tests/seeded_bugs.py`.

In a copy of the project one line is changed at a time, and the tests that should notice are run.
`--only P17 P18` takes some of them, `--rust` also those of the core, which is compiled for each.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from seeds import BUGS

ROOT = Path(__file__).resolve().parents[1]


def command_of(bug, folder):
    """The shell line that runs the tests of a bug in a copy of the project."""
    if bug.kind == "rust":
        where = bug.tests if bug.tests.startswith("--test") else f"--lib {bug.tests}"
        return f"cargo test -q {where}"
    run = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {bug.tests}"
    if bug.kind == "python":
        return run
    # A build without optimisation; the tests in question measure nothing.
    built = "CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo build -q --features python,fault"
    return f"{built} && cp target/debug/libentk.so python/entk/_core.abi3.so && {run}"


def red(bug, folder):
    """Whether the tests notice; None if the code to change is not there any more."""
    path = folder / bug.file
    held = path.read_text(encoding="utf-8")
    if held.count(bug.old) != 1:
        return None
    path.write_text(held.replace(bug.old, bug.new), encoding="utf-8")
    core = folder / "python/entk/_core.abi3.so"
    kept = core.read_bytes()
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder / "python"),
        "PYO3_PYTHON": sys.executable,
    }
    done = subprocess.run(
        command_of(bug, folder),
        cwd=folder,
        env=environment,
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    path.write_text(held, encoding="utf-8")
    core.write_bytes(kept)
    said = (done.stdout + done.stderr).strip().splitlines()
    print("   ", next((line for line in said if "FAILED" in line or "panicked" in line), said[-1]))
    # 101: a Rust test failed; a build that fails says "could not compile".
    return done.returncode != 0 and not any("could not compile" in line for line in said)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="P",
        help="promises, or what else a bug is filed under",
    )
    parser.add_argument("--rust", action="store_true", help="those of the core too")
    parser.add_argument("--target", type=Path, help="where cargo builds, to be used again")
    options = parser.parse_args()
    chosen = [bug for bug in BUGS if not options.only or bug.promise in options.only]
    chosen = [bug for bug in chosen if options.rust or bug.kind == "python"]
    unseen = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("python", "rust", "tests", "fuzz/corpus", "benches", "docs"):
            ignored = shutil.ignore_patterns("__pycache__", "target")
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        for part in ("Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / part, folder / part)
        if options.target:
            options.target.mkdir(exist_ok=True)
            (folder / "target").symlink_to(options.target.resolve())
        for bug in chosen:
            print(
                f"{bug.promise} {bug.file}: {bug.new.strip()[:70] or 'a line removed'!r}",
                flush=True,
            )
            seen = red(bug, folder)
            print(
                "    red" if seen else "    NOT SEEN" if seen is False else "    STALE", flush=True
            )
            unseen += [] if seen else [bug]
    print(f"{len(chosen)} bugs, {len(unseen)} not seen")
    return bool(unseen)


if __name__ == "__main__":
    sys.exit(main())
