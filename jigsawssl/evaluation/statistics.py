"""What a set of runs allows one to say: intervals, paired tests over seeds and patients, and labels saved."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats
from sklearn.isotonic import IsotonicRegression

from jigsawssl.runs.parts import Difference, Ratio

from .resampling import Numbers

# Gauss-Legendre quadrature over probabilities, dense where variances are large: tails of any t to six digits.
_POINTS, _SHARES = np.polynomial.legendre.leggauss(64)
_NODES: Numbers = ((_POINTS + 1) / 2) ** 6
_WEIGHTS: Numbers = _SHARES / 2 * 6 * ((_POINTS + 1) / 2) ** 5


_SAME = 1e-12


class Interval(NamedTuple):
    """A value with its interval; ``None`` where nothing is defined."""

    value: float | None
    low: float | None
    high: float | None


def percentile_interval(
    value: float | None, draws: ArrayLike, *, units: int, share: bool = True, confidence: float = 0.95
) -> Interval:
    """Percentile bootstrap interval (Efron 1979); draws that are NaN are left out.

    Of fewer than two units nothing can be said of others. Where all draws are the same, resampling does not know how
    far others may differ: a share of 0 or 1 then has the exact interval of so many units (Clopper and Pearson 1934),
    and everything else has none.

    Args:
        value: the metric of the cases as they are.
        draws: ``(R,)`` or, for the mean over seeds, ``(J, R)`` with the same resamples for each seed.
        units: independent units, such as patients, that the metric rests on; of a metric that compares two classes,
            those of the smaller one, which is conservative.
        share: whether the metric is one, from 0 to 1.
        confidence: in (0, 1).

    >>> percentile_interval(50.0, np.arange(101), units=9, confidence=0.5)
    Interval(value=50.0, low=25.0, high=75.0)
    >>> [round(end, 3) for end in percentile_interval(1.0, np.ones(9), units=80)]
    [1.0, 0.955, 1.0]
    """
    found = np.atleast_2d(np.asarray(draws, np.float64)).mean(axis=0)
    found = found[~np.isnan(found)]
    if value is None or not found.size or units < 2:
        return Interval(value, None, None)
    if np.ptp(found) < _SAME:
        if not share or min(abs(value), abs(1 - value)) > _SAME:
            return Interval(value, None, None)
        right = units if value > 0.5 else 0
        exact = stats.binomtest(right, units).proportion_ci(confidence, method="exact")
        return Interval(value, float(exact.low), float(exact.high))
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def compare(
    first: ArrayLike,
    second: ArrayLike,
    *,
    first_draws: ArrayLike,
    second_draws: ArrayLike,
    test_share: float,
    seed: int = 0,
) -> Difference:
    """Compare two encoders that were adapted with the same label draws and judged on the same patients.

    The variance of the mean difference is what seeds add, ``s² / J``, and what the choice of patients adds to all
    seeds at once, the mean covariance of the seeds' differences over the bootstrap samples: the model of Obuchowski
    and Rockette (1995) with seeds as readers. The first is known from J seeds alone, so the error is taken as the sum
    of a t-distributed part with J - 1 degrees of freedom and a normal one (a generalised p-value, Tsui and Weerahandi
    1989). Degrees of freedom that match the variance of that sum (Hillis 2007) are too sure of small p, which a
    correction for many pairs asks for. Beside it stand a bootstrap over both, which is too sure where few seeds differ
    much, and Nadeau and Bengio's corrected resampled t (2003, section 3), which takes patients to be drawn again with
    each training set and is never sure here (``benchmarks/simulations.py``).

    Args:
        first: metric of one encoder for each seed, ``(J,)``.
        second: of the other, with the same seeds.
        first_draws: the same in bootstrap samples of the patients, ``(J, R)``.
        second_draws: in the same samples.
        test_share: test cases for each label, for Nadeau and Bengio's correction.
        seed: of the bootstrap over seeds.

    Raises:
        ValueError: for shapes that do not fit.

    >>> draws = np.random.default_rng(0).normal(0, 0.01, (2, 3, 500))
    >>> found = compare(
    ...     [0.9, 0.91, 0.92],
    ...     [0.8, 0.82, 0.81],
    ...     first_draws=draws[0] + 0.91,
    ...     second_draws=draws[1] + 0.81,
    ...     test_share=1.0,
    ... )
    >>> round(found["difference"], 3), found["p"] < 0.05, found["ahead"]
    (0.1, True, 3)
    """
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    draws = np.asarray(first_draws, np.float64) - np.asarray(second_draws, np.float64)
    count = len(differences)
    if differences.shape != draws.shape[:1] or draws.ndim != 2:
        raise ValueError(f"draws must be ({count}, R), one row per seed, got {draws.shape}")
    draws = draws[:, ~np.isnan(draws).any(axis=0)]
    mean = float(differences.mean())
    between = float(differences.var(ddof=1)) if count > 1 else 0.0
    covariance = np.atleast_2d(np.cov(draws))
    shared = float((covariance.sum() - np.trace(covariance)) / (count * (count - 1))) if count > 1 else None
    patients = max(0.0, shared) if shared is not None else float(covariance[0, 0])
    error = _Error(between / count, patients, count)
    rng = np.random.default_rng(seed)
    picked = rng.integers(count, size=(count, draws.shape[1]))
    both = draws[picked, np.arange(draws.shape[1])].mean(axis=0)
    margin = error.margin(0.95)
    corrected = None
    if between > 0:
        corrected = _Error((1 / count + test_share) * between, 0.0, count).p(mean)
    return Difference(
        difference=mean,
        low=mean - margin,
        high=mean + margin,
        p=error.p(mean),
        p_bootstrap=min(1.0, 2 * (1 + min(int((both <= 0).sum()), int((both >= 0).sum()))) / (1 + len(both))),
        p_nadeau_bengio=corrected,
        effect=mean / math.sqrt(between) if between > 0 else None,
        ahead=int((differences > 0).sum()),
        seeds=count,
    )


class _Error:
    """Of a mean over seeds: a part with ``seeds - 1`` degrees of freedom, and a normal one, given as variances."""

    def __init__(self, of_seeds: float, of_patients: float, seeds: int) -> None:
        # The sum is normal for each value that the unknown variance between seeds may have.
        chances = stats.chi2.ppf(_NODES, seeds - 1) / (seeds - 1) if of_seeds > 0 else np.ones_like(_NODES)
        self.deviations = np.sqrt(of_seeds / chances + of_patients)
        self.parts = (math.sqrt(of_seeds), math.sqrt(of_patients), seeds - 1)

    def p(self, value: float) -> float:
        """How likely it is at least as far from 0 as a value."""
        if not self.deviations.all():
            return 1.0 if value == 0 else 0.0
        return float(min(1.0, 2 * _WEIGHTS @ stats.norm.sf(abs(value) / self.deviations)))

    def margin(self, confidence: float) -> float:
        """Half of the interval that holds it."""
        if not self.deviations.all():
            return 0.0
        # No more than both parts together if each may be outside half as often.
        of_seeds, of_patients, degrees = self.parts
        outside = (1 - confidence) / 4
        largest = of_patients * stats.norm.isf(outside) + (of_seeds * stats.t.isf(outside, degrees) if of_seeds else 0)
        return float(optimize.brentq(lambda value: self.p(value) - (1 - confidence), 0, largest))


def joint_samples(values: ArrayLike, draws: ArrayLike, seed: int = 0) -> Numbers:
    """Samples of several means over seeds at once, with what seeds and patients add to each and to all together.

    The model of :func:`compare`: deviations between seeds by a t distribution with J - 1 degrees of freedom, and those
    of the bootstrap samples of the patients around their own mean.

    Args:
        values: metric by seed, ``(J, M)``.
        draws: the same in R bootstrap samples of the patients, ``(J, R, M)``.
        seed: of the samples.

    Returns:
        float64 ``(1 + R, M)``, the observed means first.

    >>> joint_samples([[0.8], [0.9]], np.full((2, 5, 1), 0.85)).shape
    (6, 1)
    """
    known, resampled = np.asarray(values, np.float64), np.asarray(draws, np.float64)
    (count, number), mean = resampled.shape[:2], known.mean(axis=0)
    of_patients = resampled.mean(axis=0)
    samples = mean + of_patients - np.nanmean(of_patients, axis=0)
    if count > 1:
        rng = np.random.default_rng(seed)
        normal = rng.standard_normal((number, count)) / math.sqrt(count * (count - 1))
        tails = np.sqrt((count - 1) / rng.chisquare(count - 1, (number, 1)))
        samples = samples + (normal * tails) @ (known - mean)
    return np.concatenate([mean[None], samples])


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down rule (1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(values, kind="stable")
    steps = np.asarray(values, np.float64)[order] * np.arange(len(values), 0, -1)
    corrected = np.minimum(np.maximum.accumulate(steps), 1.0)
    result = np.empty(len(values))
    result[order] = corrected
    return [float(value) for value in result]


class LabelSaving(NamedTuple):
    """How many times the labels the other encoder needs to be as good, with its 95 % interval."""

    times: Ratio
    low: Ratio
    high: Ratio


def label_saving(labels: ArrayLike, curve: ArrayLike, *, target: ArrayLike, at: float) -> LabelSaving | None:
    """Read off a learning curve with how many labels it reaches a target.

    The curve is made to rise (isotonic regression) and joined by straight lines over the logarithm of the labels.

    Args:
        labels: numbers of labels of the curve's points ``(F,)``, rising.
        curve: the other encoder's metric ``(1 + R, F)``, the observed one first and samples of it after that.
        target: what is to be reached in each of them, ``(1 + R,)``.
        at: the number of labels with which the target was reached.

    Returns:
        :class:`LabelSaving`, or ``None`` where the curve or the target is not defined.

    >>> label_saving([10, 100, 1000], [[0.7, 0.8, 0.9]] * 2, target=[0.85, 0.85], at=10).times["value"]
    31.6...
    >>> label_saving([10, 100, 1000], [[0.7, 0.8, 0.9]] * 2, target=[0.6, 0.95], at=10).times["side"]
    'at most'
    """
    points = np.log(np.asarray(labels, np.float64))
    curves, targets = np.asarray(curve, np.float64), np.asarray(target, np.float64)
    known = ~(np.isnan(curves).any(axis=1) | np.isnan(targets))
    if not known[0] or known.sum() < 2:
        return None
    found = np.array([_needed(points, line, value) for line, value in zip(curves[known], targets[known], strict=True)])
    # Whole samples and no interpolation, as some are infinite.
    low, high = np.quantile(found[1:], [0.025, 0.975], method="inverted_cdf")

    def bound(log: float) -> Ratio:
        side = "at most" if log < points[0] else "more than" if log > points[-1] else ""
        return Ratio(value=float(np.exp(np.clip(log, points[0], points[-1]))) / at, side=side)

    return LabelSaving(bound(found[0]), bound(low), bound(high))


def _needed(points: Numbers, values: Numbers, target: float) -> float:
    """Logarithm of the labels with which a curve reaches a target; infinite beyond its ends."""
    rising = IsotonicRegression().fit_transform(points, values)
    if rising[0] > target:
        return -math.inf
    if rising[-1] < target:
        return math.inf
    after = int(np.argmax(rising >= target))
    if after == 0:
        return float(points[0])
    share = (target - rising[after - 1]) / (rising[after] - rising[after - 1])
    return float(points[after - 1] + share * (points[after] - points[after - 1]))
