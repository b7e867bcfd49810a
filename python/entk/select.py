"""Which samples to label or to keep: greedy designs that read k rows of the kernel.

Each takes a kernel, an operator, factors, or a low-rank result (then whole rows cost O(N k)).
Distances are those of the feature space, ``d(i, j)^2 = K_ii + K_jj - 2 K_ij``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entk._dense import Float, Matrix
from entk._errors import InputError
from entk._floor import ROUNDOFF
from entk.lowrank._result import read

Index = NDArray[np.intp]


class Design(NamedTuple):
    """Samples in the order they were chosen, and what each brought.

    Attributes
    ----------
    chosen
        Chosen samples, (k,).
    gains
        What each choice added: nats of log-determinant, or its distance to those before it.
    """

    chosen: Index
    gains: Float


class Cover(NamedTuple):
    """A cover of all samples by balls around chosen ones.

    Attributes
    ----------
    chosen
        Centres in the order they were chosen, (k,).
    nearest
        For every sample the position in `chosen` of its nearest centre (initial ones come first,
        counted from ``-len(initial)``).
    radius
        Largest distance of a sample to its centre; at most twice the best possible.
    """

    chosen: Index
    nearest: Index
    radius: float


def greedy_logdet(K_or_factors: Any, k: int, *, noise: float, initial: ArrayLike = ()) -> Design:
    r"""Choose samples whose log-determinant grows most: the most informative about all others.

    Greedy maximisation of :math:`\log\det(I + K_{SS} / \sigma^2)` [1]_ [2]_, within ``1 - 1/e`` of
    the best set since the objective is submodular; each step takes the largest posterior variance.

    Parameters
    ----------
    K_or_factors : array, `entk.Kernel`, `entk.KernelOperator`, `entk.Factors` or `LowRank`
        Kernel (N, N), or what it is made from.
    k : int
        Samples to choose.
    noise : float
        Variance of the noise on a label, positive.
    initial : array of int
        Samples already labelled.

    Returns
    -------
    Design
        Gains in nats of log-determinant; half of each is the information gained about the function.

    Raises
    ------
    InputError
        If `k` is out of range, `noise` is not positive, or `initial` holds no valid indices.

    Notes
    -----
    **Cost.** ``(k + len(initial)) N`` entries, ``N (k + len(initial))^2`` flops.
    **Memory.** ``8 N (k + len(initial))`` bytes.

    References
    ----------
    .. [1] A. Krause, A. Singh, C. Guestrin, "Near-Optimal Sensor Placements in Gaussian Processes",
       JMLR 9 (2008).
    .. [2] L. Chen, G. Zhang, E. Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to
       Improve Recommendation Diversity", NeurIPS 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.select import greedy_logdet
    >>> greedy_logdet(np.diag([1.0, 3.0, 2.0]), 2, noise=1.0).chosen.tolist()
    [1, 2]
    """
    matrix = _read(K_or_factors)
    start = _initial(initial, matrix.n)
    _check_count(k, matrix.n - len(start))
    if not (np.isfinite(noise) and noise > 0):
        raise InputError(f"noise must be > 0 (got {noise})")
    columns = np.zeros((len(start) + k, matrix.n))
    variance = matrix.diag.copy()
    chosen: list[int] = []
    gains = []
    for step in range(len(start) + k):
        open_ = np.where(np.isin(np.arange(matrix.n), chosen), -np.inf, variance)
        i = int(start[step]) if step < len(start) else int(np.argmax(open_))
        gains.append(float(np.log1p(max(variance[i], 0.0) / noise)))
        row = matrix.rows([i])[0] - columns[:step, i] @ columns[:step]
        columns[step] = row / np.sqrt(max(variance[i], 0.0) + noise)
        variance = variance - np.square(columns[step])
        chosen.append(i)
    fresh = slice(len(start), None)
    return Design(np.array(chosen[fresh], dtype=np.intp), np.array(gains[fresh]))


def maximin(K_or_factors: Any, k: int, *, initial: ArrayLike = ()) -> Design:
    """Choose samples far from each other: each is the one farthest from all before it [1]_ [2]_.

    Parameters
    ----------
    K_or_factors : array, `entk.Kernel`, `entk.KernelOperator`, `entk.Factors` or `LowRank`
        Kernel (N, N), or what it is made from.
    k : int
        Samples to choose.
    initial : array of int
        Samples already chosen. Without any the first is the one with the largest diagonal.

    Returns
    -------
    Design
        Gains are the distances to the samples before (infinity for the very first).

    Raises
    ------
    InputError
        If `k` is out of range, or `initial` holds no valid indices.

    Notes
    -----
    **Cost.** ``(k + len(initial)) N`` entries. **Memory.** ``O(N)``.

    References
    ----------
    .. [1] T. F. Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    .. [2] D. Holzmuller et al., "A Framework and Benchmark for Deep Batch Active Learning for
       Regression", JMLR 24 (2023), "MaxDist".

    Examples
    --------
    >>> import numpy as np
    >>> from entk.select import maximin
    >>> x = np.array([[0.0], [1.0], [5.0]])
    >>> maximin(x @ x.T, 2).chosen.tolist()
    [2, 0]
    """
    matrix = _read(K_or_factors)
    index, gains, _, _ = _farthest_first(matrix, k, _initial(initial, matrix.n))
    return Design(index, gains)


def k_center(K_or_factors: Any, k: int, *, initial: ArrayLike = ()) -> Cover:
    """Choose centres so that every sample is near one: the core-set of [1]_.

    The farthest-first choice of `maximin`, whose radius is at most twice the best possible [2]_.

    Parameters
    ----------
    K_or_factors : array, `entk.Kernel`, `entk.KernelOperator`, `entk.Factors` or `LowRank`
        Kernel (N, N), or what it is made from.
    k : int
        Centres to choose.
    initial : array of int
        Centres that are there already, such as labelled samples.

    Returns
    -------
    Cover

    Raises
    ------
    InputError
        If `k` is out of range, or `initial` holds no valid indices.

    Notes
    -----
    **Cost.** ``(k + len(initial)) N`` entries. **Memory.** ``O(N)``.

    References
    ----------
    .. [1] O. Sener, S. Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set
       Approach", ICLR 2018.
    .. [2] T. F. Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.select import k_center
    >>> x = np.array([[0.0], [1.0], [5.0]])
    >>> k_center(x @ x.T, 2).radius
    1.0
    """
    matrix = _read(K_or_factors)
    start = _initial(initial, matrix.n)
    index, _, nearest, squares = _farthest_first(matrix, k, start)
    return Cover(index, nearest - len(start), float(np.sqrt(np.max(squares, initial=0.0))))


def _farthest_first(matrix: Matrix, k: int, start: Index) -> tuple[Index, Float, Index, Float]:
    """Return choices, their distances, and every sample's nearest choice and squared distance."""
    n = matrix.n
    _check_count(k, n - len(start))
    squares, nearest = np.full(n, np.inf), np.zeros(n, dtype=np.intp)
    chosen, gains = [], []
    taken = np.zeros(n, dtype=bool)
    for step in range(len(start) + k):
        if step < len(start):
            i = int(start[step])
        else:
            key = matrix.diag if step == 0 else squares
            i = int(np.argmax(np.where(taken, -np.inf, key)))
        gains.append(float(np.sqrt(squares[i])))
        distance = _squared_distance(matrix, i)
        closer = distance < squares
        squares, nearest = np.where(closer, distance, squares), np.where(closer, step, nearest)
        taken[i] = True
        chosen.append(i)
    fresh = slice(len(start), None)
    return np.array(chosen[fresh], dtype=np.intp), np.array(gains[fresh]), nearest, squares


def _squared_distance(matrix: Matrix, i: int) -> Float:
    row = matrix.rows([i])[0]
    squares = matrix.diag + matrix.diag[i] - 2.0 * row
    # The difference of equal numbers: below this it is rounding, and a repeat has distance 0.
    rounding = 8.0 * ROUNDOFF["float64"] * (matrix.diag + matrix.diag[i])
    return np.where(squares > rounding, squares, 0.0)


def _read(kernel: Any) -> Matrix:
    return read(kernel.to_operator() if hasattr(kernel, "to_operator") else kernel)


def _initial(initial: ArrayLike, n: int) -> Index:
    index = np.asarray(initial)
    if index.size == 0:
        return np.empty(0, dtype=np.intp)
    if index.ndim != 1 or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= n:
        raise InputError(f"initial must hold indices from 0 to {n - 1} (got {initial!r})")
    return index.astype(np.intp)


def _check_count(k: int, most: int) -> None:
    if isinstance(k, bool) or int(k) != k or not 1 <= k <= most:
        raise InputError(f"k must be between 1 and {most}, the samples not chosen yet (got {k})")
