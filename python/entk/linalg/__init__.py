"""Linear algebra on kernels: float64 whatever they are stored in, in RAM, on disk, matrix-free.

Every function takes an ndarray, an `entk.Kernel` or an `entk.KernelOperator`. Ridges are absolute,
in units of the kernel; nothing else is ever added to a diagonal. Where a result depends on digits
the kernel does not have, it says so: see `Measured`, `Spectrum` and `PrecisionWarning`.
"""

from entk.linalg._cg import cg as cg
from entk.linalg._cholesky import cholesky as cholesky
from entk.linalg._eigen import condition_number as condition_number
from entk.linalg._eigen import eigsh as eigsh
from entk.linalg._eigen import eigvalsh as eigvalsh
from entk.linalg._pivots import PrecisionWarning as PrecisionWarning
from entk.linalg._precision import Precision as Precision
from entk.linalg._precision import precision as precision
from entk.linalg._results import Eigen as Eigen
from entk.linalg._results import LogdetEstimate as LogdetEstimate
from entk.linalg._results import Measured as Measured
from entk.linalg._results import Solution as Solution
from entk.linalg._results import Spectrum as Spectrum
from entk.linalg._slq import slq_logdet as slq_logdet
from entk.linalg._solve import factored_solve as factored_solve
from entk.linalg._solve import logdet as logdet
from entk.linalg._solve import solve as solve
