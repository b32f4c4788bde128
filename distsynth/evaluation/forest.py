"""RFSR, the paper's residual random forest (section 6.1), and its relatives, on 2D patches.

Each voxel is a row of features made from shifted copies of its slice, minus the slice itself. The
forest learns target - source, and its prediction is added to the source. Four models share this:

rfsr            The paper's. 25 features, the whole 5x5 grid of shifts as in the code that the
                paper cites, and no absolute intensity. It is trained on targets and their degraded
                copies, so that it learns resolution and not contrast.
rfsr-pairs      The same features, trained on the pairs of source and target (ours).
rfsr-intensity  8 shifts at a distance of 2 and the source's intensity, trained on pairs (ours).
                Intensity lets a forest learn the change of contrast.
rfsr-boosted    Gradient boosting on the rows of rfsr-intensity: trees fitted one after the other,
                each to what those before it left, on features in 255 bins (ours).

Of several contrasts (ours) each gives a voxel its features, one contrast after the other, and the
residual is added to the first one. rfsr, which is trained on targets, sees the first one alone.

The first three are scikit-learn's RandomForestRegressor with 200 trees of depth 15, as in the
paper; that each tree sees only `max_samples` rows is ours and makes them practical.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from threadpoolctl import threadpool_limits

from distsynth.data.loader import PatchDataset
from distsynth.data.standardiser import Standardiser
from distsynth.errors import ConfigError
from distsynth.evaluation.baselines import PairLike
from sharding.io.parallel import available_cores
from sharding.io.progress import progress
from sharding.io.records import STRICT
from sharding.shards.shard_set import ShardSet

Features = Literal["grid", "directions"]
REACH = 2
"""Voxels by which the source is shifted at most (the paper's)."""
SHIFTS: dict[Features, tuple[tuple[int, int], ...]] = {
    "grid": tuple((a, b) for a in range(-REACH, REACH + 1) for b in range(-REACH, REACH + 1)),
    "directions": tuple((a, b) for a in (-REACH, 0, REACH) for b in (-REACH, 0, REACH) if a or b),
}
"""Displacements (rows, columns) whose differences from the voxel itself are features."""

LEARNING_RATE = 0.1
"""Learning rate of the boosted trees."""
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
    features: Features = "grid"
    """grid: all 25 shifts of up to 2 voxels, one of which is zero (the paper's code). directions:
    8 shifts by 2 voxels and the source's own intensity (ours)."""
    degrade: int = 0
    """Train on targets and their copies at a resolution this many times lower (the paper: 2); 0
    trains on pairs of source and target."""
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
        if self.features not in SHIFTS:
            raise ConfigError(f"features must be one of {', '.join(SHIFTS)}, got {self.features}")
        if self.degrade < 0 or self.degrade == 1:
            raise ConfigError(f"degrade must be 0 or at least 2, got {self.degrade}")
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

    @property
    def columns(self) -> int:
        """Features of a row, of each contrast."""
        return len(SHIFTS[self.features]) + (self.features == "directions")


FORESTS: dict[str, ForestConfig] = {
    "rfsr": ForestConfig(degrade=2),
    "rfsr-pairs": ForestConfig(),
    "rfsr-intensity": ForestConfig(features="directions"),
    "rfsr-boosted": ForestConfig(
        features="directions", depth=8, max_samples=1_000_000, min_samples_leaf=20
    ),
}
"""Every forest by name; see the top of this file for what each is."""
BOOSTED = "rfsr-boosted"
"""The forest that is boosted."""


@dataclass(frozen=True)
class ForestFit:
    """The cost of a fit.

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
        name: A name of FORESTS.
        config: How it was fitted.
        fit: The cost of the fit.
        model: The fitted trees.
        contrasts: Of a source, from the first one on, whose features it sees.
    """

    name: str
    config: ForestConfig
    fit: ForestFit
    model: RandomForestRegressor | HistGradientBoostingRegressor
    contrasts: int = 1

    def predict(self, pair: PairLike) -> NDArray[np.float32]:
        """Source plus predicted residual, slice by slice along each of the axes, their mean.

        The source is zero beyond the volume's faces, as beyond a patch's sides in training.
        Memory beside the volumes is bounded by BLOCK rows, or one slice, a job.

        Raises:
            ValueError: If the pair has fewer contrasts than the forest sees.
        """
        sources = self._sources(pair)
        source = sources[0]
        total = np.zeros(source.shape, np.float32)
        # The slices are shared out here, so that the trees' sums do not depend on the threads.
        limits = threadpool_limits(1, user_api="openmp")
        with limits, ThreadPoolExecutor(self.config.threads) as pool:
            for axis in self.config.axes:
                stacks = [np.moveaxis(each, axis, 0) for each in sources]
                sums = np.moveaxis(total, axis, 0)
                step = max(1, BLOCK // sums[0].size)

                def add(low: int, stacks=stacks, sums=sums, step=step) -> None:
                    images = [each[low : low + step] for each in stacks]
                    residual = self.model.predict(contrast_features(images, self.config.features))
                    part = sums[low : low + step]
                    part += residual.reshape(part.shape).astype(np.float32)

                # Consumed, so that an error of a thread is raised.
                list(pool.map(add, range(0, len(sums), step)))
        return (source + total / len(self.config.axes)).astype(np.float32)

    def _sources(self, pair: PairLike) -> list[NDArray[np.float32]]:
        if self.contrasts == 1:
            return [pair.source.astype(np.float32)]
        found = pair.network_source
        count = len(found) if found.ndim == 4 else 1
        if count < self.contrasts:
            raise ValueError(f"a pair must have {self.contrasts} contrasts, got {count}")
        return [each.astype(np.float32, copy=False) for each in found[: self.contrasts]]


def contrast_features(
    contrasts: Sequence[NDArray[np.float32]], features: Features
) -> NDArray[np.float32]:
    """One row of features a voxel, those of each contrast after those of the one before.

    Args:
        contrasts: Each standardised, shape (n, height, width).
        features: Which, see shift_features.

    Returns:
        Shape (n * height * width, contrasts * columns).
    """
    found = [shift_features(images, features) for images in contrasts]
    return found[0] if len(found) == 1 else np.hstack(found)


def shift_features(images: NDArray[np.float32], features: Features) -> NDArray[np.float32]:
    """One row of features a voxel.

    Zero, in standardised units the mean of the source, stands beyond the image's sides.

    Args:
        images: Source, standardised, shape (n, height, width).
        features: Which.

    Returns:
        Shape (n * height * width, columns): source[p + d] - source[p] for d of SHIFTS[features];
        for directions then source[p].
    """
    _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (REACH, REACH), (REACH, REACH)))
    shifts = SHIFTS[features]
    out = np.empty((*images.shape, len(shifts) + (features == "directions")), np.float32)
    if features == "directions":
        out[..., -1] = images
    for column, (a, b) in enumerate(shifts):
        top, left = REACH + a, REACH + b
        moved = padded[:, top : top + height, left : left + width]
        np.subtract(moved, images, out=out[..., column])
    return out.reshape(-1, out.shape[-1])


