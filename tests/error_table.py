"""Print the largest error of every input family and type: ``python tests/error_table.py``.

Entries are ``max |K - exact| / (u sqrt(S_ii S_jj))``; T is the number of positions.
"""

import warnings

import numpy as np

import entk
from bounds import KC, check
from cases import DTYPES, FAMILIES, family

COLUMNS = {
    **{dtype: (dtype, {}) for dtype in DTYPES},
    "f64 accumulate, f32 store": ("float32", {"accumulate": "float64"}),
}
SHAPES = {"T = 1": {"n": 65, "d_in": 2 * KC + 3, "d_out": 33}, "T = 9": {"n": 33, "t": 9}}


def ratio(name, shape, dtype, options):
    """Return the largest error of one family."""
    factors = family(name, np.random.default_rng(0), dtype=dtype, **shape)
    kernel = entk.assemble(factors, **options)
    return check(kernel, factors, accumulate=options.get("accumulate"), soft=np.inf).ratio


def main():
    warnings.filterwarnings("ignore", ".*it was flushed by float")
    for title, shape in SHAPES.items():
        print(f"{title:22}" + "".join(f"{column:>27}" for column in COLUMNS))
        for name in FAMILIES:
            ratios = [ratio(name, shape, *column) for column in COLUMNS.values()]
            print(f"{name:22}" + "".join(f"{r:27.2f}" for r in ratios))
        print()


if __name__ == "__main__":
    main()
