"""Kill assemblies at random times: `python benches/kills.py --kills 1000 --record`.

A row a format: kills, stores that were finished after one to five of them, wrong tiles or hashes,
files left that the documentation does not list, the most tiles that one kill cost (they are
computed twice), the seconds a resume spends before it begins the first missing tile, and the
seconds until it is done (median and 99 %).

A long series may be made in pieces: with `--seconds` and `--tally FILE` a run stops in time and the
next one goes on where it stopped.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import record

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def add(tally, more):
    """Add the counts and lists of a second tally to the first."""
    for field in fields(tally):
        setattr(tally, field.name, getattr(tally, field.name) + getattr(more, field.name))


def row(suffix, tally):
    found = {
        "format": suffix,
        "kills": tally.kills,
        "finished": tally.finished,
        "wrong": tally.wrong,
        "unlisted": tally.unlisted,
        "most_lost": tally.most_lost,
    }
    for name in ("overhead", "resume"):
        p50, p99 = np.quantile(getattr(tally, f"{name}_seconds"), [0.5, 0.99])
        found |= {f"{name}_p50_s": round(float(p50), 4), f"{name}_p99_s": round(float(p99), 4)}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="kills a format")
    parser.add_argument("--n", type=int, default=512, help="examples")
    parser.add_argument("--tile", type=int, default=32, help="side of a tile")
    parser.add_argument("--formats", nargs="+", default=["npy", "zarr"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--tally", type=Path, help="go on with the counts of this file")
    parser.add_argument("--record", action="store_true", help="keep the rows in benches/records")
    options = parser.parse_args()

    from cases import mlp
    from kills import MOST_LOST, Tally, series

    factors = mlp(np.random.default_rng(options.seed), options.n, widths=((256, 256),) * 2)
    kept = options.tally and options.tally.exists() and json.loads(options.tally.read_text())
    tallies = {suffix: Tally(**found) for suffix, found in (kept or {}).items()}
    for suffix in options.formats:
        tally = tallies.setdefault(suffix, Tally())
        wanted, seed = options.kills - tally.kills, options.seed + tally.kills
        if wanted > 0:
            with tempfile.TemporaryDirectory() as folder:
                share = options.seconds / len(options.formats)
                add(tally, series(folder, suffix, factors, options.tile, wanted, seed, share))
        if options.tally:
            options.tally.write_text(json.dumps({name: asdict(t) for name, t in tallies.items()}))
    rows = [row(suffix, tally) for suffix, tally in tallies.items() if tally.kills]
    record.write("kills", rows, record=options.record)
    return int(any(found["wrong"] or found["most_lost"] > MOST_LOST for found in rows))


if __name__ == "__main__":
    sys.exit(main())
