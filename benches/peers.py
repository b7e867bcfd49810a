"""Other ways to assemble the same kernel on a CPU, each at its best known settings.

Every function takes the leaves as (acts, cots) pairs of float32 arrays and returns the full
symmetric matrix, mirror included, because that is what entk returns. The preparation that a user
would do once (moving arrays to the framework, compiling) is done by the maker and not timed.
"""

from __future__ import annotations

import functools

import numpy as np

TILE = 2048  # rows of a tile; torch with MKL, the strongest peer, is at its best here


def numpy_one_liner(leaves):
    """What most people write."""

    def assemble():
        n = leaves[0][0].shape[0]
        kernel = np.zeros((n, n), np.float32)
        for acts, cots in leaves:
            kernel += (acts @ acts.T) * (cots @ cots.T)
        return kernel

    return assemble


def tile_pairs(n):
    """List the row and column ranges of the upper half."""
    starts = range(0, n, TILE)
    cut = [(lo, min(n, lo + TILE)) for lo in starts]
    return [(rows, cols) for i, rows in enumerate(cut) for cols in cut[i:]]


def numpy_tiles(leaves):
    """Tiles of the upper half with `out=` buffers, so that nothing is allocated in the loop."""

    def assemble():
        n = leaves[0][0].shape[0]
        kernel = np.empty((n, n), np.float32)
        gram, other, total = (np.empty((TILE, TILE), np.float32) for _ in range(3))
        for (i0, i1), (j0, j1) in tile_pairs(n):
            part = np.s_[: i1 - i0, : j1 - j0]
            total[part] = 0
            for acts, cots in leaves:
                np.matmul(acts[i0:i1], acts[j0:j1].T, out=gram[part])
                np.matmul(cots[i0:i1], cots[j0:j1].T, out=other[part])
                np.multiply(gram[part], other[part], out=gram[part])
                np.add(total[part], gram[part], out=total[part])
            kernel[i0:i1, j0:j1] = total[part]
            if i0 != j0:
                kernel[j0:j1, i0:i1] = total[part].T
        return kernel

    return assemble


def torch_tiles(leaves):
    """Tiles of the upper half by `addcmul_` on MKL, all threads."""
    import torch

    moved = [(torch.from_numpy(acts), torch.from_numpy(cots)) for acts, cots in leaves]

    def assemble():
        n = moved[0][0].shape[0]
        kernel = torch.empty((n, n))
        for (i0, i1), (j0, j1) in tile_pairs(n):
            block = torch.zeros((i1 - i0, j1 - j0))
            for acts, cots in moved:
                block.addcmul_(acts[i0:i1] @ acts[j0:j1].T, cots[i0:i1] @ cots[j0:j1].T)
            kernel[i0:i1, j0:j1] = block
            if i0 != j0:
                kernel[j0:j1, i0:i1] = block.T
        return kernel.numpy()

    return assemble


def jax_tiles(leaves):
    """Tiles of the upper half by one jitted function."""
    import jax
    import jax.numpy as jnp

    moved = [(jnp.asarray(acts), jnp.asarray(cots)) for acts, cots in leaves]

    @functools.partial(jax.jit, static_argnums=(3, 4))
    def block(pairs, i0, j0, height, width):
        total = jnp.zeros((height, width))
        for acts, cots in pairs:
            rows = [jax.lax.dynamic_slice_in_dim(side, i0, height) for side in (acts, cots)]
            cols = [jax.lax.dynamic_slice_in_dim(side, j0, width) for side in (acts, cots)]
            total += (rows[0] @ cols[0].T) * (rows[1] @ cols[1].T)
        return total

    def assemble():
        n = moved[0][0].shape[0]
        kernel = np.empty((n, n), np.float32)
        for (i0, i1), (j0, j1) in tile_pairs(n):
            total = np.asarray(block(moved, i0, j0, i1 - i0, j1 - j0))
            kernel[i0:i1, j0:j1] = total
            if i0 != j0:
                kernel[j0:j1, i0:i1] = total.T
        return kernel

    assemble()  # compiles
    return assemble


def scipy_syrk(jac):
    """One leaf as an explicit Jacobian: the symmetric rank-k update of SciPy's BLAS, mirrored."""
    from scipy.linalg import blas

    transposed = jac.T  # Fortran order without a copy

    def assemble():
        kernel = blas.ssyrk(1.0, transposed, trans=1, lower=1)
        for j0 in range(0, kernel.shape[0], TILE):
            j1 = min(kernel.shape[0], j0 + TILE)
            kernel[j0:j1, j1:] = kernel[j1:, j0:j1].T
            square = kernel[j0:j1, j0:j1]
            square += np.tril(square, -1).T
        return kernel

    return assemble


def numpy_matmul(jac):
    """One leaf as an explicit Jacobian: J J^T by NumPy, which calls syrk itself."""
    return lambda: jac @ jac.T


FACTOR_PEERS = {
    "torch tiles": torch_tiles,
    "jax tiles": jax_tiles,
    "numpy tiles": numpy_tiles,
    "numpy one-liner": numpy_one_liner,
}
JACOBIAN_PEERS = {"scipy ssyrk": scipy_syrk, "numpy matmul": numpy_matmul}
