"""Prediction of a volume by a checkpoint: dense stitched patches (section 5.2) or an equivalent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distsynth.config import with_overrides
from distsynth.data.memory import keep_freed_memory
from distsynth.errors import ConfigError
from distsynth.inference.comparison import Comparison
from distsynth.inference.flips import mean_of_flips
from distsynth.inference.memory_budget import memory_budget
from distsynth.inference.precision import PredictedIn, predicts_in_bf16
from distsynth.inference.reading import Given, read_scan
from distsynth.inference.scan import (
    PredictedScan,
    ScanOptions,
    Units,
    compare_scan,
    predict_scan,
)
from distsynth.inference.sliding_window import SlidingWindows, total_weight
from distsynth.inference.volume import ImageMethod, ImageStack, forwards, predict_volume
from distsynth.inference.whole_slice import WholeImages
from distsynth.models import Generator, build_generator
from distsynth.runs.checkpoint import Checkpoint, check_finite_weights, load_checkpoint
from distsynth.runs.folder import BEST, local_file
from distsynth.runs.package import COPY_AGAIN, WEIGHTS, is_export, read_export
from sharding.io.errors import DataError
from sharding.io.progress import progress
from sharding.io.storage import Folder, is_remote
from sharding.shards.patches import BLOCK, check_fits, dense_locations, fits, patch_axes
from sharding.volumes.grid import MOST_VOXELS
from sharding.volumes.header import Orientation
from sharding.volumes.slabs import Empty, in_memory, slabs
from sharding.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Predictor:
    """A trained generator with everything that it needs to predict.

    Attributes:
        checkpoint: Its configuration and data record.
        generator: In eval mode, on its device.
        device: Where it computes.
        precision: In which it computes; stitching is float32 in each.
        name: That of the folder of its run or export; empty for one that was made in memory.
    """

    checkpoint: Checkpoint
    generator: Generator
    device: torch.device
    precision: PredictedIn = "auto"
    name: str = ""

    def stitched(self, **changes: Any) -> Predictor:
        """The same generator with other fields of StitchConfig, None keeping the checkpoint's.

        Raises:
            ConfigError: If a value breaks a rule.
        """
        chosen = {f"stitch.{name}": value for name, value in changes.items() if value is not None}
        config = with_overrides(self.checkpoint.config, chosen)
        return replace(self, checkpoint=replace(self.checkpoint, config=config))

    def locations(self, shape: tuple[int, int, int]) -> NDArray[np.int32]:
        """The dense patches that a prediction is made of, or equals."""
        stitch = self.checkpoint.config.stitch
        data = self.checkpoint.config.data
        try:
            return dense_locations(
                shape, data.sides, stitch.stride, stitch.axes, alignment=data.start_multiple
            )
        except ValueError as error:
            raise self._does_not_fit(shape, error) from None

    def _does_not_fit(self, shape: Sequence[int], error: ValueError) -> ConfigError:
        """The message for patches that do not fit a volume, with the slicing axes that would do."""
        data = self.checkpoint.config.data
        message = f"stitch: {error}"
        if len(data.sides) == 2:
            fitting = [
                axis for axis in (0, 1, 2) if fits(shape, data.sides, axis, data.start_multiple)
            ]
            if fitting:
                message += f"; --stitch.axes {' '.join(map(str, fitting))} would"
        return ConfigError(message)

    def __call__(
        self,
        source: NDArray[np.float32],
        title: str = "predicting",
        quiet: bool = False,
        empty: Empty = in_memory,
        variance: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Predict a standardised target from a standardised source.

        Args:
            source: Shape (x, y, z), or (contrasts, x, y, z) where there are several; standardised
                as in training.
            title: Title of the progress bar.
            quiet: No progress bar.
            empty: Makes the arrays that are as large as the volume.
            variance: Array of the grid's shape that is filled with the variance of overlapping
                windows at each voxel: see distsynth.inference.windows.

        Returns:
            Synthetic, shape (x, y, z), standardised.

        Raises:
            ConfigError: If the patches do not fit the volume.
            ValueError: If a voxel is left uncovered, or the source has other contrasts than the
                model.
            FloatingPointError: If a predicted voxel is not finite.
        """
        config = self.checkpoint.config
        patch_size, stitch = config.data.sides, config.stitch
        shape, wanted = source.shape[-3:], config.data.contrasts or 1
        if (source.shape[0] if source.ndim == 4 else 1) != wanted:
            raise ValueError(f"source must have {wanted} contrasts, got an array of {source.shape}")
        if stitch.flips:
            plain = self.stitched(flips=())
            return mean_of_flips(plain, stitch.flips, source, title, quiet, empty, variance)
        methods = self.methods(shape, empty)
        if self.device.type == "cpu":
            keep_freed_memory(any_size=False)
        total = forwards(shape, methods)
        ticks = progress(range(total), title, total, quiet)

        def forward(images: Tensor) -> Tensor:
            next(ticks)
            return self.generator(images)[:, 0].float()

        with torch.inference_mode(), self.autocast():
            synthetic = predict_volume(
                source,
                methods,
                config.data.slices // 2,
                forward,
                lambda sides: total_weight(sides, patch_size, stitch, config.data.start_multiple),
                empty,
                variance,
            )
        next(ticks, None)  # the last line of progress
        bad = sum(int(np.count_nonzero(~np.isfinite(synthetic[s]))) for s in slabs(shape))
        if bad:
            raise FloatingPointError(
                f"{title}: {bad} of {synthetic.size} predicted voxels are not finite. Use another "
                "checkpoint, or --precision no"
            )
        return synthetic

    def predict(
        self,
        source: Given | Sequence[Given],
        like: Given | None = None,
        *,
        orientation: Orientation = "header",
        max_voxels: int = MOST_VOXELS,
        units: Units = "source",
        force: bool = False,
        region: bool = False,
    ) -> Volume:
        """Predict the synthetic target of a source volume.

        Args:
            source: The source: a file, a DICOM folder or a volume, in any units of intensity. Of a
                model of several contrasts one for each, in its order.
            like: The grid to predict on; by default the source's own if its voxels have the size
                of the training targets, or else one of that size over its field of view.
            orientation: "array" accepts files without orientation, see
                sharding.volumes.volume.read_volume.
            max_voxels: Voxels that the grid may have.
            units: Units of intensity of the result, see distsynth.inference.scan.Units.
            force: Predict a scan that is too unlike training.
            region: Predict only where the scan has data, see distsynth.inference.region.

        Returns:
            The synthetic volume.

        Raises:
            DataError: If a file is bad or nearly constant, there are other contrasts than those of
                the model, the grid is too large or does not meet the source, the scan is too unlike
                training, or the volume is smaller than a patch.
        """
        options = ScanOptions(max_voxels, units, force, region=region)
        return self._scan(source, like, orientation, options).synthetic

    def predict_with_uncertainty(
        self,
        source: Given | Sequence[Given],
        like: Given | None = None,
        *,
        orientation: Orientation = "header",
        max_voxels: int = MOST_VOXELS,
        units: Units = "source",
        force: bool = False,
        region: bool = False,
    ) -> tuple[Volume, Volume]:
        """Predict the mean over members and flips, and the standard deviation around it.

        Args:
            source: As in predict, and so are the others.

        Returns:
            The synthetic volume and the deviation, in the same units.

        Raises:
            ConfigError: If this is a single network without flips.
            DataError: As predict.
        """
        options = ScanOptions(max_voxels, units, force, uncertainty=True, region=region)
        found = self._scan(source, like, orientation, options)
        assert found.uncertainty is not None
        return found.synthetic, found.uncertainty

    def _scan(
        self,
        source: Given | Sequence[Given],
        like: Given | None,
        orientation: Orientation,
        options: ScanOptions,
    ) -> PredictedScan:
        least = self.checkpoint.data.preprocess.min_overlap
        scan, grid = read_scan(source, like, orientation, least)
        return predict_scan(self, scan, grid, options)

    def compare(
        self, source: Given | Sequence[Given], *, orientation: Orientation = "header"
    ) -> Comparison:
        """What is unlike the training scans in a scan; nothing is predicted.

        Raises:
            DataError: If a file is bad, or there are other contrasts than those of the model.
        """
        least = self.checkpoint.data.preprocess.min_overlap
        return compare_scan(self, read_scan(source, None, orientation, least)[0])

    @property
    def computes_in(self) -> Literal["bf16", "float32"]:
        """The precision of the network's products."""
        trained = self.checkpoint.config.train.precision
        half = predicts_in_bf16(self.precision, trained, self.device)
        return "bf16" if half else "float32"

    def autocast(self) -> torch.autocast:
        """The context in which the generator computes, see `precision`."""
        half = self.computes_in == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    @property
    def exact(self) -> bool:
        """Whether whole images and windows give the same.

        They do if the trim covers the receptive field, and windows start where the cells of the
        network do.
        """
        reach, config = self.generator.reach, self.checkpoint.config
        aligned = config.data.start_multiple % self.generator.multiple == 0
        return reach is not None and aligned and config.stitch.trim >= reach

    @property
    def whole_images(self) -> bool:
        """Whether slices (or the volume) are predicted as a whole, not by windows.

        See StitchConfig.method.
        """
        method = self.checkpoint.config.stitch.method
        return self.exact if method == "auto" else method == "whole"

    def methods(self, shape: Sequence[int], empty: Empty) -> dict[int, ImageMethod]:
        """Axis (BLOCK for 3D) to how its images are predicted.

        Raises:
            ConfigError: If the patches do not fit the volume.
        """
        config, generator = self.checkpoint.config, self.generator
        data, stitch, patch_size = config.data, config.stitch, config.data.sides
        budget = memory_budget(
            config.generator, patch_size, data.channels, stitch.memory_mb, self.device
        )
        methods: dict[int, ImageMethod] = {}
        for axis in patch_axes(patch_size, stitch.axes):
            try:
                check_fits(shape, patch_size, axis, data.start_multiple)
            except ValueError as error:
                raise self._does_not_fit(shape, error) from None
            count = 1 if axis == BLOCK else shape[axis]
            sides = tuple(size for dim, size in enumerate(shape) if dim != axis)
            images = ImageStack(sides, count, data.channels)
            if self.whole_images:
                least = math.prod(patch_size)
                methods[axis] = WholeImages(
                    images, generator, budget, least, self.device, data.start_multiple
                )
            else:
                methods[axis] = SlidingWindows(
                    images, patch_size, stitch, budget, self.device, empty, data.start_multiple
                )
        return methods


