"""Importing entk is light: heavy packages load where they are used."""

from isolated import run_json

HEAVY = ("jax", "jaxlib", "torch", "zarr", "sklearn", "matplotlib", "scipy", "pandas", "dask")
COUNT = """
import json, sys, numpy
before = set(sys.modules)
import entk
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_loads_no_heavy_package():
    assert not {name.partition(".")[0] for name in run_json(COUNT)} & set(HEAVY)


def test_import_adds_few_modules_to_numpy():
    ours = [name for name in run_json(COUNT) if name.startswith("entk")]
    others = [name for name in run_json(COUNT) if not name.startswith("entk")]
    assert len(ours) < 40
    assert len(others) < 80, others


def test_submodules_load_on_first_use():
    code = COUNT.replace("import entk\n", "import entk\nentk.reference.assemble\n")
    assert "entk.reference" in run_json(code)
    assert "entk.reference" not in run_json(COUNT)


def test_submodules_are_listed_before_they_are_loaded():
    code = "import json, entk; print(json.dumps(dir(entk)))"
    assert {"jax", "torch", "linalg", "reference", "Factors", "InputError"} <= set(run_json(code))


def test_an_unknown_name_is_an_attribute_error():
    code = "import json, entk; print(json.dumps(hasattr(entk, 'nothing')))"
    assert run_json(code) is False
