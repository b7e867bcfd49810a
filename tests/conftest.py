"""Fixtures that every test may use."""

import signal

import numpy as np
import pytest

# A job started in the background ignores Ctrl-C, and so do its children; here some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng(request):
    """Seed by the test's own name, so that adding a test changes no other."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(autouse=True)
def _torch_alone(request):
    """One thread and one seed for the tests of the PyTorch front end: their networks are tiny."""
    if not request.module.__name__.startswith("test_torch_"):
        yield
        return
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
