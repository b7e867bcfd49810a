"""What a call would do: tiles, flops, bytes and contractions, from shapes alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

from entk import _core
from entk._errors import InputError, MemoryLimitError, SizeError
from entk._options import Memory, integer
from entk._problem import Cut, Problem

_LARGEST = 2**63 - 1
_WORDS = {
    "product": "one Gram each, multiplied in registers",
    "gram": "one Gram",
    "pairs": "A: pairs of positions",
    "expand": "B: expanded per tile",
    "one-side": "D: one side expanded",
    "match": "ids that meet",
}


class Tile(NamedTuple):
    """Rows ``i0:i1`` and columns ``j0:j1`` of the kernel."""

    i0: int
    i1: int
    j0: int
    j1: int


@dataclass(frozen=True)
class Tiles(Sequence[Tile]):
    """The tiles of a kernel, row by row; of a symmetric kernel those with ``i0 >= j0``."""

    rows: int
    cols: int
    side: int
    symmetric: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along the rows and the columns."""
        return -(-self.rows // self.side), -(-self.cols // self.side)

    def __len__(self) -> int:
        down, across = self.grid
        return down * (down + 1) // 2 if self.symmetric else down * across

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tile]: ...
    def __getitem__(self, index: int | slice) -> Tile | list[Tile]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        return self._tile(*self.place(index % len(self)))

    def __iter__(self) -> Iterator[Tile]:
        return (self[i] for i in range(len(self)))

    def place(self, index: int) -> tuple[int, int]:
        """Return the position of tile `index` in the grid."""
        if not self.symmetric:
            return divmod(index, self.grid[1])
        row = int(((8 * index + 1) ** 0.5 - 1) / 2)
        while row * (row + 1) // 2 > index:
            row -= 1
        while (row + 1) * (row + 2) // 2 <= index:
            row += 1
        return row, index - row * (row + 1) // 2

    def _tile(self, i: int, j: int) -> Tile:
        i0, j0 = i * self.side, j * self.side
        return Tile(i0, min(i0 + self.side, self.rows), j0, min(j0 + self.side, self.cols))


class LeafPlan(NamedTuple):
    """How one leaf is contracted."""

    name: str
    kind: str
    contraction: str
    flops: int
    reason: str


@dataclass(frozen=True, eq=False)
class Plan:
    """What `entk.assemble` would do; printing it shows a table.

    Attributes
    ----------
    tiles : sequence of Tile
        In the order of work.
    flops : int
        Floating-point operations, shared Gram products counted once.
    peak_bytes : int
        Most memory that the call adds, the result included where it is allocated.
    read_bytes : int
        Bytes of factors read to compute the tiles. Before them all are read once to look at their
        values; for a path twice more, for checksums and fingerprints.
    out_bytes : int
        Bytes of the result.
    leaves : tuple of LeafPlan
        Name, kind, contraction, flops and reason of every leaf that takes part.
    """

    tiles: Tiles
    flops: int
    peak_bytes: int
    read_bytes: int
    out_bytes: int
    leaves: tuple[LeafPlan, ...]
    shape: tuple[int, ...]
    dtype: str
    accumulate: str
    threads: int
    memory: Memory
    engine: str
    block: int
    passes: int
    factor_bytes: int

    @property
    def reads(self) -> float:
        """How often each example's factors are read to compute the tiles, on average."""
        return self.read_bytes / self.factor_bytes if self.factor_bytes else 0.0

    def __str__(self) -> str:
        alone = sum(leaf.flops for leaf in self.leaves)
        saved = 1 - self.flops / alone if alone else 0.0
        lines = [
            f"kernel {'x'.join(map(str, self.shape))} {self.dtype}, accumulated in "
            f"{self.accumulate}, engine {self.engine}, {self.threads} threads",
            f"tiles  {len(self.tiles):,} of side {self.tiles.side:,}; blocks of {self.block:,} "
            f"examples in {self.passes} pass{'es' if self.passes != 1 else ''}",
            f"work   {self.flops:.3g} flops"
            + (f" ({saved:.0%} saved by shared arrays)" if saved > 0.005 else ""),
            f"memory {in_bytes(self.peak_bytes)} at most, limit {in_bytes(self.memory.limit)} "
            f"({self.memory.source})",
            f"bytes  {in_bytes(self.read_bytes)} read (each example {self.reads:.1f} times), "
            f"{in_bytes(self.out_bytes)} of result",
            "",
        ]
        width = max([4, *(len(leaf.name) for leaf in self.leaves)])
        lines.append(f"{'leaf':<{width}}  {'kind':<7}{'flops':>9}  contraction")
        lines += [
            f"{leaf.name:<{width}}  {leaf.kind:<7}{leaf.flops:>9.2g}  "
            f"{leaf.contraction}{': ' + leaf.reason if leaf.reason else ''}"
            for leaf in self.leaves
        ]
        return "\n".join(lines)

    __repr__ = __str__


