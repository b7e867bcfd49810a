"""Randomly pivoted Cholesky, in the accelerated form that proposes pivots by blocks."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from entk import _dense
from entk._dense import Float, Matrix
from entk._errors import InputError
from entk._floor import ROUNDOFF
from entk.linalg import _limits
from entk.lowrank._result import LowRank, from_factor, read

LARGEST_BLOCK = 256


def rpcholesky(
    K_or_factors: Any,
    rank: int,
    *,
    tol: float | None = None,
    seed: int = 0,
    state: LowRank | None = None,
) -> LowRank:
    r"""Approximate a kernel by randomly pivoted Cholesky factorisation.

    Pivots are drawn with probability proportional to the diagonal of what is left, which gives a
    near-optimal approximation in expectation [1]_. The accelerated form [2]_ draws a block of
    proposals, keeps some by rejection, and needs one product a block; its pivots have the same
    distribution.

    Parameters
    ----------
    K_or_factors : array, `entk.Kernel`, `entk.KernelOperator` or `entk.Factors`
        Kernel (N, N), or what it is made from.
    rank : int
        Columns to compute at most, at least 1. Above N it is cut to N, with a warning.
    tol : float or None
        Stop as soon as ``trace(K - F F^T) <= tol * trace(K)``.
    seed : int
        Of the draws.
    state : LowRank or None
        An earlier result for the same kernel, to be continued: its columns are kept, its random
        stream goes on.

    Returns
    -------
    LowRank
        ``factor (N, k)``, ``pivots``, the exact ``trace_residual``, ``matvec``, ``solve``,
        ``to_operator``, ``resume``. k is below `rank` where `tol` was met or the numerical rank of
        the kernel was reached.

    Raises
    ------
    InputError
        If `rank` < 1, or the diagonal holds a negative number.
    MemoryLimitError
        If the factor does not fit.

    Notes
    -----
    **Cost.** ``k N`` entries of the kernel (and at most ``b^2`` a block of b proposals for the
    rejection), ``N k^2`` flops. **Memory.** ``8 N k`` bytes. ``K - F F^T`` is positive
    semi-definite, so the trace residual bounds its spectral norm.

    References
    ----------
    .. [1] Y. Chen, E. N. Epperly, J. A. Tropp, R. J. Webber, "Randomly pivoted Cholesky: Practical
       approximation of a kernel matrix with few entry evaluations", Comm. Pure Appl. Math. (2025).
    .. [2] E. N. Epperly, J. A. Tropp, R. J. Webber, "Embrace rejection: Kernel matrix approximation
       by accelerated randomly pivoted Cholesky", arXiv:2410.03969, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.lowrank import rpcholesky
    >>> x = np.arange(6.0).reshape(3, 2)
    >>> low = rpcholesky(x @ x.T, 2)
    >>> low.rank, bool(np.allclose(low.factor @ low.factor.T, x @ x.T))
    (2, True)
    """
    matrix = read(K_or_factors)
    rank = check_rank(rank, matrix.n)
    _limits.require(8 * matrix.n * rank, None, f"a factor of rank {rank}", "lower the rank")
    run = _Run(matrix, rank, tol, seed, state)
    while run.wants_more():
        run.block()
    return from_factor(
        run.columns[: run.done].T, run.pivots, matrix.diag, run.rng.bit_generator.state
    )


def check_rank(rank: int, n: int) -> int:
    """Return a usable rank; cut it to `n` with a warning.

    Raises
    ------
    InputError
        If it is below 1.
    """
    if isinstance(rank, bool) or int(rank) != rank or rank < 1:
        raise InputError(f"rank must be at least 1 (got {rank})")
    if rank > n:
        warnings.warn(f"rank {rank} is above the {n} samples; using {n}", stacklevel=3)
    return min(int(rank), n)


def proposals(rank: int) -> int:
    """Return how many pivots to propose at a time: more save passes, fewer are rejected less."""
    return max(1, min(rank // 10, LARGEST_BLOCK))


class _Run:
    """One factorisation: the rows of F^T so far, and the diagonal of what is left."""

    def __init__(
        self, matrix: Matrix, rank: int, tol: float | None, seed: int, state: LowRank | None
    ) -> None:
        self.matrix = matrix
        self.rng = np.random.default_rng(seed)
        self.columns = np.zeros((rank, matrix.n))
        self.pivots: list[int] = []
        self.left = matrix.diag.copy()
        total = float(np.sum(matrix.diag))
        rounding = ROUNDOFF["float64"] * max(matrix.n, 1) * total
        self.stop = max(rounding, 0.0 if tol is None else tol * total)
        self.size = proposals(rank)
        if state is not None:
            self._continue(state)

    def _continue(self, state: LowRank) -> None:
        if len(state.factor) != self.matrix.n or state._random is None:
            raise InputError(
                f"state is of {len(state.factor)} samples, rank {state.rank}; expected a result of "
                f"rpcholesky for these {self.matrix.n} samples"
            )
        keep = min(state.rank, len(self.columns))
        self.columns[:keep] = state.factor[:, :keep].T
        self.pivots = state.pivots[:keep].tolist()
        self.left = np.maximum(self.left - np.sum(np.square(self.columns[:keep]), axis=0), 0.0)
        self.rng.bit_generator.state = state._random

    @property
    def done(self) -> int:
        return len(self.pivots)

    def wants_more(self) -> bool:
        return self.done < len(self.columns) and float(np.sum(self.left)) > self.stop

    def block(self) -> None:
        """Propose a block of pivots, keep some, and add their columns."""
        share = self.left / np.sum(self.left)
        drawn = self.rng.choice(self.matrix.n, size=self.size, p=share)
        done = self.columns[: self.done]
        rest = self.matrix.pairs(drawn, drawn) - done[:, drawn].T @ done[:, drawn]
        kept = self._reject(rest, self.left[drawn])[: len(self.columns) - self.done]
        if kept:
            self._add(drawn[kept], rest[np.ix_(kept, kept)], done)

    def _reject(self, rest: Float, bound: Float) -> list[int]:
        """Return which proposals to keep: each with the share of its bound that is still left."""
        rest = rest.copy()
        kept: list[int] = []
        chances = self.rng.random(len(bound))
        for j in range(len(bound)):
            pivot = rest[j, j]
            if pivot <= chances[j] * bound[j] or pivot <= ROUNDOFF["float64"] * 64 * bound[j]:
                continue
            column = rest[j:, j] / np.sqrt(pivot)
            rest[j:, j:] -= np.outer(column, column)
            kept.append(j)
        return kept

    def _add(self, chosen: Any, rest: Float, done: Float) -> None:
        from scipy.linalg import cholesky, solve_triangular

        rows = self.matrix.rows(chosen)
        _dense.check_finite_array(rows, "K")
        rows -= done[:, chosen].T @ done
        lower = cholesky((rest + rest.T) / 2.0, lower=True, check_finite=False)
        new = solve_triangular(lower, rows, lower=True, check_finite=False)
        first = self.done
        self.columns[first : first + len(chosen)] = new
        self.pivots += chosen.tolist()
        self.left = np.maximum(self.left - np.sum(np.square(new), axis=0), 0.0)
        self.left[chosen] = 0.0
