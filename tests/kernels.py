"""Kernels to solve with: Gram matrices, LAPACK's test types, a stored kernel, an operator."""

import numpy as np
from scipy.sparse.linalg import LinearOperator


def gram(rng, n, d=None, dtype="float64"):
    """Return the Gram matrix of `n` random features of `d` dimensions."""
    x = rng.standard_normal((n, 2 * n + 5 if d is None else d))
    return (x @ x.T / x.shape[1]).astype(dtype)


def smooth(n, width=0.2):
    """Return a kernel of 1-d points whose eigenvalues fall below any precision."""
    x = np.linspace(0.0, 1.0, n)
    return np.exp(-((x[:, None] - x) ** 2) / (2 * width**2))


def with_spectrum(rng, values):
    """Return a symmetric matrix with these eigenvalues and random eigenvectors."""
    q, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    k = (q * values) @ q.T
    return (k + k.T) / 2


EPS = 2.0**-53
LAPACK_TYPES = ["diagonal", "easy", "sqrt", "hard", "tiny", "huge"]


def lapack_type(rng, kind, n):
    """Return one of the positive definite types of LAPACK's own tests."""
    if kind == "diagonal":
        return np.diag(rng.uniform(0.5, 1.0, n))
    worst = {"easy": 2.0, "sqrt": np.sqrt(0.1 / EPS), "hard": 0.1 / EPS}.get(kind, 2.0)
    values = worst ** -(np.arange(n) / max(n - 1, 1))
    size = {"tiny": 2.0**-960, "huge": 2.0**960}.get(kind, 1.0)
    return with_spectrum(rng, values) * size


class Stored:
    """A stored kernel as the solvers see it: read by slices, never as a whole."""

    def __init__(self, array, info=None):
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.info = info or {}
        self.largest = 0

    def tiles(self):
        raise NotImplementedError

    def __getitem__(self, key):
        part = self._array[key]
        self.largest = max(self.largest, part.size)
        return part

    def __matmul__(self, v):
        return self._array.astype(np.float64) @ v

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("a stored kernel was loaded as a whole")


class Operator(LinearOperator):
    """A matrix-free kernel with the methods of `entk.KernelOperator`."""

    def __init__(self, array):
        super().__init__(np.float64, array.shape)
        self._array = array
        self.products = 0
        self.entries = 0

    def _matmat(self, v):
        self.products += 1
        return self._array @ v

    def _rmatmat(self, v):
        return self._array.T @ v

    def diagonal(self):
        return np.diagonal(self._array).copy()

    def rows(self, index):
        self.entries += len(index) * self.shape[1]
        return self._array[index]

    def block(self, rows, cols):
        part = self._array[rows][:, cols]
        self.entries += part.size
        return part

    def trace(self):
        return float(np.trace(self._array))
