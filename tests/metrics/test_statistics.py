"""Tests of differences: hand-computed p values, and what must hold for any values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsynth.metrics import statistics
from distsynth.metrics.statistics import (
    best_method,
    bootstrap_interval,
    differences_between,
    holm,
    paired_differences,
    seed_mean,
    sign_flip_p,
    smallest_p,
)

VALUES = st.floats(-50, 50).map(lambda value: round(value, 6))
P_VALUES = st.lists(st.floats(0, 1) | st.just(math.nan), max_size=12)


def results_of(**methods):
    """Method -> specimen -> psnr_mask, from a list of values each."""
    return {
        name: {f"s{number}": {"psnr_mask": value} for number, value in enumerate(values)}
        for name, values in methods.items()
    }


# Of the 16 sums of ±1 ±2 ±3 ±4, two each are ±10, ±8 and ±6, four each ±4 and ±2, two are 0.
@pytest.mark.parametrize(
    ("values", "p"),
    [
        ([1, 2, 3, 4], 2 / 16),
        ([-1, 2, 3, 4], 4 / 16),
        ([1, -2, 3, 4], 6 / 16),
        ([1, 2, -3, 4], 10 / 16),
        ([1, 2, 3, -4], 14 / 16),
        ([1, -2, -3, 4], 1.0),
        ([0, 0, 0], 1.0),
        ([0, 0, 5], 1.0),
        ([7], 1.0),
    ],
)
def test_sign_flip_by_hand(values, p):
    assert sign_flip_p(values) == pytest.approx(p)
    assert sign_flip_p([-value for value in values]) == pytest.approx(p)


def test_ties_survive_rounding():
    # 0.1 + 0.2 - 0.3 is 5.6e-17, yet stands for 0.
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1
    assert sign_flip_p([1e-9, 2e-9, 3e-9, -4e-9]) == pytest.approx(14 / 16)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-30, 30), min_size=1, max_size=8))
def test_sign_flip_equals_counting(values):
    sums = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in patterns(values)]
    share = np.mean([abs(total) >= abs(sum(values)) for total in sums])
    assert sign_flip_p(values) == pytest.approx(share)
    assert sign_flip_p(values) >= smallest_p(len(values))


def patterns(values):
    """All sign patterns."""
    return itertools.product((-1, 1), repeat=len(values))


def test_sampled_patterns_are_fixed_by_the_seed_and_never_zero():
    values = np.random.default_rng(3).normal(0.4, 1, 20)
    p = sign_flip_p(values)
    assert p == sign_flip_p(values)
    assert p == sign_flip_p(-values)
    assert p != sign_flip_p(values, seed=1)
    assert p == pytest.approx(sign_flip_p(values, seed=1), rel=0.2)
    assert sign_flip_p(np.ones(40)) == smallest_p(40) == 2 / 2**16


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]]])
def test_sign_flip_refuses(values):
    with pytest.raises(ValueError, match="finite values in a row"):
        sign_flip_p(values)


def test_smallest_p_of_few_specimens():
    assert [smallest_p(n) for n in (1, 2, 4, 5, 6)] == [1, 0.5, 0.125, 0.0625, 0.03125]
    with pytest.raises(ValueError, match=">= 1"):
        smallest_p(0)


def test_holm_by_hand():
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, which must not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_holm_counts_only_tests_that_were_made():
    corrected = holm([0.01, math.nan, 0.04])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)


@given(P_VALUES)
def test_holm_never_lowers_p_and_keeps_its_order(p_values):
    corrected = holm(p_values)
    assert [math.isnan(p) for p in corrected] == [math.isnan(p) for p in p_values]
    made = sorted((p, q) for p, q in zip(p_values, corrected, strict=True) if not math.isnan(p))
    assert all(p <= q <= 1 for p, q in made)
    assert [q for _, q in made] == sorted(q for _, q in made)


def test_holm_refuses_what_is_no_p():
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5"):
        holm([0.1, 1.5])


def test_differences_to_the_best_in_either_direction():
    results = results_of(a=[1.0, 2.0, 3.0], b=[2.0, 4.0, 6.0], c=[1.0, 1.0, 1.0])
    found = paired_differences(results, "psnr_mask")
    assert [(row.method, row.reference) for row in found] == [("a", "b"), ("c", "b")]
    assert found[0].specimens == {"s0": -1.0, "s1": -2.0, "s2": -3.0}
    assert found[0].mean == -2
    assert (found[0].low, found[0].high) == bootstrap_interval([-1, -2, -3])
    assert found[0].p == 0.25
    assert found[0].p_corrected == 0.5
    errors = {
        name: {s: {"mse_mask": row["psnr_mask"]} for s, row in by.items()}
        for name, by in results.items()
    }
    assert best_method(errors, "mse_mask") == "c"


def test_a_named_reference_seed_and_level():
    results = results_of(a=[1.0, 2.0, 4.0], b=[2.0, 4.0, 7.0])
    (found,) = paired_differences(results, "psnr_mask", "a", seed=5, level=0.5)
    assert (found.method, found.mean) == ("b", 2)
    assert (found.low, found.high) == bootstrap_interval([1, 2, 3], seed=5, level=0.5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=8))
def test_differences_are_antisymmetric_and_intervals_hold_the_mean(pairs):
    first, second = zip(*pairs, strict=True)
    results = results_of(a=first, b=second)
    one, other = differences_between(results, [("a", "b", "psnr_mask"), ("b", "a", "psnr_mask")])
    assert one.specimens == {name: -value for name, value in other.specimens.items()}
    assert one.mean == -other.mean
    assert (one.p, one.p_corrected) == (other.p, other.p_corrected)
    assert one.p <= one.p_corrected <= 1
    slack = 1e-9
    assert one.low - slack <= one.mean <= one.high + slack
    # Bootstrap quantiles of the mirrored sample: the same draws, mirrored.
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=slack)


def test_one_specimen_has_a_difference_and_no_interval():
    (found,) = paired_differences(results_of(a=[1.0], b=[3.0]), "psnr_mask")
    assert (found.mean, found.p) == (-2, 1)
    assert math.isnan(found.low)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_test_and_does_not_count(bad):
    results = results_of(a=[1.0, 2.0], b=[3.0, bad], c=[0.0, 1.0])
    by_name = {row.method: row for row in paired_differences(results, "psnr_mask", "a")}
    assert by_name["b"].note == "no test: not a finite number on s1"
    assert all(
        math.isnan(value)
        for value in (by_name["b"].mean, by_name["b"].low, by_name["b"].p, by_name["b"].p_corrected)
    )
    assert by_name["c"].p == by_name["c"].p_corrected == 0.5
    assert by_name["c"].note == ""


def test_a_method_without_mean_is_never_best():
    results = results_of(a=[9.0, math.nan], b=[1.0, 2.0])
    assert best_method(results, "psnr_mask") == "b"
    assert best_method(results_of(a=[math.nan]), "psnr_mask") is None
    assert best_method(results_of(a=[math.inf, -math.inf]), "psnr_mask") is None
    assert best_method(results_of(a=[1.0], b=[1.0]), "psnr_mask") == "a"
    with pytest.raises(ValueError, match="no method has a mean of seam_index"):
        paired_differences(results, "seam_index")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("a", "b", "psrn"), "key of METRICS, got psrn"),
        (("a", "x", "psnr_mask"), r"among \['a', 'b', 'c'\], got x"),
        (("a", "c", "psnr_mask"), "a on .*s0.*s1.*, c on .*s0"),
    ],
)
def test_refuses(pair, message):
    results = results_of(a=[1.0, 2.0], b=[1.0, 2.0], c=[1.0])
    with pytest.raises(ValueError, match=message):
        differences_between(results, [pair])


def test_refuses_an_unknown_reference():
    with pytest.raises(ValueError, match="reference must be one of"):
        paired_differences(results_of(a=[1.0]), "psnr_mask", "b")


def test_seeds_are_averaged_by_specimen():
    runs = results_of(one=[1.0, 2.0], two=[3.0, 6.0], three=[5.0, 10.0])
    averaged = seed_mean(list(runs.values()))
    assert averaged.results == {"s0": {"psnr_mask": 3.0}, "s1": {"psnr_mask": 6.0}}
    # Means over specimens 1.5, 4.5 and 7.5.
    assert averaged.spread == {"psnr_mask": pytest.approx(3.0)}
    assert averaged.seeds == 3


def test_one_seed_has_no_spread_and_a_missing_value_no_mean():
    (run,) = results_of(one=[1.0, 2.0]).values()
    alone = seed_mean([run])
    assert alone.results == run
    assert math.isnan(alone.spread["psnr_mask"])
    both = seed_mean([run, {"s0": {}, "s1": {"psnr_mask": 4.0}}])
    assert math.isnan(both.results["s0"]["psnr_mask"])
    assert both.results["s1"]["psnr_mask"] == 3
    assert math.isnan(both.spread["psnr_mask"])


def test_seeds_must_be_judged_on_the_same_specimens():
    with pytest.raises(ValueError, match="one or more"):
        seed_mean([])
    with pytest.raises(ValueError, match="same specimens"):
        seed_mean([{"s0": {}}, {"s1": {}}])


def test_bootstrap_is_reproducible_and_contains_the_mean(rng):
    values = rng.normal(3, 1, 12)
    low, high = statistics.bootstrap_interval(values)
    assert low < values.mean() < high
    assert statistics.bootstrap_interval(values) == (low, high)
    assert statistics.bootstrap_interval(values, seed=1) != (low, high)
    # the normal interval, mean +- 1.96 s / sqrt(n), is about as wide
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(12), rel=0.1)
    assert statistics.bootstrap_interval([2.0, 2.0]) == (2, 2)
    assert np.isnan(statistics.bootstrap_interval([1.0])).all()
    assert np.isnan(statistics.bootstrap_interval([1.0, math.inf, 2.0])).all()
    with pytest.raises(ValueError, match="one or more"):
        statistics.bootstrap_interval([])
    with pytest.raises(ValueError, match="level"):
        statistics.bootstrap_interval([1.0, 2.0], level=95)
