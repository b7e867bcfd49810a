"""The command line: one thin function a command over the package's own functions.

Results go to standard output, progress and errors to standard error. The exit status is 0 when all
is fine, 1 when the work failed, 2 when the command line was wrong, 130 after Ctrl-C and 143 after
SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from entk import _arguments as take
from entk._errors import EntkError, InputError
from entk._progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from entk import Kernel

PROBLEM = (
    *("tile", "outputs", "dtype", "accumulate", "memory", "threads"),
    *("engine", "nonfinite", "triangle", "part"),
)


# What is printed ----------------------------------------------------------------------------------


def plain(value: object) -> object:
    """Turn what JSON does not know into what it does: NumPy scalars and arrays, records, paths."""
    if hasattr(value, "_asdict"):
        return value._asdict()
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "items"):
        return dict(value.items())
    return str(value)


def emit(options: argparse.Namespace, data: dict[str, object], text: str) -> None:
    """Print the data for a script, or the text for a person."""
    print(json.dumps(data, default=plain) if options.json else text)


# Advice of the functions, as somebody who types commands would follow it.
ADVICE = (
    (re.compile(r"\b(resume|overwrite)=True"), r"--\1"),
    (re.compile(r"\b(memory|tile)=(?=\)| than)"), r"--\1"),
    (re.compile(r'\bout="(K\.npy)"'), r"--out \1"),
    (re.compile(r"entk\.open\(path, partial=True\)( shows it)?"), "`entk status` shows it"),
    (re.compile(r"entk\.repair\(path(, factors)?\)"), "`entk repair`"),
    (re.compile(r"\bcall resume\b"), "continue with --resume"),
)


def advised(text: str) -> str:
    """Say an error's text in options and commands."""
    for pattern, words in ADVICE:
        text = pattern.sub(words, text)
    return text


