"""Factors of any JAX function: Flax, Equinox, Haiku or plain, unmodified.

| function | what it gives |
|---|---|
| `factors` | exact per-example Jacobian factors, to assemble kernels from |
| `write_factors` | the same, streamed to disk batch by batch |
| `operator` | products of the kernel with vectors, nothing stored |
"""

from entk._errors import ModelWarning as ModelWarning
from entk.jax._factors import factors as factors
from entk.jax._operator import operator as operator

__all__ = ["ModelWarning", "factors", "operator"]
