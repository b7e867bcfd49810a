"""Factors of more examples than fit in memory: batch by batch into a store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from entk._errors import MemoryLimitError, StoreMismatchError
from entk._factors import Factors
from entk._patience import items
from entk.torch._factors import Extraction, build, device_of
from entk.torch._guard import preserved
from entk.torch._network import Inputs, Output


def count(batches: Iterable[Any]) -> int:
    """Return the number of batches, or 0 if it is not known."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return 0


@contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Say in an error which of the batches given it came from."""
    try:
        yield
    except MemoryLimitError as error:
        raise MemoryLimitError(f"batch {number} of those given: {error}") from error
    except Exception as error:
        error.add_note(f"entk: in batch {number} of those given")
        raise


@dataclass
class Stream:
    """The arguments of `write_factors`, and the network as the first batch showed it."""

    module: nn.Module
    outputs: Any
    output: Output
    batch_size: int | None
    memory: int | str | None
    structure: bool
    audit: bool
    extraction: Extraction | None = None

    def write(
        self,
        path: str | os.PathLike[str],
        batches: Iterable[Any],
        report: Callable[[int, int], None],
        *,
        resume: bool,
        overwrite: bool,
    ) -> Factors:
        """Write what is not written yet, and open the store."""
        from entk._store import FactorWriter

        meta = self._meta()
        with FactorWriter(path, resume=resume, overwrite=overwrite, meta=meta) as writer:
            if writer.complete:
                return writer.finish()
            rows, total = 0, count(batches)
            for number, x in enumerate(items(batches, "the source of batches")):
                written = number < writer.batches_done
                with _numbered(number):
                    inputs = Inputs(tuple(x) if isinstance(x, list) else x)
                    factors = self._factors(inputs, skip=written)
                rows += inputs.n
                if factors is not None:
                    writer.append(factors)
                elif number == writer.batches_done - 1 and rows != writer.rows_done:
                    raise StoreMismatchError(
                        f"the first {number + 1:,} batches have {rows:,} examples, those in the "
                        f"store {writer.rows_done:,}; resume with the same batches"
                    )
                report(number + 1, max(total, number + 1))
            return writer.finish()

    def _factors(self, inputs: Inputs, *, skip: bool) -> Factors | None:
        """Return the factors of a batch; the first one is looked at in any case."""
        if self.extraction is not None:
            self.extraction.feed(inputs)
            if skip:
                return None
        inputs.check_values()
        with preserved(self.module, device_of(self.module, inputs)):
            if self.extraction is None:
                self.extraction = Extraction(
                    self.module, inputs, self.output, structure=self.structure
                )
                self.extraction.prepare(self.outputs, stream=True)
                size = 1 if skip else self.batch_size
                self.extraction.settle(size, self.memory, check=self.audit)
            if skip:
                return None
            found = self.extraction
            columns = found.run(found.size(self.batch_size, self.memory), lambda *_: None)
        return build(found, columns)

    def _meta(self) -> dict[str, Any]:
        """Return what must be the same when a store is continued."""
        plain = isinstance(self.outputs, str | int | np.integer)
        outputs = self.outputs if plain else hashlib.blake2b(_bytes(self.outputs)).hexdigest()
        return {
            "front_end": "torch",
            "outputs": str(outputs),
            "parameters": _fingerprint(self.module),
            "structure": bool(self.structure),
        }


def _bytes(outputs: Any) -> bytes:
    given = outputs.detach().cpu() if isinstance(outputs, Tensor) else outputs
    try:
        weights = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        return repr(type(outputs)).encode()  # refused when the first batch is looked at
    return repr(weights.shape).encode() + weights.tobytes()


def _fingerprint(module: nn.Module) -> str:
    """Return a checksum of the names and values of parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
        values = dense.cpu().contiguous().reshape(-1)
        if values.numel():
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
