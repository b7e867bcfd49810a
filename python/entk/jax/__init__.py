"""Factors of any JAX function: Flax, Equinox, Haiku or plain, unmodified.

| function | what it gives |
|---|---|
| `factors` | exact per-example Jacobian factors, to assemble kernels from |
| `write_factors` | the same, streamed to disk batch by batch |
| `operator` | products of the kernel with vectors, nothing stored |

How it works, file by file: `_network` takes the function apart, `_program` traces and compiles it,
`_trace` walks its jaxpr and finds (`_views`, `_sites`, `_scan`) where parameters meet data,
`_plan` chooses a form for each parameter by comparing indices (`_index`) and counting, `_example`
takes one example's factors, `_outlets` finds those that are the same, `_batches` says how many go
at a time and `_dispatch` runs them,
`_independence` and `_audit` check against what `f` itself says (`_witness`, `_culprit`).
"""

from entk._errors import ModelWarning as ModelWarning
from entk.jax._api import factors as factors
from entk.jax._api import operator as operator
from entk.jax._api import write_factors as write_factors

__all__ = ["ModelWarning", "factors", "operator", "write_factors"]
