"""Factors of more examples than fit in memory: batch by batch into a store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from entk._errors import InputError, StoreMismatchError
from entk._factors import Factors
from entk._fingerprint import pieces
from entk._patience import items
from entk.jax._factors import take
from entk.jax._network import Function, count_examples, network


@dataclass
class Stream:
    """The arguments of `write_factors`, and how far it has come."""

    f: Function
    params: Any
    outputs: Any
    options: dict[str, Any]
    rows: int = 0
    size: int | None = None

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
            total = count(batches)
            for number, x in enumerate(items(batches, "the source of batches")):
                n = count_examples(x)
                if number >= writer.batches_done:
                    writer.append(self._factors(x, n))
                self.rows += n
                if number == writer.batches_done - 1 and self.rows != writer.rows_done:
                    raise StoreMismatchError(
                        f"the first {number + 1:,} batches have {self.rows:,} examples, those in"
                        f" the store {writer.rows_done:,}; resume with the same batches"
                    )
                report(number + 1, max(total, number + 1))
            return writer.finish()

    def _factors(self, x: Any, n: int) -> Factors:
        """Return the factors of a batch, run at the size of the first one."""
        factors, self.size = take(
            self.f, self.params, x, outputs=self._directions(n), filled=self.size, **self.options
        )
        return factors

    def _directions(self, n: int) -> Any:
        """Cut a direction per example out of those of all batches."""
        if isinstance(self.outputs, str) or np.ndim(self.outputs) != 2:
            return self.outputs
        if len(self.outputs) < self.rows + n:
            raise InputError(
                f"outputs: weights for {len(self.outputs):,} examples, but the batches have more"
            )
        return self.outputs[self.rows : self.rows + n]

    def _meta(self) -> dict[str, Any]:
        """Return what must be the same when a store is continued."""
        digest = hashlib.blake2b(digest_size=16)
        net = network(self.f, self.params)
        for name, leaf in zip(net.names, net.leaves, strict=True):
            digest.update(f"{name} {leaf.dtype} {leaf.shape};".encode())
            host = np.asarray(leaf)
            for piece in pieces(host.view(np.uint16) if leaf.dtype == jnp.bfloat16 else host):
                digest.update(piece)
        return {
            "front_end": "jax",
            "outputs": self._outputs_text(),
            "parameters": digest.hexdigest(),
            "structure": bool(self.options["structure"]),
        }

    def _outputs_text(self) -> str:
        if isinstance(self.outputs, str | int | np.integer) or self.outputs is None:
            return str(self.outputs)
        weights = np.asarray(self.outputs)
        digest = hashlib.blake2b(f"{weights.dtype} {weights.shape}".encode(), digest_size=16)
        digest.update(weights.tobytes())
        return digest.hexdigest()


def count(batches: Iterable[Any]) -> int:
    """Return the number of batches, or 0 if it is not known."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return 0


def as_batches(batches: Any) -> Iterable[Any]:
    """Refuse a single array, whose iteration would give examples."""
    if hasattr(batches, "shape") or isinstance(batches, dict | str):
        raise InputError(
            "batches must be an iterable of batches, such as a list or a generator (got one"
            f" {type(batches).__name__}); for a single batch pass [x]"
        )
    return batches  # type: ignore[no-any-return]
