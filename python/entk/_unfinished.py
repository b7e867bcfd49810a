"""A kernel that is being written: its lock, its manifest, its sink, and its last step."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from typing import Any

import numpy as np

from entk import _core, _manifest, _paths
from entk._errors import StoreError, StoreIncompleteError


def layout_of(manifest: dict[str, Any], fmt: str) -> _core.Layout:
    """Return how the kernel that a manifest describes is cut and stored."""
    return _core.Layout(
        fmt,
        manifest["shape"],
        manifest["tile"],
        4 if manifest["dtype"] == "float32" else 8,
        symmetric=manifest["symmetric"],
        lower=manifest["triangle"] == "lower",
    )


def in_the_way(name: str) -> StoreError:
    error = StoreError(f"{name} exists; pass overwrite=True or resume=True")
    error.errno = errno.EEXIST
    return error


class Store:
    """An unfinished kernel on disk, with its lock held."""

    def __init__(self, path: str, fmt: str, manifest: dict[str, Any], *, shared: bool) -> None:
        self.path = path
        self.fmt = fmt
        self.manifest = manifest
        self.layout = layout_of(manifest, fmt)
        self._shared = shared
        self._lock: _core.StoreLock | None = None
        self._sink: _core.TileSink | None = None

    def __enter__(self) -> Store:
        self._lock = _core.StoreLock(self.path, shared=self._shared)
        if not self._lock.real:
            warnings.warn(
                f"{self.path}: this file system has no locks; do not write it twice at a time",
                UserWarning,
                stacklevel=4,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._sink = None
        if self._lock is not None:
            self._lock.release()

    @property
    def sink(self) -> _core.TileSink:
        """The sink; there is one after `begin`."""
        assert self._sink is not None
        return self._sink

    def begin(self, *, resume: bool, overwrite: bool, join: bool) -> bool:
        """Make or join the unfinished store; False if the kernel is finished already.

        Raises
        ------
        StoreMismatchError
            If the one that is there is another kernel.
        StoreError
            If one is there and nothing was said about it.
        """
        with _paths.alone_in(os.path.dirname(self.path) or "."):
            return self._begin(resume=resume, overwrite=overwrite, join=join)

    def _sweep(self) -> None:
        """Remove what runs left that were killed while they made the store; none makes one now."""
        folder, base = os.path.split(self.path + _paths.PARTIAL)
        for name in os.listdir(folder or "."):
            if name.startswith(f"{base}.") and name.endswith(".tmp"):
                remove(os.path.join(folder, name))

    def _begin(self, *, resume: bool, overwrite: bool, join: bool) -> bool:
        partial = self.path + _paths.PARTIAL
        if not self._shared and self._lock is not None and self._lock.real:
            self._sweep()
        if self.fmt == "npy":
            _core.tidy(self.path)
        elif _is_replaced(self.path):
            remove(partial)
        if overwrite:
            remove(partial)
        elif _paths.exists(partial):
            if not (resume or join):
                raise in_the_way(partial)
            self._join()
        elif _paths.exists(self.path):
            if not (resume or join):
                raise in_the_way(self.path)
            _manifest.compare(self.manifest, read_manifest(self.path))
            return False
        self.manifest["replaces"] = overwrite or self.manifest.get("replaces", False)
        self._sink = _core.TileSink(self.path, self.layout, self._document(complete=False))
        if not self._sink.reserved:
            warnings.warn(
                f"{self.path}: this file system cannot reserve space; it may run full later",
                UserWarning,
                stacklevel=4,
            )
        return True

    def _join(self) -> None:
        stored = read_manifest(self.path + _paths.PARTIAL)
        _manifest.compare(self.manifest, stored)
        self.manifest["replaces"] = stored.get("replaces") is True

    def _document(self, *, complete: bool) -> bytes:
        manifest = _manifest.sealed({**self.manifest, "complete": complete})
        if self.fmt == "zarr":
            return group_document(manifest, self.layout, self.path)
        return _manifest.document(manifest, self.path)

    def missing(self) -> list[int]:
        """Units that are not safe yet, whoever was to write them."""
        done = np.frombuffer(self.sink.done(), np.uint8)
        return [int(index) for index in np.flatnonzero(done == 0)]

    def finish(self) -> None:
        """Give the store its name.

        Raises
        ------
        StoreIncompleteError
            If tiles are missing.
        """
        with _paths.alone_in(os.path.dirname(self.path) or "."):
            self._finish()
        for suffix in _paths.SHARED:
            remove(self.path + suffix)

    def _finish(self) -> None:
        replaces = bool(self.manifest["replaces"])
        if replaces and self.fmt == "zarr" and not _paths.is_dir(self.path):
            remove(self.path)
        self.sink.finish(self._document(complete=True), replaces)


def group_document(manifest: dict[str, Any], layout: _core.Layout, where: str) -> bytes:
    """Return the metadata of the Zarr group: the manifest as its attribute ``entk``.

    The array's metadata are repeated ("consolidated"), as readers of whole groups like it.
    """
    array = json.loads(layout.array_json())
    return _manifest.document(
        {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"entk": manifest},
            "consolidated_metadata": {
                "kind": "inline",
                "must_understand": False,
                "metadata": {"kernel": array},
            },
        },
        where,
    )


def read_manifest(path: str) -> dict[str, Any]:
    """Read the manifest of a kernel, finished or not, under the very name it has.

    Raises
    ------
    StoreFormatError
        If it is not one of ours.
    """
    zarr = _paths.is_dir(path)
    name = f"{path}/zarr.json" if zarr else f"{_paths.side(path)}/manifest.json"
    if not _paths.exists(name):
        raise StoreIncompleteError(f"{path} has no manifest ({name} is missing)")
    found = _manifest.parse(_paths.read_small(name, _manifest.LONGEST), name)
    if zarr:
        attributes = found.get("attributes") if isinstance(found, dict) else None
        found = attributes.get("entk") if isinstance(attributes, dict) else None
    return _manifest.opened(found, name, "kernel")


def _is_replaced(path: str) -> bool:
    """Whether ``path.partial`` is the old kernel that changed places with the new one."""
    partial = path + _paths.PARTIAL
    if not (_paths.is_dir(path) and _paths.is_dir(partial)):
        return False
    try:
        return read_manifest(partial)["complete"] is True
    except StoreError:
        return False


def remove(path: str) -> None:
    """Remove a store of that name, and the directory beside it; nothing if there is none."""
    for name in (path, _paths.side(path)):
        if os.path.islink(name) or os.path.isfile(name):
            os.unlink(name)
        elif os.path.isdir(name):
            shutil.rmtree(name)
