"""Factors to test on: every kind of leaf, and input families that break careless arithmetic."""

import ml_dtypes
import numpy as np

import entk

DTYPES = ("float32", "float64", "float16", "bfloat16")
LARGEST = {"float16": 2.0**15, "bfloat16": 2.0**127, "float32": 2.0**127, "float64": 2.0**1023}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}


def cast(array, dtype):
    """Return `array` as `dtype`, which may be "bfloat16"."""
    return np.asarray(array).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


# Every kind of leaf. ----------------------------------------------------------------------------


def dense(rng, n=5, rows=1, p=7, dtype="float32"):
    return entk.Dense(normal(rng, (n, *_rows(rows), p), dtype))


def outer(rng, n=5, rows=1, g=None, t=None, d_in=6, d_out=4, dtype="float32", transposed=False):
    body = tuple(k for k in (g, t) if k is not None)
    acts = normal(rng, (n, *body, d_in), dtype)
    cots = normal(rng, (n, *_rows(rows), *body, d_out), dtype)
    return entk.Outer(acts, cots, transposed=transposed)


def lookup(rng, n=5, rows=1, t=4, d=3, height=6, dtype="float32"):
    body = () if t is None else (t,)
    ids = rng.integers(-1, height, (n, *body))
    return entk.Lookup(ids, normal(rng, (n, *_rows(rows), *body, d), dtype))


def tied(rng, n=5, rows=1, t=4, d=3, height=6, dtype="float32"):
    """A table that is looked up, read out (transposed) and used as a matrix."""
    return entk.Tied(
        [
            lookup(rng, n, rows, t, d, height, dtype),
            outer(rng, n, rows, None, t, d, height, dtype, transposed=True),
            outer(rng, n, rows, None, None, height, d, dtype),
        ]
    )


LEAVES = {
    "dense": dense,
    "outer": outer,
    "outer-positions": lambda rng, n=5, rows=1, dtype="float32": outer(
        rng, n, rows, t=9, dtype=dtype
    ),
    # Few positions of wide features: contracted pair by pair, the others by forming the table.
    "outer-pairs": lambda rng, n=5, rows=1, dtype="float32": outer(
        rng, n, rows, t=3, d_in=40, d_out=30, dtype=dtype
    ),
    "outer-blocks": lambda rng, n=5, rows=1, dtype="float32": outer(
        rng, n, rows, g=2, t=3, dtype=dtype
    ),
    "outer-transposed": lambda rng, n=5, rows=1, dtype="float32": outer(
        rng, n, rows, t=3, dtype=dtype, transposed=True
    ),
    "lookup": lookup,
    "lookup-one": lambda rng, n=5, rows=1, dtype="float32": lookup(rng, n, rows, None, dtype=dtype),
    "tied": tied,
}


def every_leaf(rng, n=5, rows=1, dtype="float32", **meaning):
    """Factors with one leaf of every kind."""
    leaves = {name: make(rng, n, rows, dtype=dtype) for name, make in LEAVES.items()}
    return entk.Factors(leaves, **meaning)


def one_leaf(kind, rng, n=5, rows=1, dtype="float32", **meaning):
    """Factors with one leaf."""
    return entk.Factors({kind: LEAVES[kind](rng, n, rows, dtype=dtype)}, **meaning)


def mlp(rng, n=5, widths=((6, 4), (4, 3)), rows=1, dtype="float32", **meaning):
    """Factors of a network of matrices with biases, whose gradients are the `cots` themselves."""
    leaves = {}
    for i, (d_in, d_out) in enumerate(widths):
        weight = outer(rng, n, rows, d_in=d_in, d_out=d_out, dtype=dtype)
        leaves[f"fc{i + 1}.weight"] = weight
        leaves[f"fc{i + 1}.bias"] = entk.Dense(weight.cots)
    return entk.Factors(leaves, **meaning)


def integers(rng, n=5, d_in=6, d_out=4, t=None, leaves=2, rows=1, dtype="float32"):
    """Factors of small integers, whose kernel is exact in every precision."""
    body = () if t is None else (t,)
    return entk.Factors(
        {
            f"leaf{i}": entk.Outer(
                cast(rng.integers(-3, 4, (n, *body, d_in)), dtype),
                cast(rng.integers(-3, 4, (n, *_rows(rows), *body, d_out)), dtype),
            )
            for i in range(leaves)
        }
    )


def normal(rng, shape, dtype="float32"):
    return cast(rng.standard_normal(shape), dtype)


def _rows(rows):
    return () if rows == 1 else (rows,)


def arrays_of(leaf):
    """Return the arrays a leaf exposes."""
    if isinstance(leaf, entk.Tied):
        return [a for use in leaf.uses for a in arrays_of(use)]
    if isinstance(leaf, entk.Dense):
        return [leaf.jac]
    return [leaf.ids if isinstance(leaf, entk.Lookup) else leaf.acts, leaf.cots]


