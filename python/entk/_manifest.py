"""Manifests: what a store holds, in canonical JSON with a checksum of its own."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from entk import _core
from entk._errors import InputError, StoreFormatError, StoreMismatchError

if TYPE_CHECKING:
    from entk._job import Job

FORMAT = 1
# What 100,000 leaves with long names need; see DESIGN.md. What is read is bounded twice: by bytes,
# and by values, since a short text can hold many.
LONGEST = 1 << 26
_MOST_VALUES = 1 << 22
_SUM = "crc32c"
# Fields in which a stored kernel must agree with the one asked for, in the order of messages.
IDENTITY = (
    "kind",
    "format",
    "kernel_abi",
    "shape",
    "dtype",
    "tile",
    "triangle",
    "outputs",
    "output_weights",
    "accumulate",
    "engine",
    "nonfinite",
    "leaves",
    "leaf_weights",
)

# Whatever else a manifest holds was not written by this version.
_BOTH = ("kind", "format", "outputs", "leaves", "versions", "complete", "replaces", _SUM)
_KNOWN = {
    "kernel": frozenset(
        (*_BOTH, *IDENTITY, "symmetric", "normalisation", "fingerprints", "certificate")
    ),
    "factors": frozenset((*_BOTH, "n_outputs", "arrays", "meta", "n")),
}

Manifest = dict[str, Any]


def canonical(value: object) -> bytes:
    """Return the one JSON text of a value: sorted keys, no blanks, no NaN."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )
    return text.encode("ascii")


def document(value: object, where: str) -> bytes:
    """Return the text of a manifest that is to be written.

    Raises
    ------
    InputError
        If it would be longer than what is read.
    """
    text = canonical(value)
    if len(text) > LONGEST:
        raise InputError(
            f"{where}: the names of its leaves make a manifest of {len(text):,} bytes; at most "
            f"{LONGEST:,} are read. Take shorter names, or select fewer leaves"
        )
    return text


def checksum(data: bytes) -> int:
    """CRC-32C of bytes."""
    return int(_core.crc32c(np.frombuffer(data, np.uint8)))


def sealed(manifest: Mapping[str, Any]) -> Manifest:
    """Return the manifest with its checksum."""
    bare = {key: value for key, value in manifest.items() if key != _SUM}
    return {**bare, _SUM: f"{checksum(canonical(bare)):08x}"}


def parse(data: bytes, where: str) -> Any:
    """Parse JSON strictly: no key twice, no NaN, no deep nesting.

    Raises
    ------
    StoreFormatError
        If it is not that.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number here")

    if data.count(b",") > _MOST_VALUES:
        raise StoreFormatError(f"{where}: not a manifest (more than {_MOST_VALUES:,} values)")
    try:
        return json.loads(data, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise StoreFormatError(f"{where}: not a manifest ({error})") from None


def opened(found: object, where: str, kind: str) -> Manifest:
    """Return a manifest that was read, if it is whole and of this version.

    Raises
    ------
    StoreFormatError
        If it is half-written, changed, or of a later version.
    """
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        raise StoreFormatError(f"{where}: not a manifest of entk")
    if not 1 <= found["format"] <= FORMAT:
        raise StoreFormatError(
            f"{where}: written by entk {_version(found)} (format {found['format']}); this version "
            f"reads 1-{FORMAT}"
        )
    if sealed(found)[_SUM] != found.get(_SUM):
        raise StoreFormatError(f"{where}: the manifest does not match its checksum")
    if found.get("kind") != kind:
        raise StoreFormatError(f"{where}: holds {found.get('kind')!r}, not a {kind}")
    unknown = sorted(set(found) - _KNOWN[kind])
    if unknown:
        raise StoreFormatError(f"{where}: unknown field {unknown[0]!r}")
    return found


def _version(found: Mapping[str, Any]) -> str:
    versions = found.get("versions")
    return str(versions.get("entk", "?"))[:20] if isinstance(versions, dict) else "?"


def versions() -> dict[str, str]:
    """Return what wrote a store, for people."""
    return {
        "entk": _core.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def of_job(job: Job, triangle: str) -> Manifest:
    """Describe the kernel of a job; reads all factors once, for their fingerprints."""
    from entk._fingerprint import fingerprint, fingerprint_outputs

    problem = job.problem
    names = problem.names
    left, right = problem.outputs
    prints = {name: fingerprint(problem.factors[name]) for name in names}
    if problem.other is not None:
        for name in names:
            prints[name] += "-" + fingerprint(problem.other[name])
    return {
        "kind": "kernel",
        "format": FORMAT,
        "kernel_abi": _core.KERNEL_ABI,
        "shape": list(problem.shape),
        "dtype": job.dtype,
        "tile": job.tile,
        "triangle": triangle,
        "symmetric": problem.other is None,
        "outputs": left.label or left.mode,
        "output_weights": [fingerprint_outputs(side) for side in (left, right)],
        "normalisation": _normalisation(job),
        "accumulate": job.accumulate,
        "engine": job.engine,
        "nonfinite": job.nonfinite,
        "leaves": names,
        "leaf_weights": {name: problem.weights[name] for name in problem.factors},
        "fingerprints": prints,
        "versions": versions(),
        "certificate": None,
        "complete": False,
    }


def _normalisation(job: Job) -> str:
    factors, left = job.problem.factors, job.problem.outputs[0]
    if left.scale != 1.0:
        return f"1/{factors.n_outputs}"
    if factors.outputs == "sum" and factors.rows == 1:
        return f"1/{factors.n_outputs}, in the factors"
    return "1"


def compare(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raise unless a stored kernel is the one that is wanted.

    Raises
    ------
    StoreMismatchError
        Naming the first field that differs, and both values.
    """
    for field in IDENTITY:
        mine, theirs = wanted.get(field), stored.get(field)
        if mine != theirs:
            raise StoreMismatchError(
                f"{field}: this call has {_shown(mine)}, the store has {_shown(theirs)}; refusing "
                "to mix two kernels"
            )
    theirs = stored.get("fingerprints")
    theirs = theirs if isinstance(theirs, dict) else {}
    for name, mine in wanted["fingerprints"].items():
        if theirs.get(name) != mine:
            raise StoreMismatchError(
                f"layer {name!r} fingerprint {mine} differs from the store's {theirs.get(name)}; "
                "refusing to mix two kernels"
            )


def _shown(value: object) -> str:
    text = f"{value!r}"
    return text if len(text) <= 200 else f"{text[:200]}..."
