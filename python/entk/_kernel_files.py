"""Finding the files of a kernel under the name it was given, and checking what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from entk import _core, _foreign, _manifest, _paths, _unfinished
from entk._arrays import AnyArray
from entk._errors import StoreError, StoreFormatError, StoreIncompleteError

_LONGEST_ARRAY = 1 << 16


@dataclass
class Source:
    manifest: dict[str, Any]
    layout: _core.Layout
    reader: Any
    plain: AnyArray | None = None
    unfinished: bool = False


def find(path: str, *, partial: bool) -> Source:
    """Find the store of that name and open it, also while another process gives it that name."""
    try:
        return _find(path, partial=partial)
    except StoreError:
        if not _paths.exists(path):
            raise
        return _find(path, partial=partial)


def _find(path: str, *, partial: bool) -> Source:
    unfinished = path + _paths.PARTIAL
    if path.endswith(_paths.PARTIAL):
        if not partial:
            raise StoreIncompleteError(f"{path} is unfinished; entk.open(path, partial=True)")
        return _open_store(path)
    if not _paths.exists(path):
        if not _paths.exists(unfinished):
            raise StoreIncompleteError(f"{path} does not exist")
        if not partial:
            raise StoreIncompleteError(
                f"{path} is unfinished ({unfinished}); entk.open(path, partial=True) shows it"
            )
        return _open_store(unfinished)
    if _paths.is_dir(path) or _paths.exists(_sidecar(path)):
        return _open_store(path)
    return _open_plain(path)


def _sidecar(path: str) -> str:
    """Return the directory beside a `.npy`, under whichever name it has.

    If the machine stopped between the last two renames it still has its unfinished one.
    """
    unfinished = path + _paths.PARTIAL
    late = _paths.side(unfinished)
    return late if _paths.exists(late) and not _paths.exists(unfinished) else _paths.side(path)


def _open_store(path: str) -> Source:
    zarr = _paths.is_dir(path)
    side = path if zarr else _sidecar(path)
    if zarr or side == _paths.side(path):
        manifest = _unfinished.read_manifest(path)
    else:
        name = f"{side}/manifest.json"
        data = _paths.read_small(name, _manifest.LONGEST)
        manifest = _manifest.opened(_manifest.parse(data, name), name, "kernel")
    layout = checked_layout(manifest, path, "zarr" if zarr else "npy")
    if zarr:
        _check_codecs(f"{path}/kernel/zarr.json")
    unfinished = path.endswith(_paths.PARTIAL)
    reader = _core.TileReader(path, layout, side)
    return Source(manifest, layout, reader, unfinished=unfinished)


def _check_codecs(name: str) -> None:
    """Refuse codecs that entk does not write, by name; the rest is compared byte by byte."""
    if not _paths.exists(name):
        return
    array = _manifest.parse(_paths.read_small(name, _LONGEST_ARRAY), name)
    codecs = array.get("codecs") if isinstance(array, dict) else None
    for codec in codecs if isinstance(codecs, list) else []:
        given = codec.get("name") if isinstance(codec, dict) else codec
        if given not in ("bytes", "crc32c"):
            raise StoreFormatError(f"{name}: codec {given!r} is not in the allow list")


def checked_layout(manifest: dict[str, Any], where: str, fmt: str) -> _core.Layout:
    """Return the layout that a manifest from outside describes.

    Raises
    ------
    StoreFormatError
        If a field is missing or has a wrong type.
    """
    shape, tile = manifest.get("shape"), manifest.get("tile")
    fields = (manifest.get("symmetric"), manifest.get("complete"))
    sound = (
        isinstance(shape, list)
        and len(shape) in (2, 3)
        and all(type(length) is int and 0 <= length < 2**63 for length in shape)
        and type(tile) is int
        and 0 < tile < 2**63
        and manifest.get("dtype") in ("float32", "float64")
        and manifest.get("triangle") in ("full", "lower")
        and all(isinstance(field, bool) for field in fields)
    )
    if not sound:
        raise StoreFormatError(f"{where}: the manifest does not describe a kernel")
    return _unfinished.layout_of(manifest, fmt)


class _Everything:
    """The reader of a plain file: all is there, nothing can be checked."""

    def __init__(self, count: int) -> None:
        self._count = count

    def done(self) -> bytes:
        return b"\1" * self._count

    def check(self, index: int, *, mirror: bool) -> None:
        """Nothing to compare with."""


def _open_plain(path: str) -> Source:
    if not path.endswith(".npy"):
        raise StoreFormatError(f"{path} is neither a .npy nor a store")
    array = _foreign.open_npy(path)
    if array.ndim not in (2, 3) or array.dtype.name not in ("float32", "float64"):
        raise StoreFormatError(
            f"{path} holds {array.dtype} of shape {array.shape}, not a floating-point matrix"
        )
    manifest: dict[str, Any] = {
        "kind": "kernel",
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "tile": max(1, min(4096, max(array.shape[-2:]))),
        "triangle": "full",
        "symmetric": False,
        "complete": True,
    }
    layout = _unfinished.layout_of(manifest, "npy")
    plain = array if array.ndim == 3 else array[None]
    return Source(manifest, layout, _Everything(len(layout)), plain)
