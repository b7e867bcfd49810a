"""Importing entk is light: heavy packages load where they are used."""

import json
import subprocess
import sys

HEAVY = ("jax", "jaxlib", "torch", "zarr", "sklearn", "matplotlib", "scipy", "pandas", "dask")
COUNT = """
import json, sys, numpy
before = set(sys.modules)
import entk
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def imported(code=COUNT):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_import_loads_no_heavy_package():
    assert not {name.partition(".")[0] for name in imported()} & set(HEAVY)


def test_import_adds_few_modules_to_numpy():
    ours = [name for name in imported() if name.startswith("entk")]
    others = [name for name in imported() if not name.startswith("entk")]
    assert len(ours) < 40
    assert len(others) < 80, others


def test_submodules_load_on_first_use():
    code = COUNT.replace("import entk\n", "import entk\nentk.reference.assemble\n")
    assert "entk.reference" in imported(code)
    assert "entk.reference" not in imported()


def test_submodules_are_listed_before_they_are_loaded():
    code = "import json, entk; print(json.dumps(dir(entk)))"
    assert {"jax", "torch", "linalg", "reference", "Factors", "InputError"} <= set(imported(code))


def test_an_unknown_name_is_an_attribute_error():
    code = "import json, entk; print(json.dumps(hasattr(entk, 'nothing')))"
    assert imported(code) is False
