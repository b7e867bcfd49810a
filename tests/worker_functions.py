"""What workers of the executor tests run: they import it by name."""

import os
import signal

from entk import _workers

compute = _workers.compute


def dying_once(task, index):
    """Kill this worker the first time that tile 3 comes by."""
    marker = f"{task.path}.died"
    if index == 3 and not os.path.exists(marker):
        with open(marker, "x"):
            os.kill(os.getpid(), signal.SIGKILL)
    return compute(task, index)


def dying_always(task, index):
    """Tile 3 kills whoever computes it."""
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(task, index)


def failing_twice(task, index):
    """Tile 3 fails on its first two attempts."""
    for attempt in range(2):
        marker = f"{task.path}.failed{attempt}"
        if index == 3 and not os.path.exists(marker):
            with open(marker, "x"):
                raise OSError("a worker's disk is away")
    return compute(task, index)


def failing_always(task, index):
    """Tile 3 cannot be computed."""
    if index == 3:
        raise OSError("a worker's disk is away")
    return compute(task, index)


def losing_answers(task, index):
    """Compute the tile, then fail: the acknowledgement is lost."""
    compute(task, index)
    return failing_twice(task, index)
