"""How good the cheap kernels are for given factors: measured on a sample, said in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from entk._dense import Float
from entk._errors import InputError

if TYPE_CHECKING:
    from entk._factors import Factors

MOST_ROWS = 4096  # rows of the full kernel of the sample: 128 MiB in float64
FROBENIUS = 0.2  # a relative error of 0.19 moved ridge predictions by 0.5, one of 0.09 by 0.22
SHARED = 0.2  # (O - 1) times the mean cosine: what shared directions add to the summed kernel
EIGMAX = 0.25  # the top of the full spectrum is spread by its O x O blocks, so it is larger


@dataclass(frozen=True)
class Certificate:
    """How well the summed and the trace kernel stand for the full one.

    Attributes
    ----------
    frobenius_sum, frobenius_trace
        ``|kernel (x) I - full|_F / |full|_F`` for ``outputs="sum"`` and ``"trace"``.
    cosine
        Mean cosine between the gradients of different outputs at the same example, with its sign.
    eigmax_ratio, condition_ratio
        Largest eigenvalue and condition number of the summed kernel over those of the full one;
        NaN where no condition number exists in float64.
    samples, n_outputs
        What was measured.
    ok
        Whether the summed kernel is fit for regression and for the top of the spectrum.
    reasons
        Why not, and what it is not fit for in any case, in words.
    """

    frobenius_sum: float
    frobenius_trace: float
    cosine: float
    eigmax_ratio: float
    condition_ratio: float
    samples: int
    n_outputs: int
    ok: bool
    reasons: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """Write the verdict, the numbers and the reasons."""
        fit = "is fit" if self.ok else "is NOT fit"
        head = (
            f"The summed kernel {fit} to stand for the full kernel of these factors\n"
            f"({self.samples} examples, {self.n_outputs} outputs)."
        )
        numbers = [
            ("relative Frobenius error, sum", self.frobenius_sum),
            ("relative Frobenius error, trace", self.frobenius_trace),
            ("mean cosine between outputs", self.cosine),
            ("lambda_max, sum / full", self.eigmax_ratio),
            ("condition number, sum / full", self.condition_ratio),
        ]
        table = [f"  {name:<32} {value:9.4f}" for name, value in numbers]
        return "\n".join([head, *table, *(f"- {reason}" for reason in self.reasons)])

    __repr__ = __str__


def certify(factors: Factors, *, samples: int = 256, seed: int = 0) -> Certificate:
    r"""Measure how good ``"sum"`` and ``"trace"`` are for these factors.

    The summed kernel (pNTK) [1]_ is ``trace / O`` plus the mean of the cross terms between outputs.
    At initialisation these have random signs and vanish like ``1 / sqrt(width)``; once the rows of
    the head share a direction they add up, and the error grows with the number of outputs. So it is
    measured: on a random sample of examples, against the full kernel, in float64.

    Parameters
    ----------
    factors : Factors
        With R = O output rows (made with ``outputs="full"``).
    samples : int
        Examples to draw, without replacement; fewer where their full kernel would have more than
        4,096 rows.
    seed : int
        Of the draw.

    Returns
    -------
    Certificate

    Raises
    ------
    InputError
        If the factors hold less than the full output, or no example.

    Notes
    -----
    **Cost.** The full kernel of the sample and its eigenvalues: ``samples^2 O^2`` entries.
    The verdict `ok` asks for a relative Frobenius error up to 0.2, a contribution of shared
    directions ``(O - 1) |cosine|`` up to 0.2 and a largest eigenvalue within 25 %. Nothing here
    makes the summed kernel fit for log-determinants or condition numbers.

    References
    ----------
    .. [1] M. A. Mohamadi, W. Bae, D. J. Sutherland, "A Fast, Well-Founded Approximation to the
       Empirical Neural Tangent Kernel", ICML 2023.

    Examples
    --------
    >>> import numpy as np, entk
    >>> rng = np.random.default_rng(0)
    >>> cots = np.eye(3)[None].repeat(8, 0)  # outputs that share no parameter
    >>> entk.certify(entk.Factors([(rng.standard_normal((8, 5)), cots)])).ok
    True
    """
    from entk._assemble import assemble

    outputs = factors.rows
    if factors.outputs != "full" and factors.n_outputs > 1:
        raise InputError(
            f"certify needs all outputs, but these factors hold outputs={factors.outputs!r}; make "
            'them with outputs="full"'
        )
    if isinstance(samples, bool) or samples < 1 or factors.n == 0:
        raise InputError(f"certify needs at least one example (samples={samples}, n={factors.n})")
    count = min(samples, factors.n, max(1, MOST_ROWS // max(outputs, 1)))
    index = np.sort(np.random.default_rng(seed).choice(factors.n, count, replace=False))
    part = factors.take(index)
    full, summed, traced = (
        np.asarray(assemble(part, outputs=word, dtype="float64"))
        for word in ("full", "sum", "trace")
    )
    return judge(full, summed, traced, outputs)


def judge(full: Float, summed: Float, traced: Float, outputs: int) -> Certificate:
    """Compare the three kernels of one sample."""
    from entk.metrics import compare

    by_sum, by_trace = compare(summed, full), compare(traced, full)
    cosine = _mean_cosine(full, outputs)
    numbers = (by_sum.frobenius, by_trace.frobenius, cosine, by_sum.eigmax_ratio)
    against = _against(*numbers, outputs)
    return Certificate(
        *numbers,
        by_sum.condition_ratio,
        len(summed),
        outputs,
        not against,
        (*against, *_cautions(by_sum.condition_ratio, outputs)),
    )


def _mean_cosine(full: Float, outputs: int) -> float:
    """Return the mean cosine of the gradients of two outputs at one example."""
    if outputs == 1:
        return 0.0
    n = len(full) // outputs
    blocks = full.reshape(n, outputs, n, outputs)[np.arange(n), :, np.arange(n), :]
    size = np.sqrt(np.maximum(np.einsum("noo->no", blocks), 0.0))
    scale = size[:, :, None] * size[:, None, :]
    cosines = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)
    apart = ~np.eye(outputs, dtype=bool)
    return float(np.mean(cosines[:, apart]))


def _against(
    frobenius: float, traced: float, cosine: float, eigmax: float, outputs: int
) -> list[str]:
    reasons = []
    shared = (outputs - 1) * abs(cosine)
    if shared > SHARED:
        reasons.append(
            f"the outputs share a direction: their gradients have a mean cosine of {cosine:+.3f}, "
            f"and over {outputs} outputs that moves the summed kernel by about {shared:.0%} of the "
            'trace kernel; the rows of the head are correlated. Use outputs="trace" or "full"'
        )
    if frobenius > FROBENIUS:
        better = '; "trace" is nearer' if traced < 0.5 * frobenius else ""
        reasons.append(
            f"the summed kernel is {frobenius:.0%} off the full kernel (relative Frobenius error, "
            f"at most {FROBENIUS:.0%} passes){better}; wider networks are nearer"
        )
    if not abs(eigmax - 1.0) <= EIGMAX:
        reasons.append(
            f"its largest eigenvalue is {eigmax:.3f} times that of the full kernel: learning rates "
            "and training times read from it are off by that"
        )
    return reasons


def _cautions(condition: float, outputs: int) -> list[str]:
    if outputs == 1:
        return ["with one output all these kernels are the same"]
    which = (
        "the two cannot be compared in float64"
        if np.isnan(condition)
        else f"that of the summed kernel is {condition:.2f} times that of the full one"
    )
    return [
        f"not for condition numbers: {which}",
        'not for log-determinants, whatever these numbers say: use outputs="full" in float64',
    ]
