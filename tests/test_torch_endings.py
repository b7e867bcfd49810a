"""However a call ends, by a result, an error, a refusal or Ctrl-C, nothing is left behind."""

import gc
import signal
import time
from contextlib import contextmanager

import pytest

torch = pytest.importorskip("torch")

import torch.utils.checkpoint as checkpointing  # noqa: E402
from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from bounds import assert_extracted  # noqa: E402
from entk import EntkError, ModelError, _interrupts, reference  # noqa: E402
from entk.torch import _guard  # noqa: E402
from test_torch_state import Busy, assert_same_random, random_states, same, snapshot  # noqa: E402
from torch_oracle import difference, gradients, kernel  # noqa: E402


def precision():
    """Return the settings by both of PyTorch's interfaces, as far as they answer."""
    backends = torch.backends
    switches = [
        (backends, "fp32_precision"),
        *((home, "fp32_precision") for home in (backends.cudnn, backends.mkldnn)),
        *((home.matmul, "fp32_precision") for home in (backends.cuda, backends.mkldnn)),
        *((backends.cudnn, name) for name in ("allow_tf32", "deterministic", "benchmark")),
        (backends.cuda.matmul, "allow_tf32"),
    ]
    found = []
    for home, name in switches:
        try:
            found.append(getattr(home, name))
        except RuntimeError:  # the other of the two interfaces was used
            found.append("mixed")
    return found


