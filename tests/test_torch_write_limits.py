"""Writing within a limit, being told where an error was, and going on after a kill."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from entk import InputError, MemoryLimitError  # noqa: E402
from isolated import run_json  # noqa: E402


class Counting(nn.Module):
    """Counts the examples that run at once through a network."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))

    def forward(self, x):
        return self.net(x)


def bytes_an_example(module, x, **options):
    """Return the bytes that the refusal of one byte names: in all, in the result, on the way."""
    with pytest.raises(MemoryLimitError, match="need at least") as caught:
        entk.torch.factors(module, x, memory=1, **options)
    words = str(caught.value).replace(",", "").replace("(", " ").split()
    return [int(word) for word in words if word.isdigit()][1:4]


@pytest.mark.parametrize("outputs", ["sum", "full"])
def test_the_bytes_of_an_example_are_known_before_the_first_batch(tmp_path, outputs):
    module, x = Counting(), torch.randn(30, 64)
    least, result, working = bytes_an_example(module, x, outputs=outputs)
    factors = entk.torch.factors(module, x, outputs=outputs)
    assert factors.nbytes == 30 * result
    assert entk.torch.factors(module, x, outputs=outputs, memory=least).n == 30
    with pytest.raises(MemoryLimitError, match=f"need at least {least:,} bytes"):
        entk.torch.factors(module, x, outputs=outputs, memory=least - 1)
    assert working >= result
    seen = []
    with pytest.raises(MemoryLimitError, match=r"batch 0 of those given.*smaller batches"):
        entk.torch.write_factors(
            tmp_path / "F", module, [x], outputs=outputs, memory=least - 1,
            progress=lambda *told: seen.append(told),
        )  # fmt: skip
    assert seen == [(0, 1)]
    assert not (tmp_path / "F").exists()


def sizes_run(monkeypatch):
    """Return the list that the numbers of examples run at once will be in."""
    from entk.torch import _factors

    sizes = []
    inner = _factors.Extraction._run

    def told(self, size, report):
        sizes.append(size)
        return inner(self, size, report)

    monkeypatch.setattr(_factors.Extraction, "_run", told)
    return sizes


def test_the_size_of_a_batch_follows_from_the_memory(tmp_path, monkeypatch):
    module, x = Counting(), torch.randn(60, 64)
    least, _, working = bytes_an_example(module, x)
    sizes = sizes_run(monkeypatch)
    for count in (1, 7, 20):
        limit = least + (count - 1) * working
        entk.torch.factors(module, x, memory=limit)
        entk.torch.write_factors(tmp_path / f"{count}", module, [x], memory=limit)
    assert sizes == [1, 1, 7, 7, 20, 20]
    entk.torch.factors(module, x)
    assert sizes[-1] == 60


def test_a_size_of_a_batch_that_is_given_is_kept(tmp_path, monkeypatch):
    sizes = sizes_run(monkeypatch)
    module, x = Counting(), torch.randn(10, 64)
    entk.torch.write_factors(tmp_path / "F", module, x.split(5), batch_size=2)
    assert sizes == [2, 2]


def test_what_a_call_adds_stays_within_the_limit():
    code = """
import json, torch, entk.torch
from pathlib import Path
torch.set_num_threads(1)
width = 256
net = torch.nn.Sequential(*[
    layer for _ in range(4) for layer in (torch.nn.Linear(width, width), torch.nn.Tanh())
])
x = torch.randn(4000, width)
entk.torch.factors(net, x[:2])
def status(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))
before, grown = status("VmRSS"), []
for memory in (60 << 20, 120 << 20):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    factors = entk.torch.factors(net, x, memory=memory)
    grown.append((status("VmHWM") - before) / memory)
    del factors
print(json.dumps(grown))
"""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process can be reset on Linux alone")
    assert all(0.1 < share <= 1.0 for share in run_json(code))


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(5, 3)

    def forward(self, ids):
        return self.rows(ids)


def test_an_error_names_the_batch_and_the_examples(tmp_path):
    batches = [torch.tensor([[0], [1], [2]]), torch.tensor([[3], [4], [9]])]
    with pytest.raises(IndexError) as caught:
        entk.torch.write_factors(tmp_path / "F", Table(), batches, batch_size=1)
    assert caught.value.__notes__ == [
        "entk: in batch 2 of 3, examples 5 to 5",
        "entk: in batch 1 of those given",
    ]


def test_a_batch_that_is_no_input_is_named(tmp_path):
    with pytest.raises(InputError, match="x is a float") as caught:
        entk.torch.write_factors(tmp_path / "F", Table(), [torch.tensor([[0]]), 3.0])
    assert caught.value.__notes__ == ["entk: in batch 1 of those given"]


def test_progress_counts_batches_and_never_goes_back(tmp_path):
    x, seen = torch.randn(9, 64), []
    module = Counting()
    entk.torch.write_factors(
        tmp_path / "F", module, x.split(3), batch_size=1, progress=lambda *told: seen.append(told)
    )
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    unknown = []
    entk.torch.write_factors(
        tmp_path / "G", module, iter(x.split(3)), progress=lambda *told: unknown.append(told)
    )
    assert unknown == [(0, 0), (1, 1), (2, 2), (3, 3)]


KILLED = """
import sys, torch, entk.torch
torch.set_num_threads(1)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 3))
x = torch.randn(24, 20)
def slowly():
    for number, batch in enumerate(x.split(4)):
        print(number, flush=True)
        if number == int(sys.argv[2]):
            sys.stdin.read()  # killed here
        yield batch
factors = entk.torch.write_factors(sys.argv[1], net, slowly(), resume=True)
print("done", factors.n)
"""


def written(path, stop):
    """Write a store in another process, and kill that when it asks for batch `stop`."""
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(stop)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with run:
        for line in run.stdout:
            if line.strip() == str(stop):
                run.kill()
        run.stdin.close()
    return run.returncode


def test_a_killed_writing_goes_on_without_loss(tmp_path):
    assert written(tmp_path / "whole", -1) == 0
    for stop in (0, 1, 4):
        assert written(tmp_path / "F", stop) == -signal.SIGKILL
        assert not (tmp_path / "F").exists()
    assert written(tmp_path / "F", -1) == 0
    whole, parts = entk.open(tmp_path / "whole"), entk.open(tmp_path / "F")
    assert parts.leaves == whole.leaves
    for name in whole:
        for a, b in zip(parts[name]._parts, whole[name]._parts, strict=True):
            assert np.array_equal(a.host.array, b.host.array)
