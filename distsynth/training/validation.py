"""Stitched validation from the shards: each dense patch is read once, metrics are of volumes.

Where the shards hold only some slices of a validation volume (`val_slices`), those slices are
stitched and compared. Windowed SSIM is therefore two-dimensional here, slice by slice, and
named so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from distsynth.config import RunConfig
from distsynth.data.dataset import PatchDataset
from distsynth.data.foreground import Foreground
from distsynth.data.loader import Rank, validation_batches
from distsynth.data.standardiser import Standardiser
from distsynth.inference.stitching import Stitcher, border_planes, trimmed
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.registry import TERMS
from distsynth.metrics.checkerboard import checkerboard
from distsynth.metrics.image import SSIM_WINDOW, global_ssim, mse, psnr, windowed_ssim
from distsynth.metrics.overlap import Overlap
from distsynth.metrics.seams import seams
from sharding.shards.config import ShardConfig
from sharding.shards.manifest import SpecimenRecord
from sharding.shards.patches import BLOCK, dense_locations, extended, extent
from sharding.shards.shard_set import ShardSet

BATCH = 64
"""Patches a forward; it changes no number."""
SUPERVISED = tuple(term.name for term in TERMS if term.supervised)
"""Terms of the generator's loss that need no discriminator."""


def validation_axis(config: ShardConfig) -> int:
    """The axis across which validation compares slices: of several the first."""
    return config.dense_axes[0] if len(config.patch_size) == 2 else 2


def layers(
    where: NDArray[np.int32],
    mask: NDArray[np.bool_],
    patch_size: Sequence[int],
    axis: int,
    share: float,
    trim: int,
) -> NDArray[np.bool_]:
    """Which patches of a dense grid lie in some of its layers across an axis.

    A layer is a slice, or the blocks that start at one plane. Of the layers that hold tissue in
    the planes that a layer without neighbours covers, some are chosen, evenly spaced.

    Args:
        where: Axis and corner of each patch, shape (n, 4).
        mask: Foreground of the volume.
        patch_size: Two or three sides in voxels.
        axis: Slices along other axes are left out.
        share: Of the layers; at least one is chosen.
        trim: Voxels that stitching cuts from each side of a block.
    """
    flat = len(patch_size) == 2
    own = where[:, 0] == (axis if flat else BLOCK)
    starts = np.unique(where[own, axis + 1])
    ends = starts + extent(patch_size, axis if flat else BLOCK)[axis]
    lows, highs = trimmed(starts, ends, ends.max(), 0 if flat else trim)
    tissue = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
    held = np.searchsorted(tissue, highs) > np.searchsorted(tissue, lows)
    starts = starts[held] if held.any() else starts
    count = math.ceil(share * len(starts))
    places = ((np.arange(count) + 0.5) * len(starts) / count).astype(int)
    return own & np.isin(where[:, axis + 1], starts[places])


