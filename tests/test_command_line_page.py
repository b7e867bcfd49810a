"""The session on the page about the command line is what the commands do."""

import contextlib
import doctest
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from entk._cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "command-line.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def block(kind, text):
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def steps(text):
    """Pairs of a command and what is said to come of it."""
    found = []
    for session in block("console", text):
        for line in session.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return [(command, "\n".join(said)) for command, said in found]


def done(command):
    """Run a command; what it prints on both streams, and its status where that is not 0."""
    name, *arguments = shlex.split(command.partition("|")[0])
    if name != "entk":
        subprocess.run(command, shell=True, check=True)
        return ""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        try:
            status = main(arguments)
        except SystemExit as left:
            status = left.code
    return stream.getvalue() + (f"[status {status}]" if status else "")


def test_every_command_says_what_the_page_says(tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec("".join(block("python", text)), {})
    check = doctest.OutputChecker().check_output
    for command, said in steps(text):
        got = done(command)
        # A log gets a line for each tenth: which of them depends on nothing, but how many are
        # passed at once does.
        if not check(said.strip() + "\n", got.strip() + "\n", FLAGS):
            pytest.fail(f"$ {command}\n{got}\nbut the page says\n{said}")
    assert len(steps(text)) > 15
