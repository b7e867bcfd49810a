"""Kill assemblies at random times: `python benches/kills.py --kills 1000`; one CSV line a format.

Columns: format, kills, stores finished, wrong tiles or hashes, most tiles lost in a kill, and the
seconds that the run after the kills took (median, 99 %).
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="kills a format")
    parser.add_argument("--n", type=int, default=1024, help="examples")
    parser.add_argument("--tile", type=int, default=64, help="side of a tile")
    parser.add_argument("--formats", nargs="+", default=["npy", "zarr"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    from cases import mlp
    from kills import MOST_LOST, series

    factors = mlp(np.random.default_rng(options.seed), options.n, widths=((256, 256),) * 2)
    print("format,kills,finished,wrong,most_lost,resume_p50_s,resume_p99_s")
    failed = False
    for suffix in options.formats:
        with tempfile.TemporaryDirectory() as folder:
            tally = series(folder, suffix, factors, options.tile, options.kills, options.seed)
        p50, p99 = np.quantile(tally.resume_seconds, [0.5, 0.99])
        counts = f"{tally.kills},{tally.finished},{tally.wrong},{tally.most_lost}"
        print(f"{suffix},{counts},{p50:.3f},{p99:.3f}", flush=True)
        failed |= tally.wrong > 0 or tally.most_lost > MOST_LOST
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
