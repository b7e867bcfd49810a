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
