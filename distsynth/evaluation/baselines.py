"""Baselines: predictions without a network, which any network must beat.

A baseline has a `name` and `predict(pair)`; those that are fitted also have `fit(pairs)`, which
reads training pairs one at a time and keeps only sums, so that memory does not grow with the
cohort. `predict` looks at the source alone, never at the target or the mask. Of several contrasts
the regression sees all, as a network and most forests do; the others see the first one.

Background: the aim is the lowest error in the mask, yet values outside should be sane too. So
background counts, but all of it only a fiftieth as much as the mask of the same specimen, however
large it is (BACKGROUND_WEIGHT, ours). Skull-stripped background is one source intensity that
hardly any tissue has: a fiftieth is plenty to learn its target. Where background and tissue
share intensities, tissue wins. Tried on skull-stripped pairs simulated from 3T scans: at its real
share, background doubled the MSE in the mask where contrast was inverted; without any, the MSE
outside grew up to eightfold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distsynth.evaluation.ranked_voxels import Voxels, count_voxels, voxels_of_ranks
from distsynth.metrics.views import Outside
from sharding.volumes import slabs as slab_sizes
from sharding.volumes.slabs import Empty, by_slabs, slabs
from sharding.volumes.tiles import tiles

BACKGROUND_WEIGHT = 0.02
"""Weight of all background voxels of a specimen relative to all its mask voxels."""

HINGES = tuple(np.arange(-1, 4.5, 0.5).tolist())
"""Source intensities, in standardised units, at which the regression's curve may bend."""

Array = NDArray[np.floating[Any]]


class PairLike(Protocol):
    """A registered, standardised pair: arrays of one shape (x, y, z) on the target's grid."""

    @property
    def source(self) -> Array:
        """Source, cubic interpolation; of several contrasts the first one."""
        ...

    @property
    def network_source(self) -> Array:
        """The same of all contrasts: shape (x, y, z), or (contrasts, x, y, z) if there are some."""
        ...

    @property
    def nearest(self) -> Array:
        """Source, nearest neighbour: its own voxels unchanged."""
        ...

    @property
    def target(self) -> Array:
        """Target."""
        ...

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Foreground."""
        ...

    @property
    def empty(self) -> Empty:
        """Makes arrays as large as a volume."""
        ...


class Baseline(Protocol):
    """Predicts a target volume from a pair's source."""

    name: str

    def predict(self, pair: PairLike) -> NDArray[np.float32]:
        """Synthetic volume of the pair's shape, standardised."""
        ...


class Identity:
    """The source's own voxels, unchanged."""

    name = "identity"

    def predict(self, pair: PairLike) -> NDArray[np.float32]:
        """The source by nearest neighbour."""
        return pair.nearest.astype(np.float32, copy=False)


class Cubic:
    """The source, interpolated: what a network is given."""

    name = "cubic"

    def predict(self, pair: PairLike) -> NDArray[np.float32]:
        """The source by cubic interpolation."""
        return pair.source.astype(np.float32, copy=False)


