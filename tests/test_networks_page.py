"""The table of docs/networks.md is what both planners say, and what real factors are."""

import runpy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("flax")
pytest.importorskip("torchvision")
pytest.importorskip("transformers")

import entk.torch  # noqa: E402
from torch_oracle import kinds  # noqa: E402

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "docs" / "networks_table.py"))


def test_the_table_of_the_page_is_what_the_planners_say(script):
    page = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    assert f"{script['MARK']}\n{script['table']()}\n" in page


@pytest.mark.parametrize("make", ["mlp", "lstm"])
def test_planned_sizes_are_those_of_the_factors(script, make):
    forms, size, dense = script["planned"](script[make])
    torch.manual_seed(0)
    net, x, output = script[make]()
    factors = entk.torch.factors(net.eval(), torch.zeros_like(x), output=output)
    found = [kind.lower() for kind in kinds(factors).values()]
    assert found == [form if form in ("outer", "lookup", "tied") else "dense" for form in forms]
    assert factors.nbytes == size
    assert sum(p.nbytes for p in net.parameters()) == dense