# Input families: (rng, shape, dtype) -> float64 array; first axis examples, last features.


def _small_integers(rng, shape, dtype):
    return rng.integers(-3, 4, shape).astype(float)


def _powers_of_two(rng, shape, dtype):
    return rng.choice([-1.0, 1.0], shape) * 2.0 ** rng.integers(-2, 3, shape)


def _gaussian(rng, shape, dtype):
    return rng.standard_normal(shape)


def _non_negative(rng, shape, dtype):
    return np.maximum(rng.standard_normal(shape), 0.0)


def _log_normal(rng, shape, dtype):
    return rng.lognormal(size=shape)


def _cauchy(rng, shape, dtype):
    return np.clip(rng.standard_cauchy(shape), -1e4, 1e4)


def _cancelling(rng, shape, dtype):
    """Odd examples are orthogonal to even ones: pairs of equal size and alternating sign."""
    values = np.abs(rng.standard_normal((*shape[:-1], -(-shape[-1] // 2))))
    values = np.repeat(values, 2, axis=-1)[..., : shape[-1]]
    values[1::2, ..., 1::2] *= -1
    return values


def _alternating_positions(acts):
    """Repeat the first position with alternating sign, so that sums over positions cancel."""
    signs = np.where(np.arange(acts.shape[1]) % 2, -1.0, 1.0)
    return acts[:, :1] * signs[:, None]


def _graded_features(rng, shape, dtype):
    decades = 2 if dtype == "float16" else 8
    return (
        rng.standard_normal(shape) * np.logspace(-decades, decades, max(shape[-1], 1))[: shape[-1]]
    )


def _duplicates(rng, shape, dtype):
    """A few prototypes, repeated exactly by even examples and nearly by odd ones."""
    values = rng.standard_normal((max(1, shape[0] // 4), *shape[1:]))
    values = values[np.arange(shape[0]) % len(values)]
    values[1::2] += 1e-3 * rng.standard_normal(values[1::2].shape)
    return values


def _all_equal(rng, shape, dtype):
    return np.broadcast_to(rng.standard_normal((1, *shape[1:])), shape).copy()


def _zero_rows(rng, shape, dtype):
    values = rng.standard_normal(shape)
    for index in {0, shape[0] // 2, shape[0] - 1}:
        values[index] = 0.0
    for index in {0, shape[-1] // 2, shape[-1] - 1} if shape[-1] else ():
        values[..., index] = 0.0
    return values


def _near_overflow(rng, shape, dtype):
    """So large that a product of four factors, summed, comes near the largest kernel entry."""
    kernel_limit = LARGEST["float64" if dtype == "float64" else "float32"] / 2.0**20
    size = np.prod(shape[1:], dtype=float)
    step = min((kernel_limit / max(size, 1.0) ** 2) ** 0.25, LARGEST[dtype] / 8)
    return step * rng.uniform(-1, 1, shape)


def _near_underflow(rng, shape, dtype):
    """So small that a product of four factors is just above the smallest normal number."""
    smallest = 2.0**-1012 if dtype == "float64" else 2.0**-116
    return max(smallest**0.25, SMALLEST[dtype] * 8) * rng.standard_normal(shape)


def _subnormal(rng, shape, dtype):
    return SMALLEST[dtype] * rng.integers(-9, 10, shape)


FAMILIES = {
    "F1-small-integers": _small_integers,
    "F2-powers-of-two": _powers_of_two,
    "F3-gaussian": _gaussian,
    "F4-non-negative": _non_negative,
    "F5-log-normal": _log_normal,
    "F6-cauchy": _cauchy,
    "F7-cancelling": _cancelling,
    "F8-graded-features": _graded_features,
    "F9-graded-layers": _gaussian,
    "F10-duplicates": _duplicates,
    "F11-all-equal": _all_equal,
    "F12-zero-rows": _zero_rows,
    "F13-near-overflow": _near_overflow,
    "F13-near-underflow": _near_underflow,
    "F14-subnormal": _subnormal,
}


def family(name, rng, n=17, d_in=33, d_out=5, leaves=2, t=None, rows=1, dtype="float32"):
    """Factors whose arrays are all drawn from one family."""
    draw = FAMILIES[name]
    body = () if t is None else (t,)
    grades = np.logspace(-4, 4, leaves) if name == "F9-graded-layers" else np.ones(leaves)
    if dtype == "float16":
        grades = grades**0.25
    made = {}
    for i, grade in enumerate(grades):
        acts = grade * draw(rng, (n, *body, d_in), dtype)
        if name == "F7-cancelling" and t is not None:
            acts = _alternating_positions(acts)
        cots = draw(rng, (n, *_rows(rows), *body, d_out), dtype)
        made[f"leaf{i}"] = entk.Outer(cast(acts, dtype), cast(cots, dtype))
    return entk.Factors(made)
