"""Measures against known truth; every rule flags what it names and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import normalized_mutual_information

from sharding.registration.quality import (
    LEAST_COHORT,
    PairQuality,
    SpecimenQuality,
    flag_outliers,
    noise_estimate,
    pair_quality,
    rules_in_words,
)
from sharding.simulation.phantom import phantom_volume
from sharding.volumes.masks import otsu_foreground

SHAPE = (40, 36, 32)
GOOD = PairQuality(mutual_information=0.8, correlation=0.7, overlap=0.95)
ROW = SpecimenQuality("a", GOOD, GOOD, 0.8, 1.2, 0.99, 0.4, 0.02, 0.01)


@pytest.fixture(scope="module")
def target():
    return phantom_volume(SHAPE, seed=1).data.clip(0, 1000)


def test_a_volume_shares_everything_with_itself(target):
    mask = otsu_foreground(target)
    found = pair_quality(target, target, mask)
    share, _ = np.histogram(target[mask], bins=64, range=(0, 1000))
    share = share[share > 0] / share.sum()
    assert found.mutual_information == pytest.approx(-(share * np.log(share)).sum(), rel=1e-6)
    assert found.correlation == pytest.approx(1)
    assert found.overlap == 1


def test_mutual_information_agrees_with_another_implementation(target):
    target = target.copy()
    source = np.clip(1000 - 0.7 * np.roll(target, 1, 0), 0, 1000)
    mask = np.ones(SHAPE, bool)
    # (H(x) + H(y)) / H(x, y), whose bins lie alike as both volumes hold both ends.
    source.flat[:2] = target.flat[:2] = (0, 1000)
    normalised = normalized_mutual_information(source, target, bins=64)
    joint, _, _ = np.histogram2d(source.ravel(), target.ravel(), bins=64)
    joint = joint[joint > 0] / joint.sum()
    entropy = -(joint * np.log(joint)).sum()
    found = pair_quality(source, target, mask)
    assert found.mutual_information == pytest.approx((normalised - 1) * entropy, rel=1e-3)
    expected = np.corrcoef(source.ravel(), target.ravel())[0, 1]
    assert found.correlation == pytest.approx(expected, abs=1e-4)


def test_independent_volumes_share_nothing():
    rng = np.random.default_rng(0)
    one, other = rng.uniform(0, 1000, (2, 64, 64, 64)).astype(np.float32)
    found = pair_quality(one, other, np.ones(one.shape, bool))
    assert found.mutual_information == pytest.approx(0, abs=0.02)
    assert found.correlation == pytest.approx(0, abs=0.01)


def test_misalignment_lowers_every_measure_whatever_the_contrast(target):
    mask = otsu_foreground(target)
    for source in (target, np.where(target > 20, 1000 - 0.8 * target, 0).astype(np.float32)):
        found = [
            pair_quality(np.roll(source, shift, axis=1), target, mask) for shift in (0, 1, 2, 4)
        ]
        assert sorted((row.mutual_information for row in found), reverse=True) == [
            row.mutual_information for row in found
        ]
        assert sorted((abs(row.correlation) for row in found[:3]), reverse=True) == [
            abs(row.correlation) for row in found[:3]
        ]
        assert found[0].overlap > found[2].overlap > found[3].overlap


def test_only_the_field_of_view_counts_for_the_overlap(target):
    inside = np.zeros(SHAPE, bool)
    inside[:20] = True
    source = np.where(inside, target, 0)
    everywhere = pair_quality(source, target, otsu_foreground(target) & inside)
    within = pair_quality(source, target, otsu_foreground(target) & inside, inside)
    assert everywhere.overlap < 0.75
    assert within.overlap > 0.98
    assert within.correlation == everywhere.correlation


def test_nothing_in_common_is_zero(target):
    nothing = pair_quality(target, target, np.zeros(SHAPE, bool))
    assert nothing == PairQuality(0, 0, 0)
    constant = pair_quality(np.zeros(SHAPE, np.float32), target, np.ones(SHAPE, bool))
    assert constant.mutual_information == pytest.approx(0, abs=1e-12)
    assert (constant.correlation, constant.overlap) == (0, 0)


def test_shapes_must_agree(target):
    with pytest.raises(ValueError, match="must share one shape"):
        pair_quality(target, target[:-1], np.ones(SHAPE, bool))


@pytest.mark.parametrize("sigma", [10, 30, 60])
def test_foreground_is_found_through_noise(target, sigma):
    truth = otsu_foreground(target)
    rng = np.random.default_rng(0)
    normal = rng.normal(0, sigma, (2, *SHAPE))
    noisy = np.sqrt((target + normal[0]) ** 2 + normal[1] ** 2).clip(0, 1000)
    found = otsu_foreground(noisy.astype(np.float32))
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.97


def test_foreground_of_a_specimen_on_zeros_is_not_thickened():
    truth = np.zeros(SHAPE, bool)
    truth[8:30, 8:30, 8:26] = True
    found = otsu_foreground(np.where(truth, 600, 0).astype(np.float32))
    assert (found & truth).sum() == truth.sum()
    assert (found & ~ndimage.binary_dilation(truth)).sum() == 0


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.03, 0.1])
def test_noise_is_estimated_on_a_smooth_object(sigma):
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij"))
    smooth = 700 * np.exp(-(grid**2).sum(0)) * ((grid**2).sum(0) < 0.8)
    noise = np.random.default_rng(0).normal(0, 1000 * sigma, smooth.shape)
    scaled = np.clip(smooth + np.where(smooth > 0, noise, 0), 0, 1000).astype(np.float32)
    assert noise_estimate(scaled) == pytest.approx(sigma, rel=0.1, abs=0.001)


def test_noise_of_an_empty_volume_is_none():
    assert noise_estimate(np.zeros(SHAPE, np.float32)) == 0


def test_blurring_lowers_the_noise(target):
    noisy = target + np.random.default_rng(0).normal(0, 30, SHAPE).astype(np.float32)
    assert noise_estimate(noisy) > 2 * noise_estimate(ndimage.gaussian_filter(noisy, 1))


# Flags


def test_a_good_specimen_is_not_flagged():
    assert flag_outliers([ROW]) == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"after": replace(GOOD, mutual_information=0.7)}, "mutual information fell from 0.800"),
        ({"after": replace(GOOD, correlation=0.6)}, "correlation fell from 0.700 to 0.600"),
        ({"after": replace(GOOD, overlap=0.5)}, "overlap of the foregrounds 0.50 is below"),
        ({"coverage": 0.4}, "covers 40% of the foreground"),
        ({"jacobian_min": 0.1}, "determinant 0.10 to 1.20 leaves"),
        ({"jacobian_max": 9.0}, "determinant 0.80 to 9.00 leaves"),
        ({"foreground": 0.001}, "the foreground is 0.1% of the volume"),
        ({"noise_source": 0.3}, "noise of the source is 30% of its range"),
        ({"noise_target": 0.3}, "noise of the target is 30% of its range"),
    ],
)
def test_each_fixed_rule_names_its_reason(change, reason):
    flags = flag_outliers([replace(ROW, **change), replace(ROW, name="b")])
    assert list(flags) == ["a"]
    assert len(flags["a"]) == 1
    assert reason in flags["a"][0]


def test_a_correlation_may_turn_negative_if_it_does_not_shrink():
    opposed = replace(ROW, before=replace(GOOD, correlation=0.3))
    opposed = replace(opposed, after=replace(GOOD, correlation=-0.6))
    assert flag_outliers([opposed]) == {}


def test_what_is_unusual_in_a_cohort_is_flagged():
    noise = [0.02, 0.021, 0.019, 0.0205, 0.0195, 0.08]
    rows = [replace(ROW, name=f"s{i}", noise_source=value) for i, value in enumerate(noise)]
    flags = flag_outliers(rows)
    assert list(flags) == ["s5"]
    assert flags["s5"] == [
        "noise of the source 0.08 is unusual: the cohort's median is 0.0203, "
        "53.7 robust standard deviations away"
    ]
    assert flag_outliers(rows[-LEAST_COHORT + 1 :]) == {}, "too few to tell what is usual"


def test_equal_specimens_have_no_outliers_and_rounding_makes_none():
    rows = [replace(ROW, name=str(i), coverage=1.0) for i in range(8)]
    assert flag_outliers(rows) == {}
    assert flag_outliers([*rows[1:], replace(ROW, coverage=0.99)]) == {}
    assert list(flag_outliers([*rows[1:], replace(ROW, coverage=0.8)])) == ["a"]


def test_the_rules_are_told_with_their_limits():
    rules = rules_in_words()
    assert all(isinstance(rule, str) for rule in rules)
    text = " ".join(rules)
    for limit in ("2%", "0.7", "75%", "0.3 to 3.0", "15%", "3.5"):
        assert limit in text
