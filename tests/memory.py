"""The smallest memory limit that a problem can be done in, as entk says it."""

import re

import pytest

import entk

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def smallest(factors, other=None, **options):
    """Return the limit in bytes that the refusal of one byte names, rounded up as printed."""
    with pytest.raises(entk.MemoryLimitError, match="needs at least") as caught:
        entk.assemble(factors, other, memory=1, **options)
    number, unit = re.search(r"needs at least ([\d.]+) (\w+)", str(caught.value)).groups()
    # It is printed to a tenth.
    return int((float(number) + 0.1) * UNITS[unit]), str(caught.value)
