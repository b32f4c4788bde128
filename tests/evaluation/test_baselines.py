"""Baselines recover what they can express, from training pairs alone, in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from distsynth.evaluation.baselines import (
    Cubic,
    Identity,
    IntensityMap,
    NeighbourhoodRegression,
    fitted_baselines,
)
from sharding.volumes.slabs import Empty, in_memory


@dataclass
class Pair:
    source: NDArray[np.float32]
    target: NDArray[np.float32]
    mask: NDArray[np.bool_]
    empty: Empty = in_memory

    @property
    def nearest(self) -> NDArray[np.float32]:
        return np.round(self.source)

    @property
    def network_source(self) -> NDArray[np.float32]:
        return self.source


def make_pair(seed, kernel=None, curve=None, shape=(20, 18, 16), masked=True) -> Pair:
    """White noise, and what a kernel or a curve makes of it."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=shape).astype(np.float32)
    target = source
    if kernel is not None:
        target = ndimage.correlate(source, kernel, mode="nearest") + 0.5
    if curve is not None:
        target = curve(source).astype(np.float32)
    mask = np.ones(shape, bool)
    if masked:
        mask[:3] = False
    return Pair(source, target, mask)


@pytest.fixture
def kernel():
    return np.random.default_rng(1).normal(size=(5, 5, 5))


def test_identity_and_cubic_pass_the_source_through():
    pair = make_pair(0)
    np.testing.assert_array_equal(Identity().predict(pair), pair.nearest)
    np.testing.assert_array_equal(Cubic().predict(pair), pair.source)


@pytest.mark.parametrize("hinges", [(), (-1.0, 0.0, 1.0)])
def test_regression_recovers_a_kernel(kernel, hinges):
    training = [make_pair(seed, kernel) for seed in range(3)]
    fitted = NeighbourhoodRegression(hinges=hinges).fit(training)
    np.testing.assert_allclose(fitted._weights[:125].reshape(5, 5, 5), kernel, atol=1e-3)
    assert fitted._weights[-1] == pytest.approx(0.5, abs=1e-3)
    test = make_pair(9, kernel)
    np.testing.assert_allclose(fitted.predict(test), test.target, atol=2e-3)
    assert fitted.predict(test).dtype == np.float32


def test_hinges_let_the_contrast_bend():
    def bend(source):
        return np.abs(source - 0.5)

    training, test = [make_pair(0, curve=bend)], make_pair(1, curve=bend)
    with_hinges = NeighbourhoodRegression().fit(training).predict(test)
    plain = NeighbourhoodRegression(hinges=()).fit(training).predict(test)
    np.testing.assert_allclose(with_hinges, test.target, atol=0.05)
    assert np.mean((plain - test.target) ** 2) > 0.1


def test_regression_draws_the_same_voxels_again(kernel):
    training = [make_pair(seed, kernel) for seed in range(2)]
    fits = [
        NeighbourhoodRegression(voxels=300, seed=seed).fit(training)._weights for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(fits[0], fits[1])
    assert not np.array_equal(fits[0], fits[2])


def test_intensity_map_recovers_a_monotone_curve():
    training = [make_pair(seed, curve=np.tanh) for seed in range(4)]
    fitted = IntensityMap().fit(training)
    test = make_pair(9, curve=np.tanh)
    middle = np.abs(test.source) < 2.3
    np.testing.assert_allclose(fitted.predict(test)[middle], test.target[middle], atol=0.01)
    assert np.abs(fitted.predict(test) - test.target).max() < 0.05
    knots = fitted._knots
    assert 200 < knots.shape[1] <= 256
    assert (np.diff(knots) > 0).all()


def test_intensity_map_survives_few_and_far_voxels():
    pair = make_pair(0, shape=(2, 2, 2), masked=False)
    pair.source[...] = 100
    pair.target[...] = 3
    np.testing.assert_allclose(IntensityMap().fit([pair]).predict(pair), 3)


def background_pair(seed) -> Pair:
    """Inverted contrast in tissue; background constant, below all tissue in both volumes."""
    pair = make_pair(seed, curve=lambda source: 1 - source)
    pair.source[...] = np.where(pair.mask, pair.source + 1, -2.5)
    pair.target[...] = np.where(pair.mask, pair.target, -1)
    return pair


@pytest.mark.parametrize("baseline", [IntensityMap, NeighbourhoodRegression])
def test_constant_background_is_learnt_and_tissue_little_disturbed(baseline):
    test = background_pair(9)
    out = baseline().fit([background_pair(seed) for seed in range(3)]).predict(test)
    inner = ndimage.binary_erosion(test.mask, iterations=2, border_value=1)
    outer = ~ndimage.binary_dilation(test.mask, iterations=2)
    assert np.mean((out - test.target)[inner] ** 2) < 0.05
    assert np.abs((out - test.target)[outer]).max() < 0.7


def test_background_counts_far_less_than_tissue():
    tissue, both = make_pair(0), make_pair(0)
    both.target[~both.mask] = 50
    for baseline in (IntensityMap, NeighbourhoodRegression):
        out = baseline().fit([both]).predict(tissue)
        assert np.abs((out - tissue.source)[tissue.mask]).mean() < 2


def test_all_are_fitted_in_one_pass_over_training_pairs_alone(kernel):
    alive: list[int] = []

    def stream() -> Iterator[Pair]:
        for seed in range(3):
            alive.append(seed)
            yield make_pair(seed, kernel)

    fitted = fitted_baselines(stream())
    assert alive == [0, 1, 2]
    assert [baseline.name for baseline in fitted] == ["intensity-map", "neighbourhood-regression"]
    singles = [IntensityMap().fit(stream()), NeighbourhoodRegression().fit(stream())]
    test = make_pair(9, kernel)
    before = [baseline.predict(test) for baseline in fitted]
    for single, expected in zip(singles, before, strict=True):
        np.testing.assert_array_equal(single.predict(test), expected)
    # neither the target nor the mask of the predicted pair has any say
    blind = Pair(test.source, np.full_like(test.target, np.nan), np.zeros_like(test.mask))
    for baseline, expected in zip(fitted, before, strict=True):
        np.testing.assert_array_equal(baseline.predict(blind), expected)


@pytest.mark.parametrize("baseline", [IntensityMap, NeighbourhoodRegression])
def test_bad_input_raises(baseline):
    pair = make_pair(0)
    with pytest.raises(ValueError, match="no training pairs"):
        baseline().predict(pair)
    with pytest.raises(ValueError, match="no training pairs"):
        baseline().fit([])
    with pytest.raises(ValueError, match="empty"):
        baseline().fit([Pair(pair.source, pair.target, np.zeros_like(pair.mask))])
    with pytest.raises(ValueError, match="one shape"):
        baseline().fit([Pair(pair.source, pair.target[1:], pair.mask)])