def process():
    """Return what a call could leave behind outside the module."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "autocast type": torch.get_autocast_dtype("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": precision(),
        "modes": len(torch.overrides._get_current_function_mode_stack()),
        "transforms": torch._C._functorch.get_dynamic_layer_stack_depth(),
        "hooks": len(nn.modules.module._global_forward_hooks),
        "checkpoints": [checkpointing.CheckpointFunction.apply, *_generators()],
        "anomalies": torch.is_anomaly_enabled(),
        "saved tensors": _saved_tensors(),
        "interrupts": signal.getsignal(signal.SIGINT),
    }


def _saved_tensors():
    core = torch._C._autograd
    top = core._top_saved_tensors_default_hooks(True)
    return top, core._saved_tensors_hooks_get_disabled_error_message()


def _generators():
    names = (n for n in dir(checkpointing) if n.startswith("_checkpoint_without_reentrant"))
    return [getattr(checkpointing, name) for name in names]


@pytest.fixture
def busy():
    module = Busy().train()
    module.l(torch.randn(3, 5)).sum().backward()
    module.l.register_forward_hook(lambda *_: None)
    module.l.register_full_backward_hook(lambda *_: None)
    module.l.bias.requires_grad_(False)
    module.norm.eval()
    return module


IDS = torch.arange(12).reshape(3, 4)[:, :2]


def succeeds(module):
    entk.torch.factors(module, IDS, outputs="full")


def fails(module):
    module.fail = RuntimeError
    module._forward_pre_hooks.update({-1: lambda *_: None, -2: lambda *_: None})
    with pytest.raises(RuntimeError, match="stop"):
        entk.torch.factors(module, IDS)
    module.fail = None
    module._forward_pre_hooks.clear()


def is_refused(module):
    with pytest.raises(ModelError):
        entk.torch.factors(module, IDS, output=lambda out: out - out.mean(0))


def is_asked_wrongly(module):
    with pytest.raises(EntkError):
        entk.torch.factors(module, IDS, outputs=99)


def is_stopped_between_batches(module):
    def stop(done, _):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entk.torch.factors(module, IDS, batch_size=1, progress=stop)


def is_stopped_in_the_network(module):
    def output(out):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entk.torch.factors(module, IDS, output=output)


ENDINGS = [
    succeeds, fails, is_refused, is_asked_wrongly, is_stopped_between_batches,
    is_stopped_in_the_network,
]  # fmt: skip


@pytest.fixture(params=["plain", "double", "autocast", "no gradients", "meta", "fast", "fast too"])
def setting(request):
    """Something that the caller has set, which a call could forget."""
    name = request.param
    if name == "double":
        torch.set_default_dtype(torch.float64)
    if name == "fast":
        torch.set_float32_matmul_precision("medium")
    if name == "fast too":
        torch.backends.fp32_precision = "tf32"
    contexts = {
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "no gradients": torch.no_grad,
        "meta": lambda: torch.device("meta"),
    }
    yield contexts.get(name, torch.enable_grad)
    torch.set_default_dtype(torch.float32)
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda f: f.__name__)
def test_every_ending_leaves_everything_as_it_was(busy, ending, setting):
    with setting():
        before, states, outside = snapshot(busy), random_states(), process()
        ending(busy)
        assert process() == outside
    assert same(before, snapshot(busy))
    assert_same_random(states)


def test_precision_that_is_inherited_goes_on_to_follow():
    backends = torch.backends
    backends.fp32_precision = "tf32"
    try:
        entk.torch.factors(nn.Linear(3, 2), torch.randn(2, 3))
        backends.fp32_precision = "ieee"
        assert backends.mkldnn.matmul.fp32_precision == "ieee"
        assert backends.mkldnn.conv.fp32_precision == "ieee"
    finally:
        backends.fp32_precision = "none"


@pytest.mark.parametrize("moment", ["entered", "left"])
def test_ctrl_c_around_hooks_on_saved_tensors_leaves_none(monkeypatch, moment):
    """One that is left on makes every later `torch.func` call in the process fail."""
    hooks = torch.autograd.graph.saved_tensors_hooks
    name = {"entered": "__enter__", "left": "__exit__"}[moment]
    real = getattr(hooks, name)

    def stopped(self, *args):
        if moment == "entered":
            real(self, *args)
        raise KeyboardInterrupt

    module, x, before = nn.Linear(3, 2), torch.randn(2, 3), _saved_tensors()
    monkeypatch.setattr(hooks, name, stopped)
    with pytest.raises(KeyboardInterrupt):
        entk.torch.factors(module, x)
    assert _saved_tensors() == before
    monkeypatch.setattr(hooks, name, real)
    with hooks(lambda t: t, lambda t: t):  # the caller's own stay on
        before = _saved_tensors()
        monkeypatch.setattr(hooks, name, stopped)
        with pytest.raises(KeyboardInterrupt):
            entk.torch.factors(module, x)
        assert _saved_tensors() == before
        monkeypatch.setattr(hooks, name, real)


def test_ctrl_c_in_a_derivative_does_not_forbid_hooks_on_saved_tensors(monkeypatch):
    core = torch._C._autograd
    real = core._saved_tensors_hooks_enable

    def stopped():
        monkeypatch.setattr(core, "_saved_tensors_hooks_enable", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(core, "_saved_tensors_hooks_enable", stopped)
    before = _saved_tensors()
    with pytest.raises(KeyboardInterrupt):
        entk.torch.factors(nn.Linear(3, 2), torch.randn(2, 3))
    assert _saved_tensors() == before


def test_a_context_that_ctrl_c_kept_from_being_left_puts_nothing_back_later(busy):
    """PyTorch takes modes off for a while, in generators that put them back when they are freed."""

    def output(out):
        without_mode = torch.overrides._pop_mode_temporarily()
        without_mode.__enter__()
        raise KeyboardInterrupt

    outside = process()
    with pytest.raises(KeyboardInterrupt):
        entk.torch.factors(busy, IDS, output=output)
    gc.collect()
    assert process() == outside


def test_ctrl_c_that_became_an_error_of_pytorch_is_ctrl_c():
    def output(out):
        try:
            raise KeyboardInterrupt
        finally:
            torch._C._pop_torch_function_stack()
            raise RuntimeError("trying to pop from empty mode stack")

    outside = process()
    with torch.device("cpu"), pytest.raises(KeyboardInterrupt):
        entk.torch.factors(nn.Linear(3, 2), torch.randn(2, 3), output=output)
    assert process() == outside


def test_an_error_after_a_ctrl_c_that_the_caller_handles_stays_that_error(busy):
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        is_refused(busy)
        is_asked_wrongly(busy)


def test_ctrl_c_just_before_it_is_held_back_changes_nothing(busy, monkeypatch):
    times, real = [], _interrupts.undisturbed

    @contextmanager
    def late():
        times.append(0)
        if len(times) == 2:  # everything is about to be put back
            raise KeyboardInterrupt
        with real():
            yield

    for home in (_interrupts, _guard):
        monkeypatch.setattr(home, "undisturbed", late)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before, states, outside = snapshot(busy), random_states(), process()
        with pytest.raises(KeyboardInterrupt):
            entk.torch.factors(busy, IDS)
        assert process() == outside
    assert same(before, snapshot(busy))
    assert_same_random(states)


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


class Interrupt:
    """Raise Ctrl-C's signal after some processor time."""

    def __init__(self, after):
        self.after = after

    def __enter__(self):
        self.handler = signal.signal(signal.SIGVTALRM, lambda *_: press_ctrl_c())
        signal.setitimer(signal.ITIMER_VIRTUAL, self.after)

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, self.handler)


