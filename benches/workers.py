"""Workers that die, hang and come back late: `python benches/workers.py --record`.

A row for each executor and way of dying: deaths, assemblies that met them, assemblies whose kernel
had another hash than that of a single process, assemblies that gave a tile up after three tries (a
`WorkerLostError`; the next call finishes them), and how much longer they took than the same call
undisturbed (median, largest). A second file lists every death.

A stopped worker goes on after some seconds: a pool waits for it, Dask gives it up before and then
meets its late answer. With `--tally FILE --seconds S` a series may be made in pieces.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import record

import entk

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

# Executor, how, deaths of 200, strikes an assembly.
SERIES = [
    ("pool", "killed", 90, 2),
    ("pool", "stopped", 15, 2),
    ("dask", "killed", 75, 3),
    ("dask", "stopped", 15, 1),
    ("dask scheduler", "killed", 5, 1),
]
# Assemblies before executors are made anew.
TOGETHER = 5


def rows_of(log):
    rows = []
    for name, how, _, _ in SERIES:
        runs = [one for one in log.runs if (one["executor"], one["how"]) == (name, how)]
        struck = [one for one in runs if one["deaths"]]
        if not struck:
            continue
        calm = np.median([one["seconds"] for one in runs if one["strikes"] == 0])
        ratios = [one["seconds"] / calm for one in struck]
        rows.append(
            {
                "executor": name,
                "how": how,
                "deaths": sum(one["deaths"] for one in struck),
                "assemblies": len(struck),
                "wrong": sum(one["wrong"] for one in runs),
                "given_up": sum(bool(one["lost"]) for one in struck),
                "calm_s": round(float(calm), 2),
                "longer_p50": round(float(np.median(ratios)), 2),
                "longer_max": round(float(max(ratios)), 2),
            }
        )
    return rows


def deaths_so_far(log, name, how):
    return sum((one["executor"], one["how"]) == (name, how) for one in log.deaths)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the 200 deaths")
    parser.add_argument("--n", type=int, default=800, help="examples")
    parser.add_argument("--tile", type=int, default=40, help="side of a tile")
    parser.add_argument("--executors", nargs="+", default=sorted({one[0] for one in SERIES}))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--tally", type=Path, help="go on with the log of this file")
    parser.add_argument(
        "--record", action="store_true", help="keep rows and log in benches/records"
    )
    options = parser.parse_args()

    from cases import mlp
    from deaths import EXECUTORS, Log, digest, run

    kept = options.tally and options.tally.exists() and json.loads(options.tally.read_text())
    log = Log(**(kept or {}))
    until = time.monotonic() + options.seconds
    dice = np.random.default_rng(len(log.deaths))
    factors = mlp(np.random.default_rng(0), options.n, widths=((256, 256),) * 2)
    want = digest(entk.assemble(factors))
    for name, how, wanted, strikes in SERIES:
        wanted = round(wanted * options.scale) if name in options.executors else 0
        while deaths_so_far(log, name, how) < wanted and time.monotonic() < until:
            with tempfile.TemporaryDirectory() as folder, EXECUTORS[name]() as (executor, pids):
                factors.save(f"{folder}/F")
                opened = entk.open(f"{folder}/F")
                # A pool, and a scheduler, are gone with their first death.
                counts = [0, *[strikes] * TOGETHER] if name == "dask" else [0, strikes]
                for number, count in enumerate(counts):
                    path = Path(folder, f"K{number}.{'npy' if number % 2 else 'zarr'}")
                    one = run(
                        log,
                        name,
                        executor,
                        pids,
                        how,
                        count,
                        opened,
                        path,
                        options.tile,
                        want,
                        dice,
                    )
                    one["strikes"] = count
            if options.tally:
                options.tally.write_text(json.dumps(asdict(log)))
    rows = rows_of(log)
    record.write("workers", rows, record=options.record)
    if options.record:
        begun = min(one["time"] for one in log.deaths)
        deaths = [{**one, "time": round(one["time"] - begun, 2)} for one in log.deaths]
        record.write("workers-deaths", deaths, record=True)
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
