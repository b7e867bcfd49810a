"""Run code in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = str(Path(__file__).parent)


def run_json(code, **environment):
    """Run `code` in a fresh interpreter and return what it prints as JSON."""
    path = os.pathsep.join([TESTS, *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