def degraded(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Images at a lower resolution, on their own grid: averaged over blocks, then bicubic.

    Args:
        images: Shape (n, height, width).
        factor: How many times lower.
    """
    height, width = images.shape[1:]
    small = F.interpolate(
        images[:, None], (max(1, height // factor), max(1, width // factor)), mode="area"
    )
    return F.interpolate(small, (height, width), mode="bicubic", align_corners=False)[:, 0]


def fit_forest(name: str, shards: ShardSet, config: ForestConfig, quiet: bool = False) -> Forest:
    """Fit a forest on training patches alone.

    A random forest takes `ForestFit.bytes` of memory, a float64 copy of the residuals, and about 16
    bytes a row and job; boosting `ForestFit.bytes` and about 150 bytes for each of the
    `max_samples` rows.

    Args:
        name: One of FORESTS, which tells the kind of model.
        shards: What to train on.
        config: FORESTS[name], or a variation of it.
        quiet: Show no progress.

    Raises:
        ConfigError: If the shards hold blocks, or no training patch.
        DataError: If a shard is damaged.
    """
    started = time.perf_counter()
    patches, features, residuals = training_rows(shards, config, quiet)
    fit = _fit_boosted if name == BOOSTED else _fit_random
    model = fit(name, config, features, residuals, quiet)
    seconds = time.perf_counter() - started
    held = features.nbytes + residuals.nbytes
    contrasts = features.shape[1] // config.columns
    return Forest(name, config, ForestFit(patches, len(features), seconds, held), model, contrasts)


def _fit_random(
    name: str,
    config: ForestConfig,
    features: NDArray[np.float32],
    residuals: NDArray[np.float32],
    quiet: bool,
) -> RandomForestRegressor:
    """Trees on rows that each draws with replacement."""
    model = RandomForestRegressor(
        n_estimators=0,
        max_depth=config.depth,
        min_samples_leaf=config.min_samples_leaf,
        max_samples=min(config.max_samples, len(features)),
        warm_start=True,
        n_jobs=config.threads,
        random_state=config.seed,
    )
    for trees in progress(_steps(config), f"fitting {name}", len(_steps(config)), quiet):
        model.set_params(n_estimators=trees).fit(features, residuals)
    # Predicting is shared out over slices instead.
    return model.set_params(n_jobs=1)


def _fit_boosted(
    name: str,
    config: ForestConfig,
    features: NDArray[np.float32],
    residuals: NDArray[np.float32],
    quiet: bool,
) -> HistGradientBoostingRegressor:
    """Trees one after the other, all on the same rows, drawn without replacement."""
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
        for trees in progress(_steps(config), f"fitting {name}", len(_steps(config)), quiet):
            model.set_params(max_iter=trees).fit(rows, goals)
    return model


def training_rows(
    shards: ShardSet, config: ForestConfig, quiet: bool = False
) -> tuple[int, NDArray[np.float32], NDArray[np.float32]]:
    """Features and residuals of the chosen training patches.

    Of the source it takes the slice itself, without its neighbours.

    Returns:
        Number of patches; features, shape (rows, contrasts * columns); target - first contrast,
        shape (rows,). The degraded target takes the place of the source, as a single contrast, if
        the configuration says so.

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
    # A contrast is a slice with its neighbours.
    depth = 2 * cut.neighbours + 1
    contrasts = 1 if config.degrade else shards.manifest.contrast_count
    features = np.empty((count * height * width, contrasts * config.columns), np.float32)
    residuals = np.empty(len(features), np.float32)
    parts = range(0, count, PATCHES)
    for low in progress(parts, "reading training patches", len(parts), quiet):
        source, target = standardise(dataset[chosen[low : low + PATCHES]])
        middles = list(source[:, cut.neighbours :: depth].unbind(dim=1))
        if config.degrade:
            middles = [degraded(target[:, 0], config.degrade)]
        images = [middle.numpy() for middle in middles]
        rows = slice(low * height * width, (low + len(source)) * height * width)
        features[rows] = contrast_features(images, config.features)
        residuals[rows] = (target[:, 0].numpy() - images[0]).ravel()
    return count, features, residuals


def _steps(config: ForestConfig) -> list[int]:
    """Trees after each step."""
    step = max(STEP, config.threads)
    return [*range(step, config.trees, step), config.trees]