def table(rows: Sequence[tuple[str, object]]) -> str:
    """Lay out names and values in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


# Commands -----------------------------------------------------------------------------------------


def problem(options: argparse.Namespace) -> dict[str, Any]:
    """Collect the arguments of `entk.plan` and `entk.assemble` that were given."""
    given = {name: getattr(options, name) for name in PROBLEM}
    given["leaf_weights"] = dict(options.leaf_weight) or None
    given["out"] = options.out
    return {name: value for name, value in given.items() if value is not None}


def kernel_at(path: str, *, partial: bool = False) -> Kernel:
    """Open a stored kernel.

    Raises
    ------
    InputError
        If the path holds factors.
    """
    import entk

    found = entk.open(path, partial=partial)
    if isinstance(found, entk.Factors):
        raise InputError(f"{path} holds factors; this command needs a kernel")
    return found


def cmd_plan(options: argparse.Namespace) -> int:
    """Say what an assembly would cost, without doing it."""
    import entk

    plan = entk.plan(options.factors, options.other, **problem(options))
    names = ("shape", "dtype", "flops", "peak_bytes", "read_bytes", "out_bytes")
    data: dict[str, object] = {name: getattr(plan, name) for name in names}
    data["tiles"] = len(plan.tiles)
    data["leaves"] = [leaf._asdict() for leaf in plan.leaves]
    emit(options, data, str(plan))
    return 0


def cmd_assemble(options: argparse.Namespace) -> int:
    """Assemble a kernel from a store of factors into a file."""
    import entk

    with Progress(sys.stderr, quiet=options.quiet) as progress:
        made = entk.assemble(
            options.factors,
            options.other,
            **problem(options),
            progress=progress,
            resume=options.resume,
            overwrite=options.overwrite,
        )
    kernel = cast("Kernel", made)  # as always for a path
    tiles = f"{kernel.tiles_done} of {kernel.tiles_total} tiles"
    done = "complete" if kernel.complete else f"{tiles}; other shares are to do the rest"
    data = {"out": options.out, "shape": kernel.shape, "dtype": str(kernel.dtype)}
    shape = " x ".join(str(side) for side in kernel.shape)
    emit(options, data | {"complete": kernel.complete}, f"{options.out}: {shape}, {done}")
    return 0


def cmd_status(options: argparse.Namespace) -> int:
    """Say how far an assembly has come."""
    with kernel_at(options.path, partial=True) as kernel:
        done, of = kernel.tiles_done, kernel.tiles_total
        data = {"path": options.path, "complete": kernel.complete, "shape": kernel.shape}
        data |= {"dtype": str(kernel.dtype), "tile": kernel.tile, "done": done, "tiles": of}
    share = 100.0 * done / of if of else 100.0
    state = "complete" if data["complete"] else "unfinished"
    emit(options, data, f"{options.path}: {state}, {done} of {of} tiles ({share:.1f} %)")
    return 0


def cmd_verify(options: argparse.Namespace) -> int:
    """Read tiles back and compare their checksums."""
    with kernel_at(options.path) as kernel:
        report = kernel.verify(tiles=options.tiles)
    emit(options, {"path": options.path, "ok": True, "report": report}, f"{options.path}: {report}")
    return 0


def cmd_info(options: argparse.Namespace) -> int:
    """Describe a store, or this installation when no path is given."""
    import entk

    if options.path is None:
        from entk._config import config

        if options.json:
            print(json.dumps({name or "version": value for name, value in config().items()}))
        else:
            entk.show_config()
        return 0
    found = entk.open(options.path, partial=True)
    if isinstance(found, entk.Factors):
        leaves = [{"name": name, "reason": found.reason(name)} for name in found.leaves]
        data = {"kind": "factors", "n": found.n, "rows": found.rows, "nbytes": found.nbytes}
        data |= {"n_outputs": found.n_outputs, "outputs": found.outputs, "leaves": leaves}
        emit(options, data | {"dtype": str(found.dtype)}, str(found))
        return 0
    with found as kernel:
        data = {"kind": "kernel", "shape": kernel.shape, "dtype": str(kernel.dtype)}
        data |= {"tile": kernel.tile, "complete": kernel.complete, "info": kernel.info}
        rest = {name: value for name, value in kernel.info.items() if value is not None}
        rows = list({**rest, **data}.items())[:-1]
    emit(options, data, table(rows))
    return 0


def cmd_spectrum(options: argparse.Namespace) -> int:
    """Compute eigenvalues of a symmetric kernel."""
    import numpy as np

    from entk import linalg

    with kernel_at(options.path) as kernel:
        if options.all:
            spectrum = linalg.eigvalsh(kernel)
            values, floor = np.asarray(spectrum), spectrum.floor
        else:
            found = linalg.eigsh(kernel, options.k, which="SA" if options.smallest else "LM")
            values, floor = np.asarray(found.values), found.floor
        if options.plot:
            from matplotlib.figure import Figure

            from entk import plot

            figure = Figure(layout="constrained")
            plot.spectrum(kernel, ax=figure.add_subplot())
            figure.savefig(options.plot, dpi=150)
    lines = [*(f"{value: .9e}" for value in values), f"noise floor {floor:.3e}"]
    emit(options, {"values": values, "floor": floor}, "\n".join(lines))
    return 0


def cmd_export(options: argparse.Namespace) -> int:
    """Write a stored kernel as one .npy file."""
    with kernel_at(options.path) as kernel:
        kernel.to_npy(options.out)
    emit(options, {"path": options.path, "out": options.out}, f"{options.out}: written")
    return 0


def cmd_repair(options: argparse.Namespace) -> int:
    """Recompute the tiles that fail verification."""
    import entk

    report = entk.repair(options.path, options.factors)
    emit(options, {"path": options.path, "report": report}, f"{options.path}: {report}")
    return 0


def cmd_clean(options: argparse.Namespace) -> int:
    """Remove left-over partial files of an assembly that will not be continued."""
    import entk

    removed = entk.clean(options.path)
    text = "\n".join(f"removed {name}" for name in removed) or "nothing to remove"
    emit(options, {"path": options.path, "removed": removed}, text)
    return 0


def cmd_demo(options: argparse.Namespace) -> int:
    """Train two networks on digits, assemble their kernels, regress with them."""
    from entk._demo import run

    return run(Path(options.out), fast=options.fast, as_json=options.json)


def cmd_bench(options: argparse.Namespace) -> int:
    """Measure assembly on this machine."""
    from entk._bench import measure

    data, text = measure(options.n, options.width, options.sum_of_widths, options.threads)
    emit(options, data, text)
    return 0


# The parser ---------------------------------------------------------------------------------------


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], Callable[[Any], None]]] = {
    "demo": (cmd_demo, take.demo),
    "plan": (cmd_plan, lambda parser: take.problem(parser, needs_out=False)),
    "assemble": (cmd_assemble, take.assemble),
    "status": (cmd_status, take.path),
    "verify": (cmd_verify, take.verify),
    "info": (cmd_info, take.info),
    "spectrum": (cmd_spectrum, take.spectrum),
    "export": (cmd_export, take.export),
    "repair": (cmd_repair, take.repair),
    "clean": (cmd_clean, take.path),
    "bench": (cmd_bench, take.bench),
}


def make_parser() -> argparse.ArgumentParser:
    """Build the parser with all commands."""
    import entk

    parser = argparse.ArgumentParser(prog="entk", description=entk.__doc__)
    parser.add_argument("--version", action="version", version=f"entk {metadata.version('entk')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (function, add_arguments) in COMMANDS.items():
        says = (function.__doc__ or "").strip()
        command = commands.add_parser(name, help=says, description=says)
        add_arguments(command)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.set_defaults(function=function, parser=command)
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a wrong one ends the process with status 2."""
    options = make_parser().parse_args(arguments)
    if hasattr(options, "out_given"):
        if options.out and options.out_given:
            options.parser.error("out is given twice")
        options.out = options.out or options.out_given
    if getattr(options, "needs_out", False) and not options.out:
        options.parser.error("out is needed: K.npy or K.zarr")
    if getattr(options, "resume", False) and options.overwrite:
        options.parser.error("--resume and --overwrite exclude each other")
    return options


def terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    """Leave as schedulers expect after SIGTERM; finished tiles are safe by then."""
    raise SystemExit(143)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = parse(arguments)
    # Only the main thread may set handlers; elsewhere signals stay the caller's business.
    ours = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminated) if ours else None
    try:
        status: int = options.function(options)
    except (EntkError, OSError) as error:
        print(f"entk: {type(error).__name__}: {advised(str(error))}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("entk: interrupted; finished tiles are safe", file=sys.stderr)
        status = 130
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)
    return status
