"""What the command line accepts: the meaning of each argument, and which command takes which."""

from __future__ import annotations

import argparse
from pathlib import Path

WORDS = ("full", "sum", "trace", "diagonal")


# What an argument means ---------------------------------------------------------------------------


def part(text: str) -> tuple[int, int]:
    """Read ``k/n``: the k-th of n shares, counted from 0."""
    k, slash, n = text.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not k/n with 0 <= k < n (the first of four shares is 0/4)"
        )
    return int(k), int(n)


def outputs(text: str) -> object:
    """Read a word, the number of an output, or the path of an .npy file of weights."""
    if text in WORDS:
        return text
    if text.isdecimal():
        return int(text)
    if text.endswith(".npy") and Path(text).is_file():
        import numpy as np

        return np.load(text, allow_pickle=False)
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither one of {', '.join(WORDS)}, nor a number, nor an .npy file of weights"
    )


def leaf_weight(text: str) -> tuple[str, float]:
    """Read ``name=weight``; the name may be a glob."""
    name, equals, weight = text.rpartition("=")
    try:
        if equals and name:
            return name, float(weight)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not name=weight")


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")


def memory(text: str) -> str | int:
    """Check a size such as ``4GiB``, or a number of bytes."""
    from entk._errors import InputError
    from entk._options import parse_bytes

    size = int(text) if text.isdecimal() else text
    try:
        parse_bytes(size)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return size


def tiles(text: str) -> str | int:
    """Read ``all``, or how many tiles to sample."""
    return text if text == "all" else positive(text)


# Which command takes which -----------------------------------------------------------------------


def problem(parser: argparse.ArgumentParser, *, needs_out: bool) -> None:
    """Add the arguments that `plan` and `assemble` share."""
    add = parser.add_argument
    add("factors", help="a store of factors (a directory)")
    where = "K.npy or K.zarr; for plan it may be left out (in RAM)"
    add("out_given", metavar="out", nargs="?", help=where)
    add("--out", "-o", help="the same, as an option")
    add("--other", help="a second store of factors: its examples are the columns")
    add("--tile", type=positive, help="side of a tile in rows of the kernel (4096)")
    add("--outputs", type=outputs, help="full, sum, trace, diagonal, a number, or weights.npy")
    add("--dtype", choices=("float32", "float64"), help="of the result")
    add("--accumulate", choices=("float32", "float64"), help="of the sums")
    add("--memory", type=memory, help="bound on what the work adds, e.g. 4GiB")
    add("--threads", type=positive, help="worker threads (all usable cores)")
    add("--engine", choices=("fused", "blas"), help="fused: bit-reproducible (the default)")
    add("--leaf-weight", type=leaf_weight, action="append", default=[], metavar="NAME=W",
        help="weight of a leaf's kernel; the name may be a glob; may be given again")  # fmt: skip
    add("--nonfinite", choices=("raise", "propagate"), help="what a NaN in the factors does")
    add("--triangle", choices=("full", "lower"), help="lower: half the disk")
    add("--part", type=part, metavar="k/n", help="only the k-th of n shares, counted from 0")
    parser.set_defaults(needs_out=needs_out)


def assemble(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `assemble` alone."""
    problem(parser, needs_out=True)
    add = parser.add_argument
    add("--resume", action="store_true", help="continue what was begun; start afresh otherwise")
    add("--overwrite", action="store_true", help="replace what is there, once all is safe")
    add("--quiet", "-q", action="store_true", help="no progress")


def path(parser: argparse.ArgumentParser) -> None:
    """Add the path of a store."""
    parser.add_argument("path", help="a stored kernel: K.npy, K.zarr or its .partial")


def verify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    path(parser)
    parser.add_argument("--tiles", type=tiles, default="all", help="all, or how many to sample")


def info(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `info`."""
    parser.add_argument("path", nargs="?", help="a kernel or factors; none: this installation")


def spectrum(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spectrum`."""
    path(parser)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-k", type=positive, default=10, help="how many of the largest (10)")
    group.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--smallest", action="store_true", help="the smallest instead")
    parser.add_argument("--plot", metavar="FILE", help="draw the spectrum into FILE (.png, .pdf)")


def export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    path(parser)
    parser.add_argument("out", help="the .npy file to write")


def repair(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `repair`."""
    path(parser)
    parser.add_argument("factors", help="the store of factors the kernel was made from")


def demo(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `demo`."""
    parser.add_argument("--out", default="demo-out", help="where the pictures go (demo-out)")
    parser.add_argument("--fast", action="store_true", help="fewer epochs and examples")


def bench(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bench`."""
    add = parser.add_argument
    add("--n", type=positive, default=6144, help="examples (6144)")
    add("--width", type=positive, default=256, help="d_in = d_out of a leaf (256)")
    add("--sum-of-widths", type=positive, default=2048, help="over all leaves (2048)")
    add("--threads", type=positive, help="worker threads (all usable cores)")
