"""How alike two kernels are, and what a kernel's spectrum and labels say about it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from entk import _dense, _targets
from entk._dense import Float, Matrix
from entk._errors import InputError
from entk.linalg import _limits, eigsh, eigvalsh


class Comparison(NamedTuple):
    """How one kernel differs from another, taken as the truth.

    Attributes
    ----------
    frobenius
        ``|K1 - K2|_F / |K2|_F``.
    alignment
        Centred kernel alignment, 1 for kernels equal up to scale and constant.
    eigmax_ratio
        ``lambda_max(K1) / lambda_max(K2)``.
    condition_ratio
        ``kappa(K1) / kappa(K2)``; NaN where both are infinite.
    floor
        Noise floor of the two relative to ``|K2|_F``: differences below it say nothing.
    """

    frobenius: float
    alignment: float
    eigmax_ratio: float
    condition_ratio: float
    floor: float


def compare(K1: Any, K2: Any) -> Comparison:
    r"""Compare a kernel with another one that is taken as the truth.

    If one kernel has O times the rows of the other, the smaller stands for
    :math:`K \otimes I_O` (sample-major), which is how a kernel of summed logits approximates the
    full one [1]_.

    Parameters
    ----------
    K1, K2 : array, `entk.Kernel` or `entk.KernelOperator`
        Symmetric, (N, N) or (N*O, N*O).

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        If one number of rows is not a multiple of the other, or a kernel is not symmetric.
    NonFiniteError
        If a kernel holds NaN or infinity.

    Notes
    -----
    **Cost.** One pass over both kernels and their eigenvalues. The centring of a block kernel is
    over samples, output by output. Alignment is CKA [2]_ [3]_ of the kernels themselves.

    References
    ----------
    .. [1] M. A. Mohamadi, W. Bae, D. J. Sutherland, "A Fast, Well-Founded Approximation to the
       Empirical Neural Tangent Kernel", ICML 2023.
    .. [2] C. Cortes, M. Mohri, A. Rostamizadeh, "Algorithms for Learning Kernels Based on Centered
       Alignment", JMLR 13 (2012).
    .. [3] S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.metrics import compare
    >>> compare(2.0 * np.eye(3), np.eye(3)).frobenius
    1.0
    """
    first, second = _checked(K1, "K1"), _checked(K2, "K2")
    size = max(first.n, second.n)
    blocks = _blocks(first, second)
    if size == 0:
        return Comparison(0.0, 1.0, 1.0, 1.0, 0.0)
    apart, truth = _norms(first, second, size)
    alignment = _alignment(first, second, size, blocks)
    (low1, top1), (low2, top2) = _ends(first), _ends(second)
    top, kappa = _ratio(top1, top2), _ratio(_condition(low1, top1), _condition(low2, top2))
    spread = np.sqrt(size)  # each entry of size noise / sqrt(n): the norm of a random matrix
    floor = _ratio((first.noise + second.noise) * spread / 2.0, truth)
    return Comparison(_ratio(apart, truth), alignment, top, kappa, floor)


def label_alignment(K: Any, y: ArrayLike, *, centred: bool = True) -> float:
    r"""Compute the alignment of a kernel with its targets.

    :math:`\langle K, y y^\top \rangle_F / (\|K\|_F \|y y^\top\|_F)`, both centred by default.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (N, N)
        Symmetric.
    y : array, shape (N,) or (N, C)
        Targets; class labels one-hot encoded.
    centred : bool
        Centre kernel and targets over the samples first [2]_; without, that of [1]_.

    Returns
    -------
    float
        Between 0 and 1 for a positive semi-definite kernel.

    References
    ----------
    .. [1] N. Cristianini, J. Shawe-Taylor, A. Elisseeff, J. Kandola, "On Kernel-Target Alignment",
       NeurIPS 2001.
    .. [2] C. Cortes, M. Mohri, A. Rostamizadeh, JMLR 13 (2012).

    Examples
    --------
    >>> import numpy as np
    >>> from entk.metrics import label_alignment
    >>> y = np.array([1.0, -1.0])
    >>> round(label_alignment(np.outer(y, y), y), 12)
    1.0
    """
    matrix = _checked(K, "K")
    wanted = _targets.targets(y, matrix.n)
    if wanted.block > 1:
        raise InputError("label_alignment takes one row of the kernel a sample")
    columns = wanted.columns
    if centred:
        columns = columns - columns.mean(axis=0)
    inner = float(np.sum(columns * matrix.matmat(columns)))
    norm = _centred_norm(matrix) if centred else _norm(matrix)
    return _ratio(inner, norm * float(np.linalg.norm(columns.T @ columns)))


def effective_rank(
    K: Any, kind: Literal["entropy", "participation", "intrinsic"] = "entropy"
) -> float:
    """Count the directions of a kernel that matter.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (N, N)
        Symmetric positive semi-definite.
    kind : {"entropy", "participation", "intrinsic"}
        ``exp`` of the entropy of the normalised eigenvalues [1]_; ``trace^2 / |K|_F^2``; or
        ``trace / lambda_max`` [2]_. The last two need no full spectrum.

    Returns
    -------
    float
        From 1 to N; 0 for a zero kernel.

    Notes
    -----
    Eigenvalues not above zero are left out of the entropy; they are rounding.

    References
    ----------
    .. [1] O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality",
       EUSIPCO 2007.
    .. [2] J. A. Tropp, "An Introduction to Matrix Concentration Inequalities", 2015, section 7.1.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.metrics import effective_rank
    >>> round(effective_rank(np.eye(4)), 12)
    4.0
    """
    matrix = _checked(K, "K")
    trace = float(np.sum(matrix.diag))
    if kind not in ("entropy", "participation", "intrinsic"):
        raise InputError(f"kind={kind!r}; expected 'entropy', 'participation' or 'intrinsic'")
    if not trace > 0:
        return 0.0
    if kind == "participation":
        return trace**2 / _norm(matrix) ** 2
    if kind == "intrinsic":
        return trace / _largest(matrix)
    values = np.asarray(eigvalsh(K))
    share = values[values > 0] / np.sum(values[values > 0])
    return float(np.exp(-np.sum(share * np.log(share))))


def _checked(kernel: Any, what: str) -> Matrix:
    matrix = _dense.read(kernel, what)
    _dense.check_symmetric(matrix, what)
    return matrix


def _ratio(a: float, b: float) -> float:
    if np.isinf(a) and np.isinf(b):
        return float("nan")
    if b == 0.0:
        return 0.0 if a == 0.0 else float("inf")
    return float(a / b)


def _blocks(first: Matrix, second: Matrix) -> int:
    large, small = max(first.n, second.n), min(first.n, second.n)
    if large != small and (small == 0 or large % small):
        raise InputError(
            f"K1 is {first.n} x {first.n} and K2 is {second.n} x {second.n}: neither has a "
            "multiple of the other's rows"
        )
    return large // small if small else 1


def _strip(matrix: Matrix, rows: slice, size: int) -> Float:
    """Return rows of ``K (x) I`` when the kernel has fewer rows than `size`, else of `K`."""
    blocks = size // matrix.n
    if blocks == 1:
        return matrix.block(rows, slice(0, size))
    index = np.arange(rows.start, rows.stop)
    sample, output = np.divmod(index, blocks)
    out = np.zeros((len(index), matrix.n, blocks))
    out[np.arange(len(index)), :, output] = matrix.rows(sample)
    return out.reshape(len(index), size)


def _strips(size: int) -> list[slice]:
    step = max(1, _dense.STRIP_BYTES // (8 * size))
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def _norms(first: Matrix, second: Matrix, size: int) -> tuple[float, float]:
    """Return ``|K1 - K2|_F`` and ``|K2|_F``."""
    parts = []
    for rows in _strips(size):
        a, b = _strip(first, rows, size), _strip(second, rows, size)
        parts.append([np.linalg.norm(a - b), np.linalg.norm(b)])
    apart, truth = np.linalg.norm(np.array(parts), axis=0)
    return float(apart), float(truth)


def _norm(matrix: Matrix) -> float:
    parts = [np.linalg.norm(matrix.block(s, slice(0, matrix.n))) for s in matrix.strips()]
    return float(np.linalg.norm(np.array(parts)))


def _ends(matrix: Matrix) -> tuple[float, float]:
    """Return the smallest and the largest eigenvalue."""
    if _limits.fits(8 * matrix.n**2, None):
        values = eigvalsh(matrix)
        return float(values[0]), float(values[-1])
    return float(eigsh(matrix, 1, which="SA").values[0]), _largest(matrix)


def _condition(low: float, high: float) -> float:
    return high / low if low > 0 else float("inf")


def _largest(matrix: Matrix) -> float:
    return float(eigsh(matrix, 1, which="LA").values[0])


def _means(matrix: Matrix, size: int, blocks: int) -> tuple[Float, Float]:
    """Return ``K E / n`` and ``E^T K E / n^2``, with ``E = 1 (x) I_O``."""
    n = size // blocks
    rows: Float
    if matrix.n == size:
        unit = np.tile(np.eye(blocks), (n, 1))
        rows = matrix.matmat(unit) / n
    else:
        ones = matrix.matmat(np.ones((matrix.n, 1)))
        rows = np.asarray(np.kron(ones / n, np.eye(blocks)), dtype=np.float64)
    return rows, rows.reshape(n, blocks, blocks).sum(axis=0) / n


def _centred(matrix: Matrix, rows: slice, size: int, blocks: int, means: Any) -> Float:
    """Return rows of ``H K H`` with H the centring over samples, output by output."""
    by_row, whole = means
    n = size // blocks
    output = np.arange(rows.start, rows.stop) % blocks
    strip = _strip(matrix, rows, size).reshape(-1, n, blocks)
    strip -= by_row[rows][:, None, :]
    strip -= by_row.reshape(n, blocks, blocks).transpose(2, 0, 1)[output]
    strip += whole[output][:, None, :]
    return strip.reshape(-1, size)


def _alignment(first: Matrix, second: Matrix, size: int, blocks: int) -> float:
    m1, m2 = _means(first, size, blocks), _means(second, size, blocks)
    inner, norms = [], []
    for rows in _strips(size):
        a = _centred(first, rows, size, blocks, m1)
        b = _centred(second, rows, size, blocks, m2)
        inner.append(float(np.vdot(a, b)))
        norms.append([np.linalg.norm(a), np.linalg.norm(b)])
    n1, n2 = np.linalg.norm(np.array(norms), axis=0)
    return _ratio(sum(inner), float(n1 * n2))


def _centred_norm(matrix: Matrix) -> float:
    means = _means(matrix, matrix.n, 1)
    parts = [np.linalg.norm(_centred(matrix, s, matrix.n, 1, means)) for s in matrix.strips()]
    return float(np.linalg.norm(np.array(parts)))
