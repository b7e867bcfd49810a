"""Batches of `entk.jax.factors` side by side: the same bits, one configuration, nothing left."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entk.jax
from bounds import JACOBIAN
from entk.jax import _batches, _dispatch, _extraction
from jax_networks import Numbers
from jax_oracle import error, jacobian, summed

NEW = Numbers(jnp.float32)
PARAMS = {"w": NEW(5, 8), "v": NEW(8, 4)}
X = np.asarray(NEW(23, 5))


def net(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


def bits(factors):
    return [np.asarray(a).tobytes() for f in factors.values() for a in (f.acts, f.cots)]


def test_threads_change_no_bits(monkeypatch):
    found = []
    for threads in ("1", "2", "7"):
        monkeypatch.setenv("ENTK_NUM_THREADS", threads)
        found.append(bits(entk.jax.factors(net, PARAMS, X, batch_size=3)))
    assert found[0] == found[1] == found[2]


def test_batches_are_at_work_at_the_same_time():
    """Each of the first batches waits until all of them are there."""
    together = threading.Barrier(_batches.UNDER_WAY)

    def begin(start, stop):
        def wait():
            if start < _batches.UNDER_WAY:
                together.wait(timeout=60)
            return [np.arange(start, stop, dtype=np.float32)[:, None]]

        return wait

    results = [jax.ShapeDtypeStruct((1,), np.float32)]
    batches = list(_dispatch.run_batches(9, 1, begin, results, 64))
    assert [done for done, _ in batches] == list(range(1, 10))
    assert batches[-1][1][0].ravel().tolist() == list(range(9))


def test_no_more_batches_are_at_work_than_are_planned_for():
    lock, now, most = threading.Lock(), [0], [0]

    def begin(start, stop):
        def wait():
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            threading.Event().wait(0.002)  # long enough for others to begin
            with lock:
                now[0] -= 1
            return [np.zeros((1, 1), np.float32)]

        return wait

    results = [jax.ShapeDtypeStruct((1,), np.float32)]
    for threads in (1, 64):
        most[0] = 0
        list(_dispatch.run_batches(100, 1, begin, results, threads))
        assert 1 <= most[0] <= min(threads, _batches.UNDER_WAY)


def test_the_configuration_is_that_of_the_calling_thread():
    """`jax.enable_x64` holds in one thread only; other threads would compute in float32."""
    assert not jax.config.jax_enable_x64
    with jax.enable_x64(True):
        new = Numbers(jnp.float64)
        params = {"w": new(5, 8), "v": new(8, 4)}
        x = np.asarray(new(23, 5))
        factors = entk.jax.factors(net, params, x, batch_size=3)
        assert error(factors, summed(jacobian(net, params, x))) < JACOBIAN["float64"]
    assert np.asarray(factors["w"].acts).dtype == np.float64


def test_nothing_is_at_work_after_an_interrupt_or_an_error(monkeypatch):
    def stop(done, n):
        if done:
            raise KeyboardInterrupt

    def ours():
        return [t.name for t in threading.enumerate() if t.name.startswith("entk-batch")]

    with pytest.raises(KeyboardInterrupt):
        entk.jax.factors(net, PARAMS, X, batch_size=2, progress=stop)
    assert not ours()
    real = _extraction.Extraction.begin

    def broken(self, program, x, rows):
        wait = real(self, program, x, rows)
        late = bool((np.asarray(x)[0] == X[8]).all())

        def fails():
            raise RuntimeError("RESOURCE_EXHAUSTED: no room")

        return fails if late else wait

    monkeypatch.setattr(_extraction.Extraction, "begin", broken)
    with pytest.raises(entk.MemoryLimitError, match="examples 8 to 9; pass a smaller batch_size"):
        entk.jax.factors(net, PARAMS, X, batch_size=2)
    assert not ours()


def test_ctrl_c_while_a_thread_starts_waits_for_it(monkeypatch):
    real = threading.Thread.start

    def start(self):
        real(self)
        signal.raise_signal(signal.SIGINT)

    def begin(start, stop):
        def wait():
            threading.Event().wait(0.2)
            done.append(start)
            return [np.zeros((1, 1), np.float32)]

        return wait

    done = []
    monkeypatch.setattr(threading.Thread, "start", start)
    results = [jax.ShapeDtypeStruct((1,), np.float32)]
    with pytest.raises(KeyboardInterrupt):
        list(_dispatch.run_batches(9, 1, begin, results, 4))
    assert done == [0]
    assert not [t for t in threading.enumerate() if t.name.startswith("entk-batch")]


def test_functions_that_call_back_are_called_in_turn():
    """Python functions may not expect two calls at a time."""
    lock = threading.Lock()

    def host(x):
        assert lock.acquire(blocking=False)
        try:
            threading.Event().wait(0.01)  # long enough for another call to come
            return np.tanh(x)
        finally:
            lock.release()

    @jax.custom_jvp
    def squash(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(host, shape, x, vmap_method="expand_dims")

    @squash.defjvp
    def _(primals, tangents):
        out = squash(*primals)
        return out, (1 - out**2) * tangents[0]

    def f(p, x):
        return squash(x @ p["w"]) @ p["v"]

    factors = entk.jax.factors(f, PARAMS, X, batch_size=3)
    assert error(factors, summed(jacobian(net, PARAMS, jnp.asarray(X)))) < JACOBIAN["float32"]


def test_sizes_of_batches_depend_on_no_machine(monkeypatch):
    leaves = [jnp.zeros((8, 8))]
    sizes = set()
    for threads in ("1", "64"):
        monkeypatch.setenv("ENTK_NUM_THREADS", threads)
        sizes.add(_batches.fastest_batch(1000, 1 << 20, leaves))
    assert sizes == {36}  # 1,000 MiB by 40 MiB: 25 batches, 28 to share out evenly