def in_bytes(count: int) -> str:
    """Return a size for people, rounded up in its last place."""
    if count < 1024:
        return f"{count} B"
    value, unit = float(count), "B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):  # noqa: B007
        value /= 1024
        if value < 1024:
            break
    tenths = int(value * 10)
    return f"{tenths / 10:.1f} {unit}"


def _up(count: int) -> str:
    """Return a size for people that is never less than `count`."""
    if count < 1 << 20:
        return f"{-(-count * 10 // 1024) / 10:.1f} KiB"
    return f"{-(-count * 10 // (1 << 20)) / 10:.1f} MiB"


def tile_side(tile: object, problem: Problem) -> int:
    """Return the side of a tile in rows of the kernel: whole examples, within the kernel."""
    side = integer(tile, "tile")
    rows = max(problem.shape[-2:])
    side = min(side, max(rows, 1))
    return max(side // problem.block, 1) * problem.block


def check_sizes(problem: Problem, dtype: str) -> int:
    """Return the bytes of the result.

    Raises
    ------
    SizeError
        If they exceed 63 bits.
    """
    item = 4 if dtype == "float32" else 8
    size = item
    for length in problem.shape:
        size *= length
    if size > _LARGEST or max(problem.shape, default=0) > _LARGEST:
        n, m = problem.examples
        what = f"{n:,} x {problem.factors.rows} outputs"
        if n != m:
            what += f" against {m:,} x {problem.factors.rows} outputs"
        needs = f"{size:.1e}".replace("e+", "e")
        raise SizeError(
            f"kernel of {what} needs {needs} bytes (> 2^63-1); use the matrix-free operator or a "
            "subset" + _smaller(problem)
        )
    return size


def _smaller(problem: Problem) -> str:
    if problem.mode != "full":
        return ""
    return "; outputs='trace' or 'sum' (N x N) and 'diagonal' (O x N x N) are smaller"


def result_too_large(problem: Problem, size: int, memory: Memory) -> MemoryLimitError:
    """Return the refusal of a result that does not fit in RAM but would fit on disk."""
    return MemoryLimitError(
        f"result needs {in_bytes(size)}, limit {in_bytes(memory.limit)} ({memory.source}); "
        f'write to disk with out="K.npy"{_smaller(problem)}'
    )


def whole_cut(problem: Problem) -> Cut:
    """Return the cut that is the whole kernel."""
    n, m = problem.examples
    return ("square", [0, n]) if problem.other is None else ("rectangle", [0, n, 0, m])


def core_plan(
    problem: Problem,
    options: Mapping[str, Any],
    memory: Memory,
    result: int,
    engine: str = "fused",
) -> Any:
    """Ask the core for blocks and bytes; `result` bytes are for the result.

    The blocks of ``engine="blas"`` count, and those of the engine that may have to take over.

    Raises
    ------
    MemoryLimitError
        With the smallest limit that would do.
    """
    rows, cols = problem.sides()
    try:
        planned = _core.plan(rows, cols, options)
        if engine == "blas":
            fallback = planned["bytes"]
            planned |= _core.blas_plan(rows, cols, options)
            planned["bytes"] = max(planned["bytes"], fallback)
        return planned
    except MemoryLimitError as error:
        needs, what = getattr(error, "needs", None), getattr(error, "what", "")
        if needs is None:
            raise
        raise MemoryLimitError(
            f"needs at least {_up(needs + result)} for {what}; "
            f"got {in_bytes(memory.limit)} ({memory.source})"
        ) from None


def make_plan(
    problem: Problem,
    *,
    tile: int,
    dtype: str,
    accumulate: str,
    threads: int,
    memory: Memory,
    engine: str,
    isa: str | None,
    held: int,
    least: int = 0,
    by_tile: bool = False,
) -> Plan:
    """Plan a checked problem; `held` is what of the result counts against the limit."""
    size = check_sizes(problem, dtype)
    options = problem.options(
        whole_cut(problem),
        double=accumulate == "float64",
        threads=threads,
        limit=max(memory.limit - held, 0),
        isa=isa,
    )
    core = core_plan(problem, options, memory, max(held, least), engine)
    n, m = problem.examples
    entries = n * m if problem.other is not None else n * (n + 1) // 2
    leaves = tuple(
        LeafPlan(
            name,
            problem.factors[name].kind.lower(),
            _WORDS[contraction],
            flops * entries,
            problem.factors.reason(name),
        )
        for name, (contraction, flops) in zip(problem.names, core["leaves"], strict=True)
    )
    rows, cols = problem.shape[-2:]
    tiles = Tiles(rows, cols, tile, problem.other is None)
    return Plan(
        tiles=tiles,
        flops=core["flops_per_pair"] * entries,
        peak_bytes=core["bytes"] + held,
        read_bytes=_read_bytes(problem, core["block"], core["passes"], tile if by_tile else None),
        factor_bytes=problem.factors.nbytes + (problem.other.nbytes if problem.other else 0),
        out_bytes=size,
        leaves=leaves,
        shape=problem.shape,
        dtype=dtype,
        accumulate=accumulate,
        threads=threads,
        memory=memory,
        engine=engine,
        block=min(core["block"], max(n, m, 1)),
        passes=core["passes"],
    )


def _read_bytes(problem: Problem, block: int, passes: int, tile: int | None) -> int:
    """Count bytes read: of the whole kernel, or of tiles of that side one after another."""
    n, m = problem.examples
    if not n or not m:
        return 0
    symmetric = problem.other is None
    side = max(n, m) if tile is None else max(tile // problem.block, 1)
    rows = cols = 0
    for (high, tops), (wide, lefts) in itertools.product(_cut(n, side), _cut(m, side)):
        pairs, squares = tops * lefts, 0
        if symmetric:
            # Tiles below the diagonal, whole ones before the last one, and those on it.
            squares = tops if high == wide and tops == lefts else 0
            pairs = tops * (tops - 1) // 2 if squares else pairs * (high < wide)
        for count, square in ((pairs, False), (squares, True)):
            down, across = _block_reads(high, wide, block, passes, square=square)
            rows, cols = rows + count * down, cols + count * across
    mine, theirs = problem.factors.nbytes / n, (problem.other or problem.factors).nbytes / m
    return int(rows * mine + cols * theirs)


def _cut(length: int, side: int) -> list[tuple[int, int]]:
    """Return the lengths of the parts of a side, and how many there are of each."""
    whole, rest = divmod(length, side)
    return [(side, whole)] * (whole > 0) + [(rest, 1)] * (rest > 0)


def _block_reads(high: int, wide: int, block: int, passes: int, *, square: bool) -> tuple[int, int]:
    """Count rows and columns read: a block reads its columns, a row of blocks its rows."""
    down, across = -(-high // block), -(-wide // block)
    blocks = down * (down + 1) // 2 if square else down * across
    row_reads = down if passes <= 1 else blocks
    return row_reads * min(block, high), blocks * min(block, wide)


def check_part(part: object) -> tuple[int, int] | None:
    """Return ``part=(k, n)`` if it is one: share k of n, from 0."""
    if part is None:
        return None
    if not isinstance(part, tuple) or len(part) != 2:
        raise InputError(f"part must be (k, n) (got {part!r})")
    k, n = integer(part[0], "part[0]", 0), integer(part[1], "part[1]")
    if k >= n:
        raise InputError(f"part=({k}, {n}): k must be below n")
    return k, n