class Validator:
    """Stitches the validation specimens with the generator as it stands and measures the result."""

    def __init__(
        self,
        shards: ShardSet,
        config: RunConfig,
        accelerator: Accelerator,
        standardise: Standardiser,
        loss: GeneratorLoss,
        foreground: Foreground | None = None,
    ) -> None:
        self._shards, self._config, self._accelerator = shards, config, accelerator
        self._standardise, self._loss, self._foreground = standardise, loss, foreground
        self._masks: dict[str, NDArray[np.bool_]] = {}
        self._chosen: dict[str, NDArray[np.int64]] = {}

    def __call__(
        self,
        generator: nn.Module,
        tell: Callable[[int, int], None] = lambda *_: None,
        everything: bool = False,
    ) -> dict[str, float]:
        """Mean over validation specimens; the same on every rank.

        Args:
            generator: Without DDP wrapper; put into eval mode for the while.
            tell: Called often, with the number of the specimen, from 1, and how many there are.
            everything: Look at all patches, whatever `train.validate_share` says.

        Returns:
            Supervised loss terms over the patches as `val/<term>`, and stitched metrics in the
            mask as `val/<metric>`: mse and psnr in standardised units with the target's own range
            as peak, psnr255, ssim_global and windowed ssim_2d on the target's scale of [0, 1],
            seam_index, seam_excess and overlap_disagreement inside and outside of the mask,
            checkerboard. The disagreement is NaN where the patches of the shards do not overlap.
        """
        generator.eval()
        # The same names on every rank: one without any patch takes part in the sums all the same.
        device = self._accelerator.device
        weight = self._config.loss.weight
        sums = {name: torch.zeros((), device=device) for name in SUPERVISED if weight(name)}
        patches = 0
        rows = []
        with torch.no_grad():
            numbers = self._shards.manifest.patch_numbers("val")
            specimens = self._specimens()
            for number, specimen in enumerate(specimens, start=1):
                telling = partial(tell, number, len(specimens))
                chosen = numbers[specimen.name]
                if self._config.train.validate_share < 1 and not everything:
                    chosen = self._some(specimen, chosen)
                row, terms = self._validate_specimen(generator, specimen, chosen, telling)
                rows.append(row)
                patches += len(chosen)
                for name, value in terms.items():
                    sums[name] += value
        generator.train()
        result = {}
        for name, value in sums.items():
            total: Tensor = self._accelerator.reduce(value, "sum")  # type: ignore[assignment]
            result[f"val/{name}"] = float(total) / patches
        for name in rows[0]:
            result[f"val/{name}"] = float(np.mean([row[name] for row in rows]))
        return result

    def _specimens(self) -> list[SpecimenRecord]:
        return [row for row in self._shards.manifest.specimens if row.split == "val"]

    def _some(self, specimen: SpecimenRecord, patches: NDArray[np.int64]) -> NDArray[np.int64]:
        """The patches of the share of a specimen that is looked at while training."""
        if specimen.name not in self._chosen:
            where = PatchDataset(self._shards, "val").where(patches)[:, 1:]
            manifest = self._shards.manifest
            share, trim = self._config.train.validate_share, self._config.stitch.trim
            axis = validation_axis(manifest.config)
            mask = self._mask(specimen)
            own = layers(where, mask, manifest.config.patch_size, axis, share, trim)
            self._chosen[specimen.name] = patches[own]
        return self._chosen[specimen.name]

    def _mask(self, specimen: SpecimenRecord) -> NDArray[np.bool_]:
        if specimen.name not in self._masks:
            self._masks[specimen.name] = self._shards.mask(specimen)
        return self._masks[specimen.name]

    def _validate_specimen(
        self,
        generator: nn.Module,
        specimen: SpecimenRecord,
        patches: NDArray[np.int64],
        tell: Callable[[], None],
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics of one stitched specimen, and this rank's sums of loss terms."""
        accelerator, config = self._accelerator, self._config
        patch_size = self._shards.manifest.config.patch_size
        device = accelerator.device
        stitch = config.stitch
        shape = extended(specimen.shape, config.data.start_multiple)
        synthetic = Stitcher(shape, patch_size, stitch.trim, stitch.weights, device, spread=True)
        target = Stitcher(shape, patch_size, device=device)
        sums: dict[str, Tensor] = {}
        batches = validation_batches(
            self._shards,
            "val",
            patches,
            BATCH,
            config.data.workers,
            Rank.of(accelerator),
        )
        for batch in batches:
            tell()
            source, truth = self._standardise(batch)
            predicted = generator(source).float()
            inside = self._foreground(batch.where) if self._foreground else None
            _, terms = self._loss(
                predicted, truth, source=source, generator=generator, inside=inside
            )
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(source)
            where = batch.where[:, 1:].numpy()
            synthetic.add(predicted[:, 0], where)
            target.add(truth[:, 0], where)
        for stitcher in (synthetic, target):
            for part in stitcher.sums:
                part.copy_(accelerator.reduce(part, "sum"))  # type: ignore[arg-type]
        row = self._metrics(specimen, synthetic, target)
        return row, sums

    def _metrics(
        self, specimen: SpecimenRecord, synthetic: Stitcher, target: Stitcher
    ) -> dict[str, float]:
        """Metrics on the slices that the shards cover."""
        transform = specimen.target.to_standard(self._shards.manifest.standards.target)
        axis = validation_axis(self._shards.manifest.config)
        own = tuple(map(slice, specimen.shape))
        # As the target, for see check_trim; but layers of blocks that stand alone are trimmed.
        covered = synthetic.covered[own].cpu().numpy()
        # With slices along several axes, those along the first: others cross them as lines only.
        slices = np.flatnonzero(covered.all(axis=tuple({0, 1, 2} - {axis})))

        def covered_part(volume: Tensor | NDArray[Any]) -> NDArray:
            array = volume.cpu().numpy() if isinstance(volume, Tensor) else volume
            return np.take(array, slices, axis)

        mask = covered_part(self._mask(specimen) & covered)
        volumes = (stitcher.volume(allow_uncovered=True) for stitcher in (synthetic, target))
        image, truth = (covered_part(volume[own]) for volume in volumes)
        error = mse(image, truth, mask)
        borders = self._borders(specimen)
        if len(slices) < specimen.shape[axis]:
            # The slices are not neighbours, so that there is no border between them to measure.
            borders[axis] = np.array([], np.int64)
        scaled = transform.unstandardise(image), transform.unstandardise(truth)
        inside, outside = seams(image, truth, borders, (mask, ~mask))
        found = synthetic.overlap()
        windows = Overlap(*(covered_part(part[own]) for part in (found.variance, found.freedom)))
        return {
            "mse": error,
            "psnr": psnr(error, transform.data_range),
            "psnr255": psnr(error, 255),
            "ssim_global": global_ssim(*scaled, 1.0, mask),
            "ssim_2d": windowed_ssim(*scaled, 1.0, mask, dims=2, axis=axis)
            if min(truth.shape[:axis] + truth.shape[axis + 1 :]) >= SSIM_WINDOW
            else math.nan,
            "seam_index": inside.index,
            "seam_index_outside": outside.index,
            "seam_excess": inside.excess,
            "seam_excess_outside": outside.excess,
            "overlap_disagreement": windows.disagreement(mask),
            "overlap_disagreement_outside": windows.disagreement(~mask),
            "checkerboard": checkerboard(image, truth, mask),
        }

    def _borders(self, specimen: SpecimenRecord) -> list[NDArray[np.integer[Any]]]:
        """Planes where patches of the shards' dense grid meet."""
        config = self._shards.manifest.config
        locations = dense_locations(
            specimen.shape,
            config.patch_size,
            config.stride,
            config.dense_axes,
            config.val_slices,
            config.alignment,
        )
        trim = self._config.stitch.trim
        return list(
            border_planes(locations, specimen.shape, config.patch_size, trim, config.alignment)
        )
