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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Bug:
    """A change of one file, and the tests that must fail then."""

    promise: str
    file: str
    old: str
    new: str
    tests: str
    kind: str = "python"


BUGS = [
    Bug(
        "P8",
        "rust/kernel/expand.rs",
        "let at = (start - to_first, start - from_first);",
        "let at = (start - to_first, 0);",
        "tests/test_error_bounds.py tests/test_definition.py",
        "build",
    ),
    Bug(
        "P2",
        "rust/kernel/body.rs",
        "sum[j][i] = row[i].mul_add(col[j], sum[j][i]);",
        "sum[j][i] = row[i].times(col[j]).plus(sum[j][i]);",
        "tests/test_bits.py -k p2_golden",
        "build",
    ),
    Bug(
        "P5",
        "rust/contraction.rs",
        "let both_alike = positions > 1 && groups > 0;",
        "let both_alike = positions > 1 && groups > 1;",
        "tests/test_bits.py -k p2_golden",
        "build",
    ),
    Bug(
        "P4",
        "rust/kernel/body.rs",
        "a[j][i].times(b[j][i]).plus(c[j][i].times(d[j][i]));",
        "a[j][i].mul_add(b[j][i], c[j][i].times(d[j][i]));",
        "tests/test_bits.py -k p4",
        "build",
    ),
    Bug(
        "P6",
        "python/entk/_values.py",
        "        if bad and stop:\n            break\n",
        "        if pieces and stop:\n            break\n",
        "tests/test_faults_values.py",
    ),
    Bug(
        "P11",
        "rust/gemm/check.rs",
        "*self.good &= right || overflows;",
        "*self.good &= right || overflows || size > 0.0;",
        "tests/test_blas_engine.py -k p11",
        "build",
    ),
    Bug(
        "P13",
        "rust/kernel/scan.rs",
        "let bad = wrong != [F::ZERO; LANES];",
        "let bad = wrong[0] != F::ZERO;",
        "tests/test_faults_values.py",
        "build",
    ),
    Bug(
        "P14",
        "rust/kernel/isa.rs",
        "set_control(0x1f80);",
        "set_control(0x9fc0);",
        "tests -k row_47",
        "build",
    ),
    Bug(
        "P15",
        "python/entk/_kernel_files.py",
        "        if not partial:\n            raise StoreIncompleteError(\n",
        "        if False:\n            raise StoreIncompleteError(\n",
        "tests/test_store_damage.py -k before_the_last_rename",
    ),
    Bug(
        "P16",
        "python/entk/_factor_store.py",
        'np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")',
        'np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder(">")',
        "tests/test_store_factors.py -k p16",
    ),
    Bug(
        "P17",
        "python/entk/_committer.py",
        "if self._count >= self._most or",
        "if",
        "tests/test_store_kills.py -k p17_random",
    ),
    Bug(
        "P17",
        "rust/store/npy.rs",
        "        sync(&self.vfs, &self.data, path)\n",
        "        Result::Ok(())\n",
        "store::",
        "rust",
    ),
    Bug(
        "P18",
        "rust/store/zarr.rs",
        "        sync(&self.sink.store.vfs, self.file, self.path)?;\n",
        "",
        "ten_thousand_power_cuts",
        "rust",
    ),
    Bug(
        "P19",
        "rust/store/vfs.rs",
        'Err(error) => return Err(Fault::at("pwrite", path, Some(at), error)),',
        "Err(error) => { let _ = error; return Ok(()) }",
        "every_failing_operation",
        "rust",
    ),
    Bug(
        "P19",
        "python/entk/_writer.py",
        "        os.fdatasync(self._log)\n        self._end += len(line)\n",
        "        self._end += len(line)\n        os.fdatasync(self._log)\n",
        "tests/test_store_writer.py",
    ),
    # None for P20: its test would fill the disk.
    Bug(
        "P21",
        "rust/py/assemble.rs",
        "cancel.store(true, Ordering::Relaxed);\n                stopped",
        "stopped",
        "tests/test_process.py -k ctrl_c",
        "build",
    ),
    Bug(
        "P22",
        "python/entk/_repair.py",
        "        _paths.PARTIAL,\n        _paths.LOCK,\n",
        "        _paths.PARTIAL,\n",
        "tests/test_store_damage.py -k clean_removes",
    ),
    Bug(
        "P23",
        "rust/store/lock.rs",
        "Some(false) => return Err(held(vfs, &file, store)),",
        "Some(false) => true,",
        "second_writer",
        "rust",
    ),
    Bug(
        "P24",
        "python/entk/_stored.py",
        "            return 2, 2 * one + writing\n    return 1, one + writing\n",
        "            return 2, 0\n    return 1, 0\n",
        "tests/test_limits.py",
    ),
    Bug(
        "P24",
        "python/entk/_stored.py",
        "        return now.limit - self.held\n",
        "        return job.memory.limit - self.held\n",
        "tests/test_limits_lowered.py",
    ),
    Bug(
        "P25",
        "python/entk/_options.py",
        "            if limit < self.fences.get(source, math.inf)\n",
        "            if limit < self.fences.get(source, 0)\n",
        "tests/test_limits_lowered.py",
    ),
    Bug(
        "P24",
        "rust/gemm/one_side.rs",
        "    let rows = side * (example + t * r * d_out);\n",
        "    let rows = example;\n",
        "tests/test_process.py -k p24_one_side",
        "build",
    ),
    Bug(
        "P25",
        "rust/limits.rs",
        '"memory.high"',
        '"memory.higher"',
        "limits::",
        "rust",
    ),
    Bug(
        "P26",
        "python/entk/_committer.py",
        "or self._bytes >= _COMMIT_BYTES or late",
        "or late",
        "tests/test_faults_disk.py -k p26",
    ),
    Bug(
        "P27",
        "rust/kernel/arena.rs",
        "allocate(room).ok_or(Error::Allocation { bytes: room })?",
        'allocate(room).expect("memory")',
        "tests/test_faults_process.py -k row_100",
        "build",
    ),
    Bug(
        "row 105",
        "python/entk/_patience.py",
        "        with waiting(what):\n            return function(*arguments)\n",
        "        return function(*arguments)\n",
        "tests/test_store_damage.py -k row_105",
    ),
    Bug(
        "row 105",
        "python/entk/_patience.py",
        "        with waiting(what):\n            item = next(rest, _END)\n",
        "        item = next(rest, _END)\n",
        "tests/test_store_damage.py -k row_105",
    ),
    Bug(
        "row 105",
        "python/entk/_patience.py",
        "        timer.cancel()\n        timer.join()\n",
        "        timer.join()\n",
        "tests/test_store_damage.py -k row_105",
    ),
    Bug(
        "threads",
        "rust/block.rs",
        "max().unwrap_or(0) * self.pairs().len();",
        "max().unwrap_or(0);",
        "tests/test_threads.py",
        "build",
    ),
    Bug(
        "threads",
        "rust/block.rs",
        "team::with(self.threads.min(tiles),",
        "team::with(self.threads,",
        "tests/test_threads.py",
        "build",
    ),
    Bug(
        "P28",
        "rust/py/store.rs",
        "match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {",
        "match Ok::<_, Box<dyn std::any::Any + Send>>(py.detach(work)) {",
        "tests/test_faults_process.py -k row_118",
        "build",
    ),
    Bug(
        "P29",
        "python/entk/_workers.py",
        'if _current is None or _current.token != f"{task.token} {os.getpid()}":',
        "if _current is None:",
        "tests/test_store_workers.py -k 'opened_where_they_are or resumes'",
    ),
    Bug(
        "P30",
        "python/entk/_watch.py",
        "if now is not None and now != before and now[0] == before[0]:",
        "if now is None:",
        "tests/test_store_factors.py -k row_89",
    ),
    Bug(
        "P31",
        "python/entk/_factor_store.py",
        "        if given != file_name(number):\n",
        "        if given is None:\n",
        "tests/test_store_factors.py -k row_75",
    ),
    Bug(
        "P31",
        "rust/store/header.rs",
        '    if length > LIMIT {\n        let text = format!(".npy header',
        '    if length > u64::MAX - LIMIT {\n        let text = format!(".npy header',
        "header::",
        "rust",
    ),
    Bug(
        "P31",
        "rust/store/log.rs",
        "let place = self.sums.get_mut(index).ok_or(tile)?;",
        "let place = &mut self.sums[index];",
        "log::",
        "rust",
    ),
    Bug(
        "P32",
        "python/entk/_plan.py",
        "    if size > _LARGEST or",
        "    if False and size > _LARGEST or",
        "tests/test_faults_assemble.py -k 'row_11 or row_12'",
    ),
    Bug(
        "P33",
        "python/entk/_workers.py",
        "_TRIES = 3\n",
        "_TRIES = 1\n",
        "tests/test_store_workers.py -k three_times",
    ),
    Bug(
        "P33",
        "python/entk/_workers.py",
        "        if broken and not alone:\n            lost.append(index)\n            return\n",
        "        if broken and not alone:\n            return\n",
        "tests/test_store_workers.py -k dead_worker",
    ),
    Bug(
        "P33",
        "rust/py/store.rs",
        "        run(py, || self.locked().commit())\n",
        "        let batch = self.locked().take();\n        run(py, || batch.commit())\n",
        "tests/test_store_workers.py -k took_it_along",
        "build",
    ),
]


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
    parser.add_argument("--only", nargs="+", default=[], metavar="P", help="promises")
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