def load_predictor(
    path: str | Path, device: str = "auto", precision: PredictedIn = "auto"
) -> Predictor:
    """Build the generator of a checkpoint or of an export.

    Args:
        path: A checkpoint, a run's folder for its best one, or the folder of an export; a path or
            a URL.
        device: auto takes a GPU where there is one.
        precision: auto predicts in bf16 with a model that was trained in it, if the device
            multiplies natively in it; else in float32.

    Raises:
        DataError: If the checkpoint or a file of the export is bad, or a weight is not finite.
    """
    name = run_dir_of(path).name
    if is_export(path):
        checkpoint, remedy = read_export(path), COPY_AGAIN
        path = Folder(path) / WEIGHTS
    else:
        path, remedy = local_file(checkpoint_of(path)), "Take another checkpoint"
        checkpoint = load_checkpoint(path)
    config = checkpoint.config
    data = config.data
    try:
        generator = build_generator(config.generator, data.sides, data.channels, data.slices)
        generator.load_state_dict(checkpoint.weights())
    except (ConfigError, KeyError, RuntimeError) as error:
        # Torch's first line names the network, its second what is wrong.
        reason = str(error).splitlines()[:2][-1].strip()
        raise DataError(
            path, f"the weights do not fit the configuration ({reason})", remedy
        ) from error
    check_finite_weights(path, checkpoint.weights(), remedy)
    found = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
    chosen = torch.device(found if device == "auto" else device)
    return Predictor(checkpoint, generator.to(chosen).eval(), chosen, precision, name)


def checkpoint_of(path: str | Path) -> str:
    """The path of the checkpoint, if a run's folder is given."""
    if is_remote(path):
        return str(path) if str(path).endswith(".pt") else f"{str(path).rstrip('/')}/{BEST}"
    return str(Path(path) / BEST if Path(path).is_dir() else path)


def run_dir_of(path: str | Path) -> Path:
    """The folder of the run that a checkpoint belongs to; for a remote one only its name is valid.

    An export is a folder by itself.
    """
    if is_export(path):
        return Path(str(path)) if is_remote(path) else local_file(path).resolve()
    checkpoint = checkpoint_of(path)
    return (Path(checkpoint) if is_remote(path) else Path(checkpoint).resolve()).parent.parent
