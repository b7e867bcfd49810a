"""How fast Ctrl-C ends a call: `python benches/interrupts.py --record`.

Interrupts arrive at random times of calls that would take half a minute; what is measured is the
time from the signal to `KeyboardInterrupt` in the caller. A row a way of assembling: in memory and
to both kinds of store by the fused engine, in memory by BLAS. A call to a store goes on with what
the interrupted one before it left. The promise is 200 ms (99 %) on a machine with nothing else to
do.

A series may be made in pieces: with `--tally FILE` a run adds to what the last one measured.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import record

import entk

PROMISE = 0.2
WAYS = {
    "memory": {},
    "npy": {"out": "K.npy", "tile": 1024},
    "zarr": {"out": "K.zarr", "tile": 1024},
    "blas": {"engine": "blas"},
}


def problem(n):
    """Factors whose kernel takes long."""
    rng = np.random.default_rng(0)
    draw = lambda: rng.standard_normal((n, 16, 256), np.float32)  # noqa: E731
    return entk.Factors({f"fc{k}.weight": entk.Outer(draw(), draw()) for k in range(2)})


def interrupted(factors, options, seconds):
    """Send SIGINT after some seconds of a call; how long it then took, or None if it was over."""
    sent = []

    def send():
        time.sleep(seconds)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    try:
        thread.start()
        entk.assemble(factors, **options)
    except KeyboardInterrupt:
        return time.perf_counter() - sent[0]
    finally:
        thread.join()
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interrupts", type=int, default=50, help="interrupts each way")
    parser.add_argument("--n", type=int, default=8000, help="examples")
    parser.add_argument("--longest", type=float, default=2.0, help="latest interrupt, in seconds")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--tally", type=Path, help="go on with the times of this file")
    parser.add_argument("--record", action="store_true", help="keep the rows in benches/records")
    options = parser.parse_args()

    kept = options.tally and options.tally.exists() and json.loads(options.tally.read_text())
    times = kept or {}
    dice = np.random.default_rng(sum(map(len, times.values())))
    factors = problem(options.n)
    for way in options.ways:
        with tempfile.TemporaryDirectory() as folder:
            call = dict(WAYS[way])
            if "out" in call:
                call |= {"out": f"{folder}/{call['out']}", "resume": True}
            mine = times.setdefault(way, [])
            while len(mine) < options.interrupts:
                took = interrupted(factors, call, dice.uniform(0.02, options.longest))
                if took is None:
                    sys.exit(f"{way}: a call was over before its interrupt; take more examples")
                mine.append(took)
                if "out" in call and len(mine) % 5 == 0:
                    entk.clean(call["out"])
        if options.tally:
            options.tally.write_text(json.dumps(times))
    rows = []
    for way, taken in times.items():
        p50, p99 = np.quantile(taken, [0.5, 0.99])
        figures = {"p50_s": p50, "p99_s": p99, "longest_s": max(taken)}
        rounded = {name: round(float(value), 4) for name, value in figures.items()}
        rows.append({"way": way, "interrupts": len(taken), **rounded})
    record.write("interrupts", rows, record=options.record)
    return int(any(row["p99_s"] > PROMISE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
