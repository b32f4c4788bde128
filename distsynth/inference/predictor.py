"""Prediction of a volume by a checkpoint: dense stitched patches (section 5.2) or an equivalent."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distsynth.config import with_overrides
from distsynth.data.memory import keep_freed_memory
from distsynth.errors import ConfigError
from distsynth.inference.flips import mean_of_flips
from distsynth.inference.memory_budget import MEGABYTE, memory_budget
from distsynth.inference.precision import PredictedIn, predicts_in_bf16
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
from sharding.volumes.grid import MOST_VOXELS, check_grid_size, check_grids_meet, spaced_grid
from sharding.volumes.header import Orientation
from sharding.volumes.intensities import check_foreground_varies
from sharding.volumes.output import Output
from sharding.volumes.pair import place_source
from sharding.volumes.slabs import Empty, Scratch, in_memory, slabs
from sharding.volumes.volume import Volume, read_pair, read_volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Predictor:
    """A trained generator with everything that it needs to predict.

    Attributes:
        checkpoint: Its configuration and data record.
        generator: In eval mode, on its device.
        device: Where it computes.
        precision: In which it computes; stitching is float32 in each.
    """

    checkpoint: Checkpoint
    generator: Generator
    device: torch.device
    precision: PredictedIn = "auto"

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
            source: Shape (x, y, z), zero mean and unit variance.
            title: Title of the progress bar.
            quiet: No progress bar.
            empty: Makes the arrays that are as large as the volume.
            variance: Array of the source's shape that is filled with the variance of overlapping
                windows at each voxel: see distsynth.inference.windows.

        Returns:
            Synthetic, same shape, standardised.

        Raises:
            ConfigError: If the patches do not fit the volume.
            ValueError: If a voxel is left uncovered.
            FloatingPointError: If a predicted voxel is not finite.
        """
        config = self.checkpoint.config
        patch_size, stitch = config.data.sides, config.stitch
        if stitch.flips:
            plain = self.stitched(flips=())
            return mean_of_flips(plain, stitch.flips, source, title, quiet, empty, variance)
        methods = self._methods(source.shape, empty)
        if self.device.type == "cpu":
            keep_freed_memory(any_size=False)
        total = forwards(source.shape, methods)
        ticks = progress(range(total), title, total, quiet)
        half = predicts_in_bf16(self.precision, config.train.precision, self.device)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=half)

        def forward(images: Tensor) -> Tensor:
            next(ticks)
            return self.generator(images)[:, 0].float()

        with torch.inference_mode(), autocast:
            synthetic = predict_volume(
                source,
                methods,
                config.data.channels // 2,
                forward,
                lambda sides: total_weight(sides, patch_size, stitch, config.data.start_multiple),
                empty,
                variance,
            )
        next(ticks, None)  # the last line of progress
        bad = sum(int(np.count_nonzero(~np.isfinite(synthetic[s]))) for s in slabs(source.shape))
        if bad:
            raise FloatingPointError(
                f"{title}: {bad} of {synthetic.size} predicted voxels are not finite. Use another "
                "checkpoint, or --precision no"
            )
        return synthetic

    def predict(
        self,
        source: str | Path | Volume,
        like: str | Path | Volume | None = None,
        *,
        orientation: Orientation = "header",
        max_voxels: int = MOST_VOXELS,
    ) -> Volume:
        """Predict the synthetic target of a source volume.

        Args:
            source: The source: a file, a DICOM folder or a volume, in any units of intensity.
            like: The grid to predict on; by default the source's own if its voxels have the size
                of the training targets, or else one of that size over its field of view.
            orientation: "array" accepts files without orientation, see predict_file.
            max_voxels: Voxels that the grid may have.

        Returns:
            The synthetic volume, with the source's scale of intensities.

        Raises:
            DataError: If a file is bad or nearly constant, the grid is too large or does not meet
                the source, or the volume is smaller than a patch.
        """
        where = "source" if isinstance(source, Volume) else source
        if isinstance(source, str | Path) and isinstance(like, str | Path):
            source, like = read_pair(source, like, orientation)
        if isinstance(source, str | Path):
            source = read_volume(source, orientation=orientation)
        if isinstance(like, str | Path):
            like = read_volume(like, orientation=orientation)
        if like:
            least = self.checkpoint.data.preprocess.min_overlap
            check_grids_meet("the grid to predict on", source, like, least)
        return _predict_volume(self, source, like, where, max_voxels, in_memory)

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

    def _methods(self, shape: Sequence[int], empty: Empty) -> dict[int, ImageMethod]:
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
    if is_export(path):
        checkpoint, remedy = read_export(path), COPY_AGAIN
        path = Folder(path) / WEIGHTS
    else:
        path, remedy = local_file(checkpoint_of(path)), "Take another checkpoint"
        checkpoint = load_checkpoint(path)
    config = checkpoint.config
    data = config.data
    try:
        generator = build_generator(config.generator, data.sides, data.channels)
        generator.load_state_dict(checkpoint.weights())
    except (ConfigError, KeyError, RuntimeError) as error:
        # Torch's first line names the network, its second what is wrong.
        reason = str(error).splitlines()[:2][-1].strip()
        raise DataError(
            path, f"the weights do not fit the configuration ({reason})", remedy
        ) from error
    check_finite_weights(path, checkpoint.weights(), remedy)
    name = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
    chosen = torch.device(name if device == "auto" else device)
    return Predictor(checkpoint, generator.to(chosen).eval(), chosen, precision)


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


