"""What a Ctrl-C finds half done is finished first. PyTorch's state has a file of its own."""

import signal
import threading

import pytest

from entk import _blas_threads, _interrupts


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_the_block():
    def work():
        with _interrupts.undisturbed():
            press_ctrl_c()
            press_ctrl_c()
            done.append("all of it")

    done = []
    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_and_processes_that_ignore_ctrl_c_are_left_alone():
    def work():
        with _interrupts.undisturbed():
            seen.append(signal.getsignal(signal.SIGINT))

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    work()
    signal.signal(signal.SIGINT, before)
    assert seen == [before, signal.SIG_IGN]


@pytest.mark.parametrize("moment", ["before it is held back", "while it is held back"])
def test_what_is_put_back_is_put_back_once(moment, monkeypatch):
    held = [1, 2]

    def put_back():
        if held == [1, 2]:
            if moment == "while it is held back":
                press_ctrl_c()
            held.pop()

    if moment == "before it is held back":
        monkeypatch.setattr(_interrupts, "undisturbed", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        _interrupts.certainly(put_back)
    assert held == [1]


class Controller:
    """Stands for threadpoolctl; Ctrl-C comes when the limit is set or lifted."""

    def __init__(self, moment):
        self.moment, self.threads = moment, 4

    def limit(self, limits, user_api):
        assert user_api == "blas"
        self.threads = limits
        if self.moment == "set":
            press_ctrl_c()
        return self

    def info(self):
        return [{"user_api": "blas", "num_threads": self.threads}]

    def restore_original_limits(self):
        if self.moment == "lifted":
            press_ctrl_c()
        self.threads = 4


@pytest.mark.parametrize("moment", ["set", "lifted"])
def test_ctrl_c_leaves_no_limit_on_blas(moment, monkeypatch):
    def work():
        with _blas_threads.blas_threads(1) as held:
            assert held
            assert controller.threads == 1

    controller = Controller(moment)
    monkeypatch.setattr(_blas_threads, "_controller", lambda: controller)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert controller.threads == 4
    controller.moment = None
    with _blas_threads.blas_threads(2):
        assert controller.threads == 2
    assert controller.threads == 4