# In a finaliser or in a callback of the garbage collector nobody can hear it: Python only warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_moment_changes_nothing(busy):
    entk.torch.factors(busy, IDS, outputs="full")  # the first call imports much
    start = time.process_time()
    entk.torch.factors(busy, IDS, outputs="full")
    whole = time.process_time() - start
    before, states, outside = snapshot(busy), random_states(), process()
    stopped = 0
    for k in range(40):
        try:
            with Interrupt((k + 0.5) / 36 * whole):
                entk.torch.factors(busy, IDS, outputs="full")
        except KeyboardInterrupt:
            stopped += 1
        assert process() == outside
        assert same(before, snapshot(busy))
        assert_same_random(states)
    assert stopped >= 10


class Probe:
    """A switch that Ctrl-C meets when it is put back."""

    def __init__(self):
        self._value = "ieee"

    @property
    def fp32_precision(self):
        return self._value

    @fp32_precision.setter
    def fp32_precision(self, value):
        if value == "none":
            press_ctrl_c()
        self._value = value


def test_ctrl_c_while_state_is_put_back_waits_for_it(busy, monkeypatch):
    monkeypatch.setattr(torch.backends, "probe", Probe(), raising=False)
    monkeypatch.setattr(_guard, "_SWITCHES", ("probe", *_guard._SWITCHES))
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    before, states, outside = snapshot(busy), random_states(), process()
    try:
        with pytest.raises(KeyboardInterrupt):
            entk.torch.factors(busy, IDS)
        assert process() == outside
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert same(before, snapshot(busy))
    assert_same_random(states)


class Leaking(torch.overrides.TorchFunctionMode):
    """A mode that Ctrl-C meets as it is entered."""

    def __enter__(self):
        super().__enter__()
        torch._C._functorch._vmap_increment_nesting(3, "error")
        raise KeyboardInterrupt


def test_a_mode_that_ctrl_c_left_on_is_taken_off(busy, monkeypatch):
    from entk.torch import _factors

    monkeypatch.setattr(_factors, "Watch", lambda _: Leaking(), raising=False)
    outside = process()
    with pytest.raises(KeyboardInterrupt):
        entk.torch.factors(busy, IDS)
    assert process() == outside


class Writing(nn.Module):
    """A network whose first step overwrites its input."""

    def __init__(self, write):
        super().__init__()
        self.write = write
        self.l = nn.Linear(6, 3)

    def forward(self, x):
        self.write(x)
        return self.l(x)


WRITES = {
    "ReLU in place": nn.ReLU(inplace=True),
    "a product": lambda x: x.mul_(2),
    "an entry": lambda x: x.__setitem__((slice(None), 0), 3 * x[:, 1]),
}


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"structure": False}], ids=str)
@pytest.mark.parametrize("how", WRITES)
def test_the_examples_are_as_before_and_the_result_is_right(how, options):
    module, x = Writing(WRITES[how]).double(), torch.randn(5, 6, dtype=torch.float64)
    before = x.clone()
    factors = entk.torch.factors(module, x, outputs="full", **options)
    assert torch.equal(x, before)
    truth = kernel(gradients(module, before))
    assert_extracted(difference(reference.assemble(factors), truth))
