"""From network to kernel, end to end, beside neural-tangents 0.6.5 at its best settings.

neural-tangents needs an old JAX, so it lives in an environment of its own (`benches/.nt-venv`, made
on the first run). Both sides get the same parameters and images from NumPy, the same cores, and run
in turn; their kernels are compared before a time is printed. neural-tangents runs structured
derivatives (implementation 3), jitted, under `nt.batch`, with the best of several batch sizes; its
default implementation would be tens of times slower and is not a comparison.

entk is timed on all examples. neural-tangents computes the whole square tile by tile, every tile at
the same price, so it is timed on fewer and its seconds are multiplied by the number of tiles: the
column `timed_on` says on how many. `first_call` includes compilation, `seconds` does not.

    python benches/peer_neural_tangents.py [--fast] [--rounds 3] [--record]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
VENV = HERE / ".nt-venv"
PINS = (
    *("jax==0.4.25", "jaxlib==0.4.25", "numpy==1.26.4", "scipy==1.13.1", "ml_dtypes==0.5.4"),
    *("opt_einsum==3.4.0", "frozendict==2.4.6", "absl-py==2.5.1"),
)
BATCHES = (32, 64, 128, 256, 512)
CLASSES = 10
CORNER = 64  # examples whose kernel is compared
AGREE = 1e-5  # largest difference of two float32 kernels over the largest entry
SIZE = 2048
CASES = {  # name: network, outputs, examples that neural-tangents is timed on
    "mlp sum": ("mlp", "sum", 1024),
    "mlp trace": ("mlp", "trace", 512),
    "cnn sum": ("cnn", "sum", 512),
    "cnn trace": ("cnn", "trace", 256),
}


# The networks: plain JAX that both versions read --------------------------------------------------


def parameters(kind):
    """Draw parameters by He's rule, from NumPy so that both sides have the same."""
    rng = np.random.default_rng(0)
    shapes = {
        "mlp": [(784, 512), (512, 512), (512, CLASSES)],
        "cnn": [(3, 3, 1, 32), (3, 3, 32, 64), (7 * 7 * 64, CLASSES)],
    }[kind]
    params = []
    for shape in shapes:
        weight = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        bias = 0.1 * rng.standard_normal(shape[-1])
        params.append((weight.astype(np.float32), bias.astype(np.float32)))
    return params


def images(n):
    """Draw images of 28 x 28 pixels."""
    return np.random.default_rng(1).standard_normal((n, 28, 28, 1)).astype(np.float32)


def mlp(params, x):
    """Map images to logits by two hidden layers of width 512."""
    import jax

    h = x.reshape(x.shape[0], -1)
    for weight, bias in params[:-1]:
        h = jax.nn.relu(h @ weight + bias)
    return h @ params[-1][0] + params[-1][1]


