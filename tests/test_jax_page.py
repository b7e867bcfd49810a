"""The table of docs/jax.md is what the code says."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_of_the_page_is_what_the_planner_says():
    made = runpy.run_path(str(ROOT / "docs" / "jax_table.py"))
    page = (ROOT / "docs" / "jax.md").read_text(encoding="utf-8")
    assert f"{made['MARK']}\n{made['table']()}\n" in page
