"""The risk-coverage curve: what its area is for rankings that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distsynth.metrics.risk_coverage import POINTS, risk_coverage

SHAPE = (12, 11, 10)


@pytest.fixture
def error():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def mask():
    inside = np.zeros(SHAPE, bool)
    inside[2:9, 1:8, 3:9] = True
    return inside


def test_by_hand():
    error = np.array([3.0, -1.0, 2.0, 4.0], np.float32).reshape(4, 1, 1)
    uncertainty = np.array([0.1, 0.2, 0.3, 0.4], np.float32).reshape(4, 1, 1)
    found = risk_coverage(error, uncertainty, np.ones((4, 1, 1), bool))
    assert found.area == pytest.approx(np.mean([3, 2, 2, 2.5]))
    assert found.oracle_area == pytest.approx(np.mean([1, 1.5, 2, 2.5]))
    assert found.random_area == pytest.approx(2.5)
    assert found.metrics["aurc_relative"] == pytest.approx((2.375 - 1.75) / (2.5 - 1.75))
    places = [round(share * (POINTS - 1)) for share in (0, 0.25, 0.26, 0.5, 0.75, 1)]
    assert found.risk[places].tolist() == [3, 3, 2, 2, 2, 2.5]
    assert found.oracle[places].tolist() == [1, 1, 1.5, 1.5, 2, 2.5]


def test_the_true_error_is_the_oracle(error, mask):
    found = risk_coverage(error, np.abs(error) * 7 + 3, mask)
    assert found.area == pytest.approx(found.oracle_area)
    assert found.metrics["aurc_relative"] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(found.risk, found.oracle)
    assert (np.diff(found.risk) >= 0).all()


def test_a_ranking_by_chance_has_the_mean_error(error, mask):
    drawn = [
        risk_coverage(error, np.random.default_rng(seed).random(SHAPE, np.float32), mask).area
        for seed in range(40)
    ]
    found = risk_coverage(error, np.abs(error), mask)
    assert found.random_area == pytest.approx(np.abs(error[mask]).mean())
    assert np.mean(drawn) == pytest.approx(found.random_area, rel=0.02)


def test_an_uncertainty_that_tells_nothing_is_chance_whatever_the_order(error, mask):
    constant = risk_coverage(error, np.zeros(SHAPE, np.float32), mask)
    assert constant.area == pytest.approx(constant.random_area)
    assert constant.metrics["aurc_relative"] == pytest.approx(1)
    two = (np.random.default_rng(1).random(SHAPE) > 0.5).astype(np.float32)
    one = risk_coverage(error, two, mask)
    turned = risk_coverage(error[::-1], two[::-1], mask[::-1])
    assert one.area == pytest.approx(turned.area)


def test_a_ranking_upside_down_is_worse_than_chance(error, mask):
    assert risk_coverage(error, -np.abs(error), mask).metrics["aurc_relative"] > 1


def test_voxels_outside_of_the_mask_do_not_count(error, mask):
    uncertainty = np.abs(error)
    spoiled = np.where(mask, error, 1000).astype(np.float32)
    assert risk_coverage(spoiled, uncertainty, mask).area == (
        risk_coverage(error, uncertainty, mask).area
    )
    with pytest.raises(ValueError, match="at least one voxel"):
        risk_coverage(error, uncertainty, np.zeros(SHAPE, bool))


def test_equal_errors_leave_nothing_to_rank(mask):
    found = risk_coverage(np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32), mask)
    assert math.isnan(found.metrics["aurc_relative"])
