"""Time of `entk.torch.factors` against per-example gradients by ``vmap(grad)``, as CSV.

The promise: at most 1.3 times ``vmap(grad)`` of the sum of the outputs on the same batches, all
checks and copies included. Both sides run the same examples in the same batches, in turn;
``vmap(grad)`` may drop each batch of gradients as soon as it is made, `factors` keeps its result,
in memory that is touched for the first time. `ratio` is the median over rounds of the ratio within
a round, `dense_ratio` the same for ``structure=False``; the kernels of both sides are compared
before anything is timed. Two numbers of examples tell what a call costs in any case (the checks)
from what an example costs: `fixed_s` is where the line through both meets no examples,
`marginal_ratio` compares the slopes. With several threads a machine that others use
(`cores_of_others`) slows many small operations more than few large ones: PyTorch's threads spin
while they wait.

    python benches/extraction_torch.py [--rounds 7] [--threads 1] [--only cnn] [--record]
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import record
import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.func import functional_call, grad, vmap

import entk
import entk.torch

FLOOR = 1.3
AGREE = 1e-4  # of the largest entry of the kernel: float32 through a network


class Encoder(nn.Module):
    """A transformer encoder with a mean-pooled head."""

    def __init__(self, width, heads, layers):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


class LastLogits(nn.Module):
    """The scores of the next token."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, ids):
        return self.body(ids, use_cache=False).logits[:, -1]


def mlp(n):
    net = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    return net, torch.randn(n, 784)


def cnn(n):
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    return net, torch.randn(n, 3, 32, 32)


def resnet18(n):
    import torchvision

    return torchvision.models.resnet18(num_classes=10), torch.randn(n, 3, 64, 64)


def vit(n):
    from torchvision.models.vision_transformer import VisionTransformer

    net = VisionTransformer(
        image_size=32, patch_size=4, num_layers=4, num_heads=3, hidden_dim=192, mlp_dim=768,
        num_classes=10,
    )  # fmt: skip
    nn.init.normal_(net.heads[0].weight, std=0.05)  # torchvision starts it at zero
    return net, torch.randn(n, 3, 32, 32)


def gpt2(n):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=1000, n_positions=64, n_embd=128, n_layer=4, n_head=4,
        bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return LastLogits(GPT2LMHeadModel(config)), torch.randint(0, 1000, (n, 64))


def encoder(n):
    return Encoder(128, 4, 2), torch.randn(n, 32, 128)


# Network, fewer and more examples in all, examples in a batch.
CASES = {
    "mlp": (mlp, (512, 1024), 256),
    "cnn": (cnn, (512, 1024), 64),
    "resnet18": (resnet18, (24, 48), 8),
    "vit": (vit, (64, 192), 32),
    "gpt2": (gpt2, (64, 256), 32),
    "encoder": (encoder, (128, 512), 64),
}


def baseline(net, x):
    """Return per-example gradients of the sum of the outputs."""
    parameters = {k: p.detach() for k, p in net.named_parameters()}

    def total(p, example):
        return functional_call(net, p, (example[None],)).sum()

    return vmap(grad(total), (None, 0))(parameters, x)


def factors(net, x, size):
    entk.torch.factors(net, x, batch_size=size)


def vmap_grad(net, x, size):
    for batch in x.split(size):
        baseline(net, batch)


def dense(net, x, size):
    entk.torch.factors(net, x, batch_size=size, structure=False)


WAYS = {"factors": factors, "vmap_grad": vmap_grad, "dense": dense}


def check(net, x):
    """Refuse to time what is not the same kernel."""
    x = x[:6]
    found = entk.torch.factors(net, x)
    grads = pytree.tree_leaves(baseline(net, x))
    jac = torch.cat([g.reshape(len(x), -1) for g in grads], 1).double().numpy()
    kernel = jac @ jac.T / found.n_outputs
    error = np.abs(entk.assemble(found) - kernel).max() / np.abs(kernel).max()
    if not error <= AGREE:
        raise SystemExit(f"the kernels differ by {error:.1e}")


def busy():
    """Return the processor seconds that all programs and that this one have used, or NaN."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan"), 0.0
    user, nice, system, _, _, irq, soft, *_ = map(int, stat.read_text().split()[1:11])
    ticks = user + nice + system + irq + soft
    return ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(name, rounds, threads):
    """Return one row for each number of examples."""
    make, counts, size = CASES[name]
    torch.manual_seed(0)
    net, x = make(max(counts))
    net.eval()
    check(net, x)
    ways = {
        (way, n): functools.partial(work, net, x[:n], size)
        for n in counts
        for way, work in WAYS.items()
        if way != "dense" or n == counts[0]
    }
    times = {key: [] for key in ways}
    start, (everyone, own) = time.perf_counter(), busy()
    for _ in range(rounds):
        for key, work in ways.items():
            times[key].append(timed(work))
    spent, (everyone_after, own_after) = time.perf_counter() - start, busy()
    others = (everyone_after - everyone - own_after + own) / spent
    middle = {key: statistics.median(seen) for key, seen in times.items()}

    def ratio(way, n):
        if (way, n) not in times:
            return None
        pairs = zip(times["factors", n], times[way, n], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    few, many = counts
    slopes = {
        w: (middle[w, many] - middle[w, few]) / (many - few) for w in ("factors", "vmap_grad")
    }
    shared = {
        "marginal_ratio": round(slopes["factors"] / slopes["vmap_grad"], 3),
        "fixed_s": round(middle["factors", few] - few * slopes["factors"], 4),
        "promise": FLOOR,
        "cores_of_others": round(max(0.0, others), 2),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    return [
        {
            "network": name,
            "parameters": sum(p.numel() for p in net.parameters()),
            "examples": n,
            "batch": size,
            "threads": threads,
            "rounds": rounds,
            "factors_s": round(middle["factors", n], 4),
            "vmap_grad_s": round(middle["vmap_grad", n], 4),
            "ratio": ratio("vmap_grad", n),
            "dense_ratio": ratio("dense", n),
            **shared,
        }
        for n in counts
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", "There is a performance drop")  # vmap's, of attention
    names = given.only or list(CASES)
    rows = [row for name in names for row in measure(name, given.rounds, given.threads)]
    bench = f"extraction-torch-{given.threads}-threads"
    record.write(bench, rows, record=given.record)
    late = [f"{row['network']} ({row['examples']})" for row in rows if row["ratio"] > FLOOR]
    if late:
        raise SystemExit(f"slower than {FLOOR} x vmap(grad): {', '.join(late)}")


if __name__ == "__main__":
    main()
