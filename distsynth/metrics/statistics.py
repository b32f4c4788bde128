"""Differences between methods evaluated on the same specimens: intervals, tests and their limits.

The specimen is the unit: voxels and patches of one brain are no independent samples. So each
method's value on a specimen is compared with another's on the same specimen, and with the few
specimens of a test split little can be significant: `smallest_p` says how little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import permutation_test

from distsynth.metrics.definitions import METRICS

Results = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Method -> specimen -> key of METRICS -> value."""

EXACT = 16
"""With up to so many specimens all sign patterns are tried, with more 2^16 - 1 drawn ones."""

DECIMALS = 12
"""Means of sign patterns that agree to so many decimals of the largest difference are ties."""


@dataclass(frozen=True)
class Difference:
    """One method minus another in one metric, specimen by specimen.

    Positive means that the method's value is larger, which METRICS says whether it is better.

    Attributes:
        method: What is compared.
        reference: What it is compared with.
        metric: Key of METRICS, whose units the difference has.
        specimens: Specimen -> difference.
        mean: Over specimens; NaN if a difference is not finite.
        low: Lower end of the bootstrap interval of the mean; NaN if there is none.
        high: Upper end.
        p: The p value of the paired sign-flip test, two-sided; NaN if there is no test.
        p_corrected: After Holm's correction for all tests made together; NaN if there is no test.
        note: Why there is no test; empty if there is one.
    """

    method: str
    reference: str
    metric: str
    specimens: dict[str, float]
    mean: float
    low: float
    high: float
    p: float
    p_corrected: float
    note: str = ""


@dataclass(frozen=True)
class SeedMean:
    """Runs of one method that differ in their seed, as one.

    Attributes:
        results: Specimen -> metric -> mean over seeds; NaN where a seed has no value.
        spread: Metric -> standard deviation over seeds (n - 1) of the mean over specimens, in
            the metric's units; NaN for a single seed.
        seeds: How many runs there are.
    """

    results: dict[str, dict[str, float]]
    spread: dict[str, float]
    seeds: int


