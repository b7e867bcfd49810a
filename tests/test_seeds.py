"""The list of seeded bugs keeps up with the code: `seeded_bugs.py` itself takes minutes a bug."""

from pathlib import Path

import pytest

from seeds import BUGS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.file)
def test_a_seeded_bug_has_one_place_in_the_code_and_tests_to_run(bug):
    assert (ROOT / bug.file).read_text(encoding="utf-8").count(bug.old) == 1
    named = [word for word in bug.tests.split() if word.startswith("tests")]
    assert named or bug.kind == "rust"
    assert all((ROOT / path).exists() for path in named)