def predict_file(
    predictor: Predictor,
    path: Path,
    out: Path,
    like: Path | None = None,
    overwrite: bool = False,
    orientation: Orientation = "header",
    max_voxels: int = MOST_VOXELS,
    keep_patient: bool = False,
) -> Path:
    """Predict a source volume and write the result, which any viewer shows in the right place.

    The grid is that of `like`; or the source's own if its voxels have the size of the training
    targets; or else one of that size over the source's field of view. Intensities are brought
    back to the source's scale. Arrays of a volume that take more than `stitch.memory_mb` lie in
    files without a name in the folder of `out`, so that a volume larger than memory streams
    through.

    Args:
        predictor: From load_predictor.
        path: The source, a file or a DICOM folder.
        out: What to write, see sharding.volumes.output.Output.
        like: A volume whose grid to predict on.
        overwrite: Replace `out`.
        orientation: "array" accepts a source without orientation; the result has none either, and
            its array lies like that of the source.
        max_voxels: Voxels that the grid may have.
        keep_patient: Copy the patient and the study of a DICOM source into a DICOM output.

    Raises:
        DataError: If the file is bad or nearly constant, `out` exists or cannot be written, the
            grid is too large or does not meet the source, the volume is smaller than a patch, or
            the disk is full.
    """
    output = Output(out, path, "synthetic", keep_patient, overwrite)
    output.check()
    empty = Scratch(out.parent, predictor.checkpoint.config.stitch.memory_mb * MEGABYTE)
    if like:
        source, grid = read_pair(path, like, orientation, empty)
        check_grids_meet(like, source, grid, predictor.checkpoint.data.preprocess.min_overlap)
    else:
        source, grid = read_volume(path, empty=empty, orientation=orientation), None
    output.write(_predict_volume(predictor, source, grid, path, max_voxels, empty))
    return out


def _predict_volume(
    predictor: Predictor,
    source: Volume,
    like: Volume | None,
    where: str | Path,
    max_voxels: int,
    empty: Empty,
) -> Volume:
    """Predict on the grid of `like`, or one like the targets'; `where` names the source."""
    data = predictor.checkpoint.data
    grid = like or prediction_grid(source, data.spacing_mm, data.orientation, where, max_voxels)
    logger.info("predicting on a grid of %s voxels", "x".join(map(str, grid.shape)))
    placed = place_source(source, grid.shape, grid.affine, data.preprocess, where, empty)
    transform = placed.transform.to_standard(data.standards.source)
    check_foreground_varies(where, source, transform, data.preprocess.foreground_threshold)
    standardised = transform.standardise_scaled(placed.scaled, empty)
    try:
        synthetic = predictor(standardised, empty=empty)
    except ConfigError as error:
        raise DataError(where, str(error), "Give a larger volume, or use smaller patches") from None
    predicted = grid.with_data(transform.restore(synthetic, empty))
    if not like and not source.has_orientation:
        # Without orientation only the arrays can be compared: this one lies like the source's.
        predicted = predicted.reoriented("RAS")
    return predicted


def prediction_grid(
    source: Volume,
    spacing_mm: tuple[float, float, float],
    orientation: str,
    where: object = "source",
    max_voxels: int = MOST_VOXELS,
) -> Volume:
    """The grid to predict on: oriented and spaced like the training targets.

    The first voxel's centre stays where it is, so that a source downsampled from the targets'
    grid comes back onto it.

    Args:
        source: Volume to predict from.
        spacing_mm: Voxel size of the training targets along their axes.
        orientation: Orientation of the training targets, such as RAS.
        where: Names the source in errors.
        max_voxels: Voxels that the grid may have.

    Returns:
        A volume whose shape, affine and header matter; its data is zero and takes no memory.

    Raises:
        DataError: If the grid has more voxels.
    """
    no_data = np.broadcast_to(np.float32(0), source.shape)
    oriented = source.with_data(no_data).reoriented(orientation)
    shape, affine = spaced_grid(oriented, spacing_mm)
    check_grid_size(where, shape, spacing_mm, max_voxels)
    return Volume(np.broadcast_to(np.float32(0), shape), affine, source.header)
