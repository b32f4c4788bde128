"""What stands between a model and a better image: oracles, and where its error lies.

    python -m benchmarks.race_ceiling COHORT [RUN ...] [--split val]

COHORT has splits; its pairs are those that `distsynth shard --for-preset best` cuts. An oracle is
told something of the target that no method knows, so that it says what the lack of it costs. In the
mask, on the scale of the target's percentiles [0, 1], means over people:

- `half band`: the target itself without the frequencies that a source of half as many voxels along
  each axis cannot carry. No blur, no noise, contrast known: what is missing must be guessed.
- `regression, own`: the regression on 5x5x5 voxels fitted on the very person it is tested on.
- For each model: its prediction; with the best map of its intensities to this person's target;
  with the best smooth gain, fitted within a Gaussian of GAIN_VOXELS.

And the share of the energy of the target, and of each model's error, beyond the half band.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from distsynth.evaluation.baselines import IntensityMap, NeighbourhoodRegression
from distsynth.inference.predictor import Predictor, load_predictor
from distsynth.metrics.image import mse, psnr, windowed_ssim
from distsynth.presets import BLOCKS
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.pair import Pair, prepare_pair
from sharding.volumes.slabs import Empty

GAIN_VOXELS = 8.0
"""Standard deviation of the Gaussian within which a gain is fitted."""
HALF = 0.25
"""Cycles a voxel that a source of half as many voxels carries along an axis."""

Array = NDArray[np.floating[Any]]


@dataclass
class PredictionAsSource:
    """A pair whose source is a prediction, to fit a map from the one to the other."""

    pair: Pair
    source: Array

    @property
    def network_source(self) -> Array:
        """The prediction."""
        return self.source

    @property
    def nearest(self) -> Array:
        """The prediction."""
        return self.source

    @property
    def target(self) -> Array:
        """Of the pair."""
        return self.pair.target

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Of the pair."""
        return self.pair.mask

    @property
    def empty(self) -> Empty:
        """Of the pair."""
        return self.pair.empty


def beyond(shape: Sequence[int]) -> NDArray[np.bool_]:
    """Where the half spectrum (scipy's rfftn) of a volume of this shape leaves the half band."""
    last = len(shape) - 1
    steps = [
        np.fft.rfftfreq(side) if axis == last else np.fft.fftfreq(side)
        for axis, side in enumerate(shape)
    ]
    high = [np.abs(step) > HALF for step in steps]
    return high[0][:, None, None] | high[1][:, None] | high[2]


def half_band(volume: Array) -> Array:
    """A volume, shape (x, y, z), without the frequencies beyond HALF along any axis."""
    spectrum = np.fft.rfftn(volume)
    spectrum[beyond(volume.shape)] = 0
    return np.fft.irfftn(spectrum, volume.shape, (0, 1, 2)).astype(np.float32)


def share_beyond(volume: Array) -> float:
    """Share of a volume's energy, its mean left out, beyond the half band, from 0 to 1."""
    total = float(np.square(volume - volume.mean(), dtype=np.float64).sum())
    low = half_band(volume - volume.mean())
    return 1 - float(np.square(low, dtype=np.float64).sum()) / total


def with_own_gain(prediction: Array, target: Array, mask: NDArray[np.bool_]) -> Array:
    """The prediction times the smooth gain that brings it nearest to the target."""
    inside = prediction * mask

    def smooth(product: Array) -> Array:
        return ndimage.gaussian_filter(product, GAIN_VOXELS)

    return prediction * smooth(inside * target) / np.maximum(smooth(inside * inside), 1e-6)


def oracles(pair: Pair) -> Iterator[tuple[str, Array]]:
    """Name and volume, on the pair's scale, of what needs no model."""
    yield "half band", half_band(pair.target)
    regression = NeighbourhoodRegression()
    regression.fit([pair])
    yield "regression, own", regression.predict(pair)


def of_model(name: str, pair: Pair, prediction: Array) -> Iterator[tuple[str, Array]]:
    """The same of a model."""
    yield name, prediction
    mapped = IntensityMap()
    as_source = PredictionAsSource(pair, prediction)
    mapped.fit([as_source])
    yield f"{name}, own intensity map", mapped.predict(as_source)
    yield f"{name}, own gain", with_own_gain(prediction, pair.target, pair.mask)


def scores(pair: Pair, volume: Array) -> tuple[float, float]:
    """PSNR and windowed 3D SSIM in the mask, on [0, 1]."""
    scaled = pair.target_transform.unstandardise(volume)
    target = pair.target_scaled
    similarity = windowed_ssim(scaled, target, 1.0, pair.mask)
    return psnr(mse(scaled, target, pair.mask), 1.0), similarity


def measure(models: dict[str, Predictor], people: Sequence[Specimen]) -> str:
    """Rows and shares as Markdown, means over people."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    config = BLOCKS["best"].preprocess
    for person in people:
        pair = prepare_pair(person, config)
        inside = pair.mask.astype(np.float32)
        shares["the target"].append(share_beyond(pair.target_scaled * inside))
        for name, volume in oracles(pair):
            found[name].append(scores(pair, volume))
        for model, predictor in models.items():
            prediction = predictor(pair.network_source)
            for name, volume in of_model(model, pair, prediction):
                found[name].append(scores(pair, volume))
            error = (prediction - pair.target) * inside
            shares[f"the error of {model}"].append(share_beyond(error))
    lines = [f"| {len(people)} people | PSNR, dB | SSIM |", "|---|---|---|"]
    for name, values in found.items():
        ratio, similarity = np.mean(values, axis=0)
        lines.append(f"| {name} | {ratio:.2f} | {similarity:.4f} |")
    lines += ["", "| energy beyond the half band | share |", "|---|---|"]
    lines += [f"| {name} | {np.mean(values):.3f} |" for name, values in shares.items()]
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--split", default="val")
    words = parser.parse_args()
    torch.set_num_threads(1)
    models = {str(run): load_predictor(run, "cpu") for run in words.runs}
    people = [row for row in read_cohort(words.cohort) if row.split == words.split]
    print(measure(models, people))


if __name__ == "__main__":
    main()
