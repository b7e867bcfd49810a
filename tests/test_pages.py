"""The pages beside the code say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from entk._cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benches/*.md")]
UNSAFE = re.compile(r"\bunsafe\b(?=\s*(?:\{|impl\b|fn\b|extern\b|trait\b))")


def unsafe_sites(path):
    code = (line.split("//")[0] for line in path.read_text(encoding="utf-8").splitlines())
    return sum(len(UNSAFE.findall(line)) for line in code)


def test_safety_page_lists_every_unsafe_site():
    page = (ROOT / "SAFETY.md").read_text(encoding="utf-8")
    listed = {
        name: int(count) for name, count in re.findall(r"^\| `(rust/\S+)` \| (\d+) \|", page, re.M)
    }
    found = {str(p.relative_to(ROOT)): unsafe_sites(p) for p in sorted(ROOT.glob("rust/**/*.rs"))}
    assert listed == {name: count for name, count in found.items() if count}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    local = [target for target in targets if not target.startswith(("http:", "https:"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_page_of_the_docs_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in ROOT.glob("docs/*.md")} - {"index.md"}
    assert {name for name in pages if f"({name})" not in index} == set()


def test_every_command_is_described():
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert {name for name in COMMANDS if f"`entk {name}" not in page} == set()


def test_every_example_ends_before_its_fence():
    # Doctest would read a fence that follows at once as expected output.
    block = re.compile(r"```python\n(.*?)```", re.S)
    for page in PAGES:
        for example in block.findall(page.read_text(encoding="utf-8")):
            assert ">>>" not in example or example.endswith("\n\n"), page.name
