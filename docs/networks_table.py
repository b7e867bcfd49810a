"""Print the table of docs/networks.md: what becomes of the parameters of common networks.

Shapes only, for both front ends: networks are planned, not run, so that a laptop plans GPT-2 in
seconds. Run it from the repository's root.
"""

import itertools
import runpy
from pathlib import Path

import torch
from torch import nn

from entk.torch._factors import Extraction
from entk.torch._network import Inputs
from entk.torch._plan import make_plan

MARK = "<!-- table: python docs/networks_table.py -->"


class LastStep(nn.Module):
    """A recurrent layer read at its last step."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.LSTM(128, 512, batch_first=True), nn.Linear(512, 10)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


def mlp():
    sizes = [784, 1024, 1024, 1024]
    pairs = itertools.pairwise(sizes)
    layers = [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(1024, 10)), torch.empty(1, 784), None


def resnet():
    import torchvision

    return torchvision.models.resnet18(), torch.empty(1, 3, 224, 224), None


def convnext():
    import torchvision

    return torchvision.models.convnext_tiny(), torch.empty(1, 3, 224, 224), None


def vit():
    import torchvision

    return torchvision.models.vit_b_16(), torch.empty(1, 3, 224, 224), None


def tokens(count):
    return torch.empty(1, count, dtype=torch.int64)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    net = GPT2LMHeadModel(GPT2Config(attn_implementation="eager"))
    return net, tokens(128), lambda out: out.logits[:, -1]


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    net = BertForSequenceClassification(BertConfig(attn_implementation="eager"))
    return net, tokens(64), None


def lstm():
    return LastStep(), torch.empty(1, 64, 128), None


TORCH = {
    "MLP 784-1024-1024-1024-10": mlp,
    "ResNet-18 (torchvision), 224x224 pixels": resnet,
    "ConvNeXt-T (torchvision), 224x224 pixels": convnext,
    "ViT-B/16 (torchvision), 224x224 pixels": vit,
    "GPT-2 small (Transformers), 128 tokens, tied": gpt2,
    "BERT-base (Transformers), 64 tokens": bert,
    "LSTM, width 512, 64 steps": lstm,
}


def planned(make):
    """Return the forms of the parts, bytes of factors and of the dense gradient of one example."""
    with torch.device("meta"):
        net, x, output = make()
    found = Extraction(net.eval(), Inputs(x), output, structure=True)
    found._probe([x[0]])
    plan = make_plan(found.network.parameters, found._seen, 1, {})
    size = sum(part.numbers(1) * part.dtype.itemsize for part in plan.parts)
    return [p.form for p in plan.parts], size, sum(p.nbytes for p in net.parameters())


def planned_in_jax():
    """Yield the same for the networks of docs/jax_table.py, by name."""
    script = runpy.run_path(str(Path(__file__).with_name("jax_table.py")))
    for name, network in script["NETWORKS"].items():
        parts, size, dense = script["planned"](*network)
        yield name, ([part.form for part in parts], size, dense)


def row(front, name, forms, size, dense):
    kinds = [(kind, forms.count(kind)) for kind in ("outer", "lookup", "tied")]
    kept = ", ".join(f"{count} {kind.title()}" for kind, count in kinds if count)
    rest = len(forms) - sum(count for _, count in kinds)
    sizes = " | ".join(f"{n / 1e6:,.3g} MB" for n in (size, dense))
    return f"| {name} | {front} | {kept} | {rest} | {sizes} | {size / dense:.3g} |"


def table():
    lines = [
        "| network | front end | leaves with structure | dense leaves | factors of an example "
        "| its dense gradient | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [row("JAX", name, *found) for name, found in planned_in_jax()]
    lines += [row("PyTorch", name, *planned(make)) for name, make in TORCH.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