class Fitted(ABC):
    """A baseline that learns from training pairs: `update` with each of them, then `finish`."""

    name: str

    @abstractmethod
    def update(self, pair: PairLike) -> None:
        """Add a training pair; raises ValueError if its mask is empty or its shapes differ."""

    @abstractmethod
    def finish(self) -> Self:
        """Solve for what has been added; raises ValueError if nothing was."""

    @abstractmethod
    def predict(self, pair: PairLike) -> NDArray[np.float32]:
        """Synthetic volume of the pair's shape, standardised; raises ValueError if not fitted."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything but the pairs that a fit depends on, as JSON values."""

    @abstractmethod
    def state(self) -> dict[str, NDArray[np.float64]]:
        """What has been fitted, for `restore`; raises ValueError if nothing was."""

    @abstractmethod
    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over a fit of the same settings; raises ValueError or KeyError if it is none."""

    def fit(self, pairs: Iterable[PairLike]) -> Self:
        """Fit on training pairs, read once and one at a time."""
        for pair in pairs:
            self.update(pair)
        return self.finish()

    def _check(self, ready: bool) -> None:
        """Raise ValueError if there has been no training pair."""
        if not ready:
            raise ValueError(f"{self.name} has seen no training pairs: call fit with some first")


def new_baselines(contrasts: int = 1) -> list[Fitted]:
    """All baselines that are fitted, before they are, for sources of so many contrasts."""
    return [IntensityMap(), NeighbourhoodRegression(contrasts=contrasts)]


def fitted_baselines(training_pairs: Iterable[PairLike], contrasts: int = 1) -> list[Fitted]:
    """All fitted baselines from one pass over the training pairs, one pair in memory at a time."""
    baselines = new_baselines(contrasts)
    for pair in training_pairs:
        for baseline in baselines:
            baseline.update(pair)
    return [baseline.finish() for baseline in baselines]


class IntensityMap(Fitted):
    """One curve from source to target intensity: the best change of contrast alone.

    The mean target in each of up to 256 bins of the source, equal in weight, joined by straight
    lines and constant beyond the outermost bins. Bins are merged from a fixed fine grid of
    source intensities, so that one pass over the training pairs is enough; intensities beyond
    the grid count in its end cells.
    """

    name = "intensity-map"
    bins = 256
    grid = (-8.0, 24.0, 8192)
    """Low, high (standardised units) and number of cells: 256 cells a unit."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, self.grid[2]))
        self._knots = np.empty((2, 0))

    def update(self, pair: PairLike) -> None:
        """Count the voxels of one training pair, all of them."""
        all_source, all_target = _checked(pair)
        low, high, cells = self.grid
        inside = np.count_nonzero(pair.mask)
        share = BACKGROUND_WEIGHT * inside / max(pair.mask.size - inside, 1)
        for region, weight in ((pair.mask, 1.0), (Outside(pair.mask), share)):
            for slab in slabs(pair.mask.shape):
                where = region[slab]
                source, target = all_source[slab][where], all_target[slab][where]
                cell = ((source - low) * (cells / (high - low))).clip(0, cells - 1)
                cell = cell.astype(np.int32)
                for row, values in zip(self._sums, (None, source, target), strict=True):
                    row += weight * np.bincount(cell, values, cells)

    def finish(self) -> Self:
        """Merge cells into bins of at least 1/256 of the weight, and join their means."""
        weight = self._sums[0].sum()
        self._check(weight > 0)
        gathered = np.zeros(3)
        merged = [gathered]
        for cell in self._sums.T:
            if gathered[0] * self.bins >= weight:
                gathered = np.zeros(3)
                merged.append(gathered)
            gathered += cell
        if len(merged) > 1 and gathered[0] * self.bins < weight:
            merged.pop()
            merged[-1] += gathered
        counts, sources, targets = np.array(merged).T
        self._knots = np.array([sources / counts, targets / counts])
        return self

    def settings(self) -> dict[str, Any]:
        """Bins, grid and the weight of background."""
        return {"bins": self.bins, "grid": self.grid, "background": BACKGROUND_WEIGHT}

    def state(self) -> dict[str, NDArray[np.float64]]:
        """The knots of the curve: source and target."""
        self._check(self._knots.size > 0)
        return {"knots": self._knots}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over the knots."""
        knots = _finite("knots", state["knots"])
        rising = knots.ndim == 2 and len(knots) == 2 and bool((np.diff(knots[0]) > 0).all())
        if not rising or not knots.size:
            raise ValueError(f"knots must be a curve, got an array of the shape {knots.shape}")
        self._knots = knots

    def predict(self, pair: PairLike) -> NDArray[np.float32]:
        """The curve applied to every source voxel."""
        self._check(self._knots.size > 0)
        source, target = self._knots
        return by_slabs(lambda slab: np.interp(slab, source, target), pair.source, pair.empty)


class NeighbourhoodRegression(Fitted):
    """Linear regression on the 5x5x5 source voxels around each voxel, plus a curve of its own.

    target = b + sum of w_k source_k over the neighbourhood + sum of a_j max(source_0 - t_j, 0),
    where source_0 is the central voxel and the hinges t_j (HINGES, ours) let the contrast bend:
    without them one slope has to serve tissue and background. Least squares by normal equations
    in float64, with a ridge of 1e-6 times the mean variance of the features: the upsampled source
    is smooth and its neighbours nearly collinear. The intercept is free of it. Specimens count by
    the voxels drawn of them. Several contrasts have weights and hinges each, and one intercept.

    Args:
        voxels: Most voxels used of each specimen's mask, drawn at random; a tenth as many of its
            background.
        hinges: Positions t_j in standardised units; () for the plain linear filter.
        seed: The seed of the draws; together with the order of pairs it fixes the fit.
        contrasts: Of a source.
    """

    name = "neighbourhood-regression"
    reach = 2
    ridge = 1e-6

    def __init__(
        self,
        voxels: int = 200_000,
        hinges: Sequence[float] = HINGES,
        seed: int = 0,
        contrasts: int = 1,
    ) -> None:
        self.voxels = voxels
        self.hinges = np.array(hinges, np.float64)
        self.seed = seed
        side = 2 * self.reach + 1
        self._taps = side**3
        self.contrasts = contrasts
        features = contrasts * (self._taps + len(self.hinges)) + 1
        self._gram = np.zeros((features, features))
        self._moment = np.zeros(features)
        self._pairs = 0
        self._weights = np.empty(0)

    def update(self, pair: PairLike) -> None:
        """Add one training pair's voxels to the normal equations."""
        _, target = _checked(pair)
        rng = np.random.default_rng([self.seed, self._pairs])
        self._pairs += 1
        sources = self._sources(pair)
        regions = pair.mask, Outside(pair.mask)
        inside, outside = (count_voxels(region) for region in regions)
        count = min(self.voxels, inside)
        background = min(self.voxels // 10 + 1, outside)
        share = BACKGROUND_WEIGHT * count / max(background, 1)
        drawn = ((inside, count, 1.0), (outside, background, share))
        for region, (voxels, number, weight) in zip(regions, drawn, strict=True):
            ranks = np.sort(rng.choice(voxels, number, replace=False, shuffle=False))
            chosen = voxels_of_ranks(region, ranks)
            for part in np.array_split(np.arange(number), max(1, number // 8192)):
                x, y, z = (index[part] for index in chosen)
                rows = self._features(sources, (x, y, z))
                self._gram += weight * (rows.T @ rows)
                self._moment += weight * (rows.T @ target[x, y, z])

    def finish(self) -> Self:
        """Solve the normal equations, centred so that the ridge spares the intercept."""
        total = self._gram[-1, -1]
        self._check(total > 0)
        mean, target = self._gram[-1, :-1] / total, self._moment[-1] / total
        covariance = self._gram[:-1, :-1] / total - np.outer(mean, mean)
        penalty = self.ridge * np.diag(covariance).mean() * np.eye(len(mean))
        moment = self._moment[:-1] / total - mean * target
        solved = np.linalg.lstsq(covariance + penalty, moment, rcond=None)[0]
        self._weights = np.append(solved, target - mean @ solved)
        return self

    def settings(self) -> dict[str, Any]:
        """Voxels, hinges, seed, reach, ridge and the weight of background."""
        return {
            "voxels": self.voxels,
            "hinges": self.hinges.tolist(),
            "seed": self.seed,
            "contrasts": self.contrasts,
            "reach": self.reach,
            "ridge": self.ridge,
            "background": BACKGROUND_WEIGHT,
        }

    def state(self) -> dict[str, NDArray[np.float64]]:
        """The weights: neighbourhood and hinges of each contrast, intercept."""
        self._check(self._weights.size > 0)
        return {"weights": self._weights}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over the weights."""
        weights = _finite("weights", state["weights"])
        if weights.shape != self._moment.shape:
            raise ValueError(
                f"weights must have the shape {self._moment.shape}, got {weights.shape}"
            )
        self._weights = weights

    def predict(self, pair: PairLike) -> NDArray[np.float32]:
        """Filter the source, its faces repeated outwards."""
        self._check(self._weights.size > 0)
        sources = self._sources(pair)
        weights = np.split(self._weights[:-1], self.contrasts)
        out = pair.empty(pair.mask.shape)
        for tile in tiles(pair.mask.shape, self.reach, slab_sizes.SLAB):
            first, *others = (
                self._filtered(source[tile.read], own)[tile.inner]
                for source, own in zip(sources, weights, strict=True)
            )
            for found in others:
                first += found
            out[tile.write] = first + np.float32(self._weights[-1])
        return out

    def _filtered(self, values: Array, own: NDArray[np.float64]) -> NDArray[np.float32]:
        """A contrast through its own weights: the filter of its neighbourhood, and its curve."""
        side = 2 * self.reach + 1
        values = values.astype(np.float32, copy=False)
        kernel = own[: self._taps].reshape(side, side, side)
        filtered = ndimage.correlate(values, kernel, np.float32, mode="nearest")
        found = np.asarray(filtered, np.float32)
        for hinge, slope in zip(self.hinges, own[self._taps :], strict=True):
            found += np.float32(slope) * np.maximum(values - np.float32(hinge), 0)
        return found

    def _sources(self, pair: PairLike) -> list[Array]:
        """Every contrast of a pair, each of the shape (x, y, z).

        Raises:
            ValueError: If the pair has more or fewer than the regression.
        """
        found = pair.network_source
        sources = [*found] if found.ndim == 4 else [found]
        if len(sources) != self.contrasts:
            raise ValueError(f"a pair must have {self.contrasts} contrasts, got {len(sources)}")
        return sources

    def _features(self, sources: Sequence[Array], voxels: Voxels) -> NDArray[np.float64]:
        """One row a voxel: neighbourhood and hinges of each contrast, 1."""
        steps = np.arange(-self.reach, self.reach + 1)
        parts = []
        for source in sources:
            # Beyond a face its own voxels are repeated.
            x, y, z = (
                (index[:, None] + steps).clip(0, size - 1)
                for index, size in zip(voxels, source.shape, strict=True)
            )
            near = source[x[:, :, None, None], y[:, None, :, None], z[:, None, None, :]]
            near = near.reshape(len(near), -1).astype(np.float64)
            parts += [near, np.maximum(near[:, self._taps // 2, None] - self.hinges, 0)]
        return np.hstack([*parts, np.ones((len(voxels[0]), 1))])


def _finite(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """An array of a kept fit; raises ValueError unless it holds finite numbers of float64."""
    if values.dtype != np.float64 or not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite numbers of float64, got {values.dtype}")
    return values


def _checked(pair: PairLike) -> tuple[Array, Array]:
    """Source and target; raises ValueError if the pair cannot be used for training."""
    source, target = pair.source, pair.target
    shapes = {volume.shape for volume in (source, target, pair.mask)}
    if len(shapes) != 1:
        raise ValueError(f"source, target and mask of a pair must have one shape, got {shapes}")
    if not pair.mask.any():
        raise ValueError("the mask of a training pair is empty: nothing to learn from")
    return source, target
