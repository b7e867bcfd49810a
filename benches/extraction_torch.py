"""Time of `entk.torch.factors` against per-example gradients by ``vmap(grad)``, as CSV.

The promise: at most 1.3 times ``vmap(grad)`` of the sum of the outputs on the same batch, all
checks included. The least of several runs that alternate, which other work on the machine can only
raise; the peak is of the process.

    python benches/extraction_torch.py [--repeats 10] [--threads 2]
"""

import argparse
import resource
import time

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import entk.torch

FLOOR = 1.3


class Encoder(nn.Module):
    """A transformer encoder with a mean-pooled head."""

    def __init__(self, width, heads, layers):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


def mlp():
    net = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    return net, torch.randn(256, 784)


def cnn():
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
    return net, torch.randn(128, 3, 32, 32)


def encoder():
    return Encoder(128, 4, 2), torch.randn(64, 32, 128)


def baseline(net, x):
    """Return per-example gradients of the sum of the outputs."""
    parameters = {k: p.detach() for k, p in net.named_parameters()}

    def total(p, example):
        return functional_call(net, p, (example[None],)).sum()

    return vmap(grad(total), (None, 0))(parameters, x)


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    repeats = given.repeats
    torch.set_num_threads(given.threads)
    print("network,examples,factors_s,vmap_grad_s,ratio,peak_MiB,promise")
    late = []
    for make in (mlp, cnn, encoder):
        torch.manual_seed(0)
        net, x = make()
        net.eval()
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(timed(lambda n=net, x=x: entk.torch.factors(n, x, batch_size=len(x))))
            theirs.append(timed(lambda n=net, x=x: baseline(n, x)))
        mine, other = min(ours), min(theirs)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{make.__name__},{len(x)},{mine:.4f},{other:.4f},{mine / other:.3f},{peak:.0f},{FLOOR}"
        )
        if mine > FLOOR * other:
            late.append(make.__name__)
    if late:
        raise SystemExit(f"slower than {FLOOR} x vmap(grad): {', '.join(late)}")


if __name__ == "__main__":
    main()