def paired_differences(
    results: Results,
    metric: str,
    reference: str | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> list[Difference]:
    """Every other method minus the reference.

    The best method is known only from the same values that test it, which favours it: its lead
    is overstated and p is too small, by an amount that Holm's correction does not cover (ours).
    A reference named beforehand has no such flaw.

    Args:
        results: Method -> specimen -> key of METRICS -> value.
        metric: What to compare.
        reference: Method to compare with; None takes the best of the metric.
        seed: The seed of the bootstrap, and of sign patterns if not all are tried.
        level: The level of the intervals.

    Returns:
        One difference for each method but the reference, in the order of the methods; p is
        corrected for as many tests as could be made.

    Raises:
        ValueError: If the metric or the reference is unknown, methods were evaluated on different
            specimens, or no method has a mean to be best by.
    """
    chosen = best_method(results, metric) if reference is None else reference
    if chosen is None:
        raise ValueError(f"no method has a mean of {metric}: name the reference")
    if chosen not in results:
        raise ValueError(f"reference must be one of {list(results)}, got {chosen}")
    pairs = [(method, chosen, metric) for method in results if method != chosen]
    return differences_between(results, pairs, seed, level)


def differences_between(
    results: Results,
    pairs: Sequence[tuple[str, str, str]],
    seed: int = 0,
    level: float = 0.95,
) -> list[Difference]:
    """The first method minus the second for each (first, second, metric).

    Args:
        results: Method -> specimen -> key of METRICS -> value.
        pairs: What to compare; all are corrected for together.
        seed: As in paired_differences.
        level: As in paired_differences.

    Raises:
        ValueError: If a method or metric is unknown, or the two were evaluated on different
            specimens.
    """
    found = [_difference(results, *pair, seed, level) for pair in pairs]
    corrected = holm([difference.p for difference in found])
    return [replace(row, p_corrected=p) for row, p in zip(found, corrected, strict=True)]


def best_method(results: Results, metric: str) -> str | None:
    """The first method with the best mean of the metric; None if no method has a mean.

    Raises:
        ValueError: If the metric is unknown.
    """
    _check_metric(metric)
    means = {method: _mean(_values(by, metric).values()) for method, by in results.items()}
    found = {method: METRICS[metric].quality(mean) for method, mean in means.items()}
    known = {method: quality for method, quality in found.items() if not math.isnan(quality)}
    return max(known, key=known.__getitem__) if known else None


def sign_flip_p(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p of a mean difference of 0, by flipping the signs of the differences.

    If neither method were better, each specimen's difference could as well have the other sign.
    p is the share of the 2^n sign patterns whose mean is at least as far from 0 as the one found:
    exact with up to 16 specimens. With more, 2^16 - 1 patterns are drawn, to which the one
    found is added, so that p is never 0.

    Args:
        differences: One a specimen, shape (n,), all finite.
        seed: The seed of drawn patterns.

    Raises:
        ValueError: If there is no difference, or one is not finite.
    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"differences must be one or more finite values in a row, got {values}")
    largest = np.abs(values).max()
    if largest == 0 or len(values) == 1:
        return 1.0
    tested = permutation_test(
        (values / largest,),
        _rounded_mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**EXACT - (len(values) > EXACT),
        # scipy calls it rng from 1.15 on, and takes the older name too.
        random_state=np.random.default_rng(seed),  # type: ignore[call-arg]
    )
    return float(tested.pvalue)


def smallest_p(specimens: int) -> float:
    """The smallest p that sign_flip_p can give, 2 / 2^n: 0.125 for four specimens.

    Raises:
        ValueError: If there is no specimen.
    """
    if specimens < 1:
        raise ValueError(f"specimens must be >= 1, got {specimens}")
    return 2.0 ** (1 - min(specimens, EXACT))


def holm(p_values: Sequence[float]) -> list[float]:
    """p corrected for testing all of them, by Holm's step-down method.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none gets below the one
    before it, nor above 1. This bounds the chance of any false finding, whatever the tests'
    dependence. NaN stands for a test that was not made: it stays NaN and does not count.

    Raises:
        ValueError: If a value is outside [0, 1].
    """
    if bad := [p for p in p_values if not (math.isnan(p) or 0 <= p <= 1)]:
        raise ValueError(f"p values must be in [0, 1], got {bad[0]}")
    made = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(made):
        least = max(least, min(1.0, p * (len(made) - rank)))
        corrected[place] = least
    return corrected


def seed_mean(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> SeedMean:
    """Average each specimen over seeds, before any statistics over specimens.

    Seeds are no specimens: more of them make a method's value on a specimen steadier, not the
    sample of specimens larger.

    Args:
        runs: Specimen -> key of METRICS -> value of each seed.

    Raises:
        ValueError: If there is no run, or runs were evaluated on different specimens.
    """
    if not runs or not runs[0]:
        raise ValueError("runs must be one or more, each with one or more specimens")
    specimens = list(runs[0])
    for run in runs:
        _check_same_specimens(("the first seed", runs[0]), ("another", run))
    present = {key for run in runs for values in run.values() for key in values}
    keys = [key for key in METRICS if key in present]
    results = {
        specimen: {
            key: _mean([float(run[specimen].get(key, math.nan)) for run in runs]) for key in keys
        }
        for specimen in specimens
    }
    means = {key: [_mean(_values(run, key).values()) for run in runs] for key in keys}
    spread = {key: _deviation(values) for key, values in means.items()}
    return SeedMean(results, spread, len(runs))


def _difference(
    results: Results, method: str, reference: str, metric: str, seed: int, level: float
) -> Difference:
    """One method minus another, not yet corrected."""
    _check_metric(metric)
    for name in (method, reference):
        if name not in results:
            raise ValueError(f"methods must be among {list(results)}, got {name}")
    _check_same_specimens((method, results[method]), (reference, results[reference]))
    own, others = _values(results[method], metric), _values(results[reference], metric)
    specimens = {name: value - others[name] for name, value in own.items()}
    wrong = [name for name, value in specimens.items() if not math.isfinite(value)]
    if wrong:
        note = f"no test: not a finite number on {', '.join(wrong)}"
        none = math.nan
        return Difference(method, reference, metric, specimens, none, none, none, none, none, note)
    values = list(specimens.values())
    low, high = bootstrap_interval(values, seed=seed, level=level)
    p = sign_flip_p(values, seed)
    return Difference(method, reference, metric, specimens, _mean(values), low, high, p, p)


def _rounded_mean(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Mean in which sums that differ by rounding errors alone are equal."""
    return np.round(np.mean(values, axis=axis), DECIMALS)


def _values(by_specimen: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, float]:
    """Specimen -> value of the metric, NaN where there is none."""
    return {name: float(row.get(metric, math.nan)) for name, row in by_specimen.items()}


def _mean(values: Any) -> float:
    """Mean; NaN of opposite infinities, without a warning."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation (n - 1); NaN where it does not exist."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return float(np.std(values, ddof=1))


def _check_metric(metric: str) -> None:
    """Raise ValueError unless the metric is known."""
    if metric not in METRICS:
        raise ValueError(f"metric must be a key of METRICS, got {metric}")


def _check_same_specimens(
    first: tuple[str, Mapping[str, Any]], other: tuple[str, Mapping[str, Any]]
) -> None:
    """Raise ValueError unless both (name, specimens) hold the same specimens, one or more."""
    if not first[1] or set(first[1]) != set(other[1]):
        raise ValueError(
            f"the same specimens must be evaluated, one or more: {first[0]} on {sorted(first[1])}, "
            f"{other[0]} on {sorted(other[1])}"
        )


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, resamples: int = 10000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over specimens.

    With few specimens (the paper tests on 4) it is too narrow: read it as a lower bound of the
    uncertainty.

    Args:
        values: One value a specimen, shape (n,).
        seed: The seed of the resampling; the same seed gives the same interval.
        resamples: Number of resampled means.
        level: Share of them inside the interval, in (0, 1).

    Returns:
        (low, high); two NaN for a single specimen or if a value is not finite.

    Raises:
        ValueError: If there is no value, or level or resamples is out of range.
    """
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"values must be one or more in a row, got shape {sample.shape}")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must be in (0, 1) and resamples >= 1, got {level}, {resamples}")
    if len(sample) == 1 or not np.isfinite(sample).all():
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    low, high = np.quantile(sample[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
