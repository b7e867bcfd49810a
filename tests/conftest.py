"""Fixtures that every test may use."""

import numpy as np
import pytest


@pytest.fixture
def rng(request):
    """Seed by the test's own name, so that adding a test changes no other."""
    return np.random.default_rng(list(request.node.name.encode()))
