"""Low-rank approximations of kernels, with a stated error, from a fraction of their entries.

`rpcholesky` and `nystrom` compute k columns of the kernel, `sketch` none at all. The results solve,
multiply and precondition `entk.linalg.cg`.
"""

from entk.lowrank._nystrom import nystrom as nystrom
from entk.lowrank._result import LowRank as LowRank
from entk.lowrank._result import Sketch as Sketch
from entk.lowrank._rpcholesky import rpcholesky as rpcholesky
from entk.lowrank._sketch import sketch as sketch
