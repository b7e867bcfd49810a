"""Run code in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path


def run_json(code, **environment):
    """Run `code` in a fresh interpreter and return what it prints as JSON."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