def cnn(params, x):
    """Map images to logits by two convolutions with stride 2."""
    import jax

    h = x
    for weight, bias in params[:-1]:
        h = jax.lax.conv_general_dilated(
            h, weight, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jax.nn.relu(h + bias)
    return h.reshape(h.shape[0], -1) @ params[-1][0] + params[-1][1]


NETWORKS = {"mlp": mlp, "cnn": cnn}


# The two sides ------------------------------------------------------------------------------------


def entk_side(network, params, x, outputs):
    """Return the function to time, the seconds of its first call, and a word on its settings."""
    import entk
    import entk.jax

    # The trace is a way to contract all outputs: their factors are those of the full kernel.
    taken = "full" if outputs == "trace" else outputs

    def assemble():
        return entk.assemble(entk.jax.factors(network, params, x, outputs=taken), outputs=outputs)

    return assemble, clock(assemble), "defaults"


def neural_tangents_side(network, params, x, outputs):
    """Return the same, with the best batch size."""
    import jax
    import jax.numpy as jnp
    import neural_tangents as nt

    def summed(p, inputs):
        return network(p, inputs).sum(-1, keepdims=True) / np.sqrt(CLASSES)

    kernel = nt.empirical_ntk_fn(
        summed if outputs == "sum" else network,
        trace_axes=() if outputs == "sum" else (-1,),
        vmap_axes=0,
        implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES,
    )
    compiled = jax.jit(kernel)

    def with_batch(size):
        batched = nt.batch(compiled, batch_size=size, device_count=0)

        def assemble():
            return np.asarray(batched(jnp.asarray(x), None, params)).reshape(len(x), len(x))

        return assemble, clock(assemble)

    tried = {size: with_batch(size) for size in BATCHES if size <= len(x)}
    best = min(tried, key=lambda size: clock(tried[size][0]))
    return *tried[best], f"batch {best}"


SIDES = {"entk": entk_side, "neural-tangents": neural_tangents_side}


def clock(function):
    """Time one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def child(side, case, n, path):
    """Time one side of one case; write a corner of the kernel, print the figures."""
    kind, outputs, _ = CASES[case]
    made = SIDES[side](NETWORKS[kind], parameters(kind), images(n), outputs)
    assemble, first, settings = made
    np.save(path, assemble()[:CORNER, :CORNER])
    seconds = statistics.median(clock(assemble) for _ in range(3))
    print(json.dumps({"seconds": seconds, "first": first, "settings": settings}))


# The parent ---------------------------------------------------------------------------------------


def make_environment():
    """Install neural-tangents as its last release needs it."""
    if (VENV / "ready").exists():
        return
    old = shutil.which("python3.11")
    if old is None:
        sys.exit("neural-tangents 0.6.5 with jaxlib 0.4.25 needs python3.11 on PATH")
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([old, "-m", "venv", str(VENV)], check=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *PINS], check=True)
    subprocess.run([*pip, "--no-deps", "neural-tangents==0.6.5"], check=True)
    package = next(VENV.glob("lib/python*/site-packages/neural_tangents/__init__.py"))
    # `experimental` imports TensorFlow, which nothing here uses.
    text = re.sub(r"^(from \. import experimental)", r"# \1", package.read_text(), flags=re.M)
    package.write_text(text)
    (VENV / "ready").touch()


def run_side(side, case, n, folder):
    """Run one side in its own process; its figures and its kernel."""
    python = sys.executable if side == "entk" else str(VENV / "bin" / "python")
    path = Path(folder) / f"{side}.npy"
    command = [python, __file__, "--child", side, case, str(n), str(path)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        sys.exit(f"{side}, {case}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]), np.load(path)


def scaled(figures, n, timed):
    """Multiply the seconds by the number of tiles that `n` examples have for one of `timed`."""
    return {**figures, "seconds": figures["seconds"] * (n / timed) ** 2}


def run_case(case, n, rounds):
    """Run both sides in turn; one row each."""
    timed = {"entk": n, "neural-tangents": min(n, CASES[case][2])}
    runs = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            kernels = {}
            for side, figures in runs.items():
                got, kernels[side] = run_side(side, case, timed[side], folder)
                figures.append(scaled(got, n, timed[side]))
            ours, theirs = kernels.values()
            difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
            if not difference <= AGREE:
                sys.exit(f"{case}: the kernels differ by {difference:.2e} of the largest entry")
    rows = []
    for side, figures in runs.items():
        pairs = zip(figures, runs["entk"], strict=True)
        ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
        rows.append(
            {
                "case": case,
                "n": n,
                "method": side,
                "timed_on": timed[side],
                "settings": figures[0]["settings"],
                "seconds": f"{statistics.median(f['seconds'] for f in figures):.4f}",
                "first_call": f"{statistics.median(f['first'] for f in figures):.2f}",
                "ratio_to_entk": f"{ratio:.2f}",
                "difference": f"{difference:.1e}",
            }
        )
    return rows


def main():
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="a quarter of the examples, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="keep the figures in records/")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, case, n, path = options.child
        child(side, case, int(n), path)
        return
    import record

    make_environment()
    rows = []
    n, rounds = (SIZE // 4, 1) if options.fast else (SIZE, options.rounds)
    for case in CASES:
        rows += run_case(case, n, rounds)
        print(f"done: {case}", file=sys.stderr, flush=True)
    record.write("neural-tangents", rows, record=options.record)


if __name__ == "__main__":
    main()
