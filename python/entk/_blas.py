"""``engine="blas"``: SciPy's BLAS taken at run time, and the kernel assembled with it.

SciPy publishes the routines of the BLAS it was built with as capsules, named by their C
signatures (https://docs.scipy.org/doc/scipy/reference/linalg.cython_blas.html), so nothing is
linked or bundled. What does not look or multiply like GEMM is not used.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

from entk import _core, _plan
from entk._arrays import AnyArray
from entk._blas_threads import blas_threads
from entk._errors import InternalError
from entk._problem import Cut, raw

if TYPE_CHECKING:
    from entk._job import Job, Report

_NARROW, _WIDE = 4, 8


def compute(
    job: Job,
    kernel: AnyArray,
    *,
    limit: int,
    progress: Report | None = None,
    cut: Cut | None = None,
) -> bool:
    """Compute a cut (by default all) into `kernel`; return whether all entries are finite.

    Where BLAS cannot be used or gives a wrong product, the fused engine computes the cut, with a
    warning.

    Raises
    ------
    MemoryLimitError
        If the smallest blocks do not fit in `limit` bytes.
    """
    cut = cut or _plan.whole_cut(job.problem)
    try:
        blas = published()
    except InternalError as error:
        _warn(f"SciPy's BLAS cannot be used ({error})")
        return job.compute(cut, kernel, limit=limit, progress=progress)
    finite = _on_workers(job, blas, cut, kernel, limit, progress)
    if finite is None:
        _warn("SciPy's BLAS gave a wrong product, beyond rounding")
        finite = job.compute(cut, kernel, limit=limit, progress=progress)
    return finite


def _warn(what: str) -> None:
    text = f'{what}; the kernel is computed by engine="fused" instead'
    warnings.warn(text, RuntimeWarning, stacklevel=5)


def _on_workers(
    job: Job, blas: _core.Blas, cut: Cut, kernel: AnyArray, limit: int, progress: Report | None
) -> bool | None:
    """Run as many workers as threads, each with one thread of BLAS, or one with all of them."""
    with blas_threads(1) as held:
        if held:
            return _run(job, blas, cut, kernel, limit, progress, job.threads)
    with blas_threads(job.threads):
        return _run(job, blas, cut, kernel, limit, progress, 1)


def _run(
    job: Job,
    blas: _core.Blas,
    cut: Cut,
    kernel: AnyArray,
    limit: int,
    progress: Report | None,
    threads: int,
) -> bool | None:
    rows, cols = job.problem.sides()
    double = job.accumulate == "float64"
    options = job.problem.options(cut, double=double, threads=threads, limit=limit, isa=job.isa)
    planes = kernel if kernel.ndim == 3 else kernel[None]
    return blas.assemble(rows, cols, options, raw(planes), kernel.itemsize == 8, progress)


@cache
def published() -> _core.Blas:
    """Return SciPy's GEMMs, found and tested once.

    Raises
    ------
    InternalError
        If they are not what they should be; the text says what they are.
    """
    from scipy.linalg import cython_blas

    capsules: dict[str, Any] = cython_blas.__pyx_capi__
    try:
        sgemm, dgemm = capsules["sgemm"], capsules["dgemm"]
    except KeyError as error:
        raise InternalError(f"scipy.linalg.cython_blas publishes no {error}") from error
    size = _integer_size(cython_blas)
    if size not in (_NARROW, _WIDE):
        raise InternalError(f"its integers have {size} bytes")
    return _core.Blas((sgemm, _name(sgemm)), (dgemm, _name(dgemm)), size == _WIDE)


def _integer_size(module: Any) -> int:
    """Return the bytes of BLAS's integers, which SciPy tells from version 1.18 on."""
    capsule = module.__pyx_capi__.get("_blas_int_size")
    if capsule is not None:
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        address = pointer(capsule, _name(capsule).encode())
        return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())
    told = getattr(module, "_blas_int_size", None)
    return _NARROW if told is None else int(told())


def _name(capsule: object) -> str:
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, (ctypes.py_object,)
    found: bytes | None = name(capsule)
    return "" if found is None else found.decode()
