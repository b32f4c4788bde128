"""RFSR, the paper's residual random forest, on the 2D training patches of a shard set.

Each voxel is a row: the source shifted by 2 voxels in the 8 directions of its slice, minus the
source itself, and the source itself (9 features; see `shift_features` for what is our reading).
The forest learns target - source, and its prediction is added to the source.

`rfsr` is scikit-learn's RandomForestRegressor as the paper has it, 200 trees of depth 15; that
each tree sees `max_samples` rows is ours and makes it practical. `rfsr-boosted` is another model
on the same rows, scikit-learn's HistGradientBoostingRegressor: trees fitted one after the other,
each to what those before it left, on features in 255 bins (ours).
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from threadpoolctl import threadpool_limits

from distsynth.data.loader import PatchDataset, Standardiser
from distsynth.errors import ConfigError
from distsynth.evaluation.baselines import PairLike
from sharding.io.parallel import available_cores
from sharding.io.progress import progress
from sharding.io.records import STRICT
from sharding.shards.shard_set import ShardSet

SHIFT = 2
"""Voxels by which the source is shifted (the paper's)."""
DIRECTIONS = tuple((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b)
FEATURES = len(DIRECTIONS) + 1

LEARNING_RATE = 0.1
"""Of the boosted trees."""
PATCHES = 64
"""Patches whose features are made at a time."""
STEP = 10
"""Trees between two lines of progress, or the number of jobs if that is larger."""
BLOCK = 2**18
"""Rows whose features a job holds when predicting, unless one slice has more."""


@dataclass(frozen=True)
class ForestConfig:
    """How a forest is fitted and predicts. Raises ConfigError if a field is out of range."""

    __pydantic_config__ = STRICT

    trees: int = 200
    """Trees (the paper's), or rounds of boosting."""
    depth: int = 15
    """Most splits between the root and a leaf (the paper's)."""
    max_samples: int = 100_000
    """Rows of each random tree, drawn with replacement for it; boosted trees share as many rows,
    drawn once without."""
    min_samples_leaf: int = 1
    """Fewest rows in a leaf."""
    fraction: float = 1.0
    """Share of the training patches, above 0 to 1, chosen by the seed."""
    axes: tuple[int, ...] = (2,)
    """Slicing axes of prediction; several are averaged."""
    seed: int = 0
    jobs: int = 0
    """Threads; 0 takes one a core. Nothing but time depends on it."""

    def __post_init__(self) -> None:
        for name in ("trees", "depth", "max_samples", "min_samples_leaf"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction must be above 0, at most 1, got {self.fraction}")
        if not self.axes or len(set(self.axes)) < len(self.axes) or not set(self.axes) <= {0, 1, 2}:
            raise ConfigError(f"axes must be distinct axes of 0, 1, 2, got {self.axes}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")
        if self.jobs < 0:
            raise ConfigError(f"jobs must be >= 0, got {self.jobs}")

    @property
    def threads(self) -> int:
        """Jobs, counted."""
        return self.jobs or available_cores()


BOOSTED = ForestConfig(depth=8, max_samples=1_000_000, min_samples_leaf=20)
"""What `fit_boosted` takes unless told otherwise (ours)."""


@dataclass(frozen=True)
class ForestFit:
    """What a fit took.

    Attributes:
        patches: Training patches read.
        rows: Their voxels, of which each tree saw some.
        seconds: Wall time, reading included.
        bytes: Size of the features and residuals held; scikit-learn's working copies come on top.
    """

    patches: int
    rows: int
    seconds: float
    bytes: int


@dataclass(eq=False)
class Forest:
    """A fitted forest: a Baseline that is fitted on shards.

    Attributes:
        name: rfsr or rfsr-boosted.
        config: How it was fitted.
        fit: What that took.
        model: The fitted trees.
    """

    name: str
    config: ForestConfig
    fit: ForestFit
    model: RandomForestRegressor | HistGradientBoostingRegressor

    def predict(self, pair: PairLike) -> NDArray[np.float32]:
        """Source plus predicted residual, slice by slice along each of the axes, their mean.

        The source is zero beyond the volume's faces, as beyond a patch's sides in training.
        Memory beside the volumes is bounded by BLOCK rows, or one slice, a job.
        """
        source = pair.source.astype(np.float32)
        total = np.zeros(source.shape, np.float32)
        # The slices are shared out here, so that the trees' sums do not depend on the threads.
        limits = threadpool_limits(1, user_api="openmp")
        with limits, ThreadPoolExecutor(self.config.threads) as pool:
            for axis in self.config.axes:
                slices, sums = np.moveaxis(source, axis, 0), np.moveaxis(total, axis, 0)
                step = max(1, BLOCK // slices[0].size)

                def add(low: int, slices=slices, sums=sums, step=step) -> None:
                    images = slices[low : low + step]
                    residual = self.model.predict(shift_features(images))
                    sums[low : low + step] += residual.reshape(images.shape).astype(np.float32)

                # Consumed, so that an error of a thread is raised.
                list(pool.map(add, range(0, len(slices), step)))
        return (source + total / len(self.config.axes)).astype(np.float32)


def shift_features(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """One row of features a voxel.

    "Shifted by 2 in every direction and stacked, the unshifted image subtracted" is read as the 8
    directions of a slice, edges and diagonals, each difference a column; the source itself is the
    ninth, for a change of contrast depends on it (both ours). Zero, in standardised units the mean
    of the source, stands beyond the image's sides.

    Args:
        images: Source, standardised, shape (n, height, width).

    Returns:
        Shape (n * height * width, FEATURES): source[p + SHIFT * d] - source[p] for d of
        DIRECTIONS, source[p].
    """
    _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    out = np.empty((*images.shape, FEATURES), np.float32)
    out[..., -1] = images
    for column, (a, b) in enumerate(DIRECTIONS):
        top, left = SHIFT * (1 + a), SHIFT * (1 + b)
        moved = padded[:, top : top + height, left : left + width]
        np.subtract(moved, images, out=out[..., column])
    return out.reshape(-1, FEATURES)


def fit_forest(shards: ShardSet, config: ForestConfig, quiet: bool = False) -> Forest:
    """Fit `rfsr` on training patches alone.

    Memory is `ForestFit.bytes`, a float64 copy of the residuals, and about 16 bytes a row and job.

    Raises:
        ConfigError: If the shards hold blocks, or no training patch.
        DataError: If a shard is damaged.
    """
    started = time.perf_counter()
    patches, features, residuals = training_rows(shards, config, quiet)
    model = RandomForestRegressor(
        n_estimators=0,
        max_depth=config.depth,
        min_samples_leaf=config.min_samples_leaf,
        max_samples=min(config.max_samples, len(features)),
        warm_start=True,
        n_jobs=config.threads,
        random_state=config.seed,
    )
    for trees in progress(_steps(config), "fitting rfsr", len(_steps(config)), quiet):
        model.set_params(n_estimators=trees).fit(features, residuals)
    # Predicting is shared out over slices instead.
    model.set_params(n_jobs=1)
    return _fitted("rfsr", config, started, patches, features, residuals, model)


def fit_boosted(shards: ShardSet, config: ForestConfig = BOOSTED, quiet: bool = False) -> Forest:
    """Fit `rfsr-boosted` on rows of training patches alone.

    Memory is `ForestFit.bytes` and about 150 bytes for each of the `max_samples` rows.

    Raises:
        ConfigError: If the shards hold blocks, or no training patch.
        DataError: If a shard is damaged.
    """
    started = time.perf_counter()
    patches, features, residuals = training_rows(shards, config, quiet)
    count = min(config.max_samples, len(features))
    rng = np.random.default_rng([config.seed, 1])
    chosen = np.sort(rng.choice(len(features), count, replace=False))
    rows, goals = features[chosen], residuals[chosen]
    options: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "max_leaf_nodes": None,
        "max_depth": config.depth,
        "min_samples_leaf": config.min_samples_leaf,
        "early_stopping": False,
        "warm_start": True,
        "random_state": config.seed,
    }
    model = HistGradientBoostingRegressor(**options)
    with threadpool_limits(config.threads, user_api="openmp"):
        for trees in progress(_steps(config), "fitting rfsr-boosted", len(_steps(config)), quiet):
            model.set_params(max_iter=trees).fit(rows, goals)
    return _fitted("rfsr-boosted", config, started, patches, features, residuals, model)


def training_rows(
    shards: ShardSet, config: ForestConfig, quiet: bool = False
) -> tuple[int, NDArray[np.float32], NDArray[np.float32]]:
    """Features and residuals of the chosen training patches; the middle channel of 2.5D ones.

    Returns:
        Number of patches; features, shape (rows, FEATURES); target - source, shape (rows,).

    Raises:
        ConfigError: If the shards hold blocks, or no training patch.
        DataError: If a shard is damaged.
    """
    cut = shards.manifest.config
    if len(cut.patch_size) != 2:
        raise ConfigError(
            f"a forest takes patches of two sides, {shards.folder.url} holds {cut.patch_size}"
        )
    dataset = PatchDataset(shards, "train")
    if not len(dataset):
        raise ConfigError(f"{shards.folder.url} holds no training patch to fit a forest on")
    count = max(1, round(config.fraction * len(dataset)))
    chosen = np.random.default_rng(config.seed).choice(len(dataset), count, replace=False)
    chosen.sort()
    standardise = Standardiser(shards.manifest, torch.device("cpu"))
    height, width = cut.patch_size
    features = np.empty((count * height * width, FEATURES), np.float32)
    residuals = np.empty(len(features), np.float32)
    parts = range(0, count, PATCHES)
    for low in progress(parts, "reading training patches", len(parts), quiet):
        source, target = standardise(dataset[chosen[low : low + PATCHES]])
        middle = source[:, cut.neighbours].numpy()
        rows = slice(low * height * width, (low + len(middle)) * height * width)
        features[rows] = shift_features(middle)
        residuals[rows] = (target[:, 0].numpy() - middle).ravel()
    return count, features, residuals


def _steps(config: ForestConfig) -> list[int]:
    """Trees after each step."""
    step = max(STEP, config.threads)
    return [*range(step, config.trees, step), config.trees]


def _fitted(
    name: str,
    config: ForestConfig,
    started: float,
    patches: int,
    features: NDArray[np.float32],
    residuals: NDArray[np.float32],
    model: RandomForestRegressor | HistGradientBoostingRegressor,
) -> Forest:
    """The fitted forest with what its fit took."""
    seconds = time.perf_counter() - started
    held = features.nbytes + residuals.nbytes
    fit = ForestFit(patches, len(features), seconds, held)
    return Forest(name, config, fit, model)
