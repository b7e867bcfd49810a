"""The page about many machines: its arithmetic is right and its scripts are scripts."""

import ast
import doctest
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "machines.md"


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_arithmetic_is_what_the_page_says():
    assert doctest.testfile(str(PAGE), module_relative=False).failed == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", blocks("bash"))
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_python_examples_parse():
    for code in blocks("python"):
        if ">>>" not in code:
            ast.parse(code)
