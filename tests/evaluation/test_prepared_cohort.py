"""A model that was evaluated on a prepared cohort predicts the same from the raw scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cheap_preparation import CHEAP

from distsynth.config import RunConfig, with_overrides
from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.predictor import Predictor
from distsynth.models import build_generator
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from sharding.registration.prepare import prepare_cohort
from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_source
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.pair import prepare_pair
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_volume, write_volume

PLAIN = replace(CHEAP, steps=("scale", "resample"))
MOVED = replace(CHEAP, steps=("scale", "rigid", "resample"))


def predictor(spacing_mm, test):
    """A small stack of convolutions with random weights, which never saw the specimen."""
    config = with_overrides(
        RunConfig(),
        {
            "data.neighbours": 0,
            "data.alignment": 1,
            "data.patch_size": (16, 16),
            "generator.channels": (4, 4),
            "generator.kernels": (3,),
            "generator.norm": "none",
            "stitch.stride": 8,
            "stitch.trim": 3,
        },
    )
    torch.manual_seed(5)
    generator = build_generator(config.generator, config.data.sides, config.data.channels)
    record = DataRecord("sha", PreprocessConfig(), spacing_mm, "RAS", {test: "test"}, ())
    checkpoint = Checkpoint(config, record, Position(), {}, [], {})
    return Predictor(checkpoint, generator.eval(), torch.device("cpu"))


def evaluated_and_from_raw(raw, prepared):
    """What the evaluation of the prepared specimen predicts, and `predict` from the raw scan.

    Both standardised by the source's transform, on the target's grid, a rim left out: there one
    source was continued before it was interpolated and the other after.
    """
    pair = prepare_pair(prepared, PreprocessConfig())
    model = predictor(pair.grid.spacing_mm, raw.name)
    evaluated = model(pair.source, quiet=True)
    source = read_volume(raw.source)
    if prepared.transform is not None:
        # Where the registration says that the scan lies.
        into = np.linalg.inv(Transform.load(prepared.transform).affine)
        source = replace(source, affine=into @ source.affine)
    synthetic = model.predict(source, like=read_volume(raw.target))
    low, high = np.percentile(source.data, PreprocessConfig().clip_percentiles)
    transform = replace(pair.source_transform, low=float(low), high=float(high))
    scaled = (synthetic.data - transform.low) / (transform.high - transform.low)
    from_raw = (scaled - transform.mean) / transform.std
    inner = pair.mask.copy()
    rim = (slice(4, -4),) * 3
    inner[rim] = False
    inside = pair.mask & ~inner
    return evaluated[inside], from_raw[inside]


def assert_same(evaluated, from_raw):
    """Within the second clipping of the prepared scan; tissue of another scale differs tenfold."""
    spread = float(evaluated.std())
    assert spread > 0.02
    apart = np.abs(evaluated - from_raw)
    assert float(np.percentile(apart, 99)) < 0.05 * spread
    assert float(evaluated.mean()) == pytest.approx(float(from_raw.mean()), abs=0.03 * spread)


@pytest.fixture(scope="module", params=["by the headers", "registered"])
def raw_and_prepared(request, tmp_path_factory):
    """A raw specimen whose target shows a part of what its source shows, and the prepared one."""
    folder = tmp_path_factory.mktemp("raw")
    whole = phantom_volume((48, 44, 40), seed=4)
    moved = request.param == "registered"
    simulation = SimulationConfig(noise=0.01, shift_mm=1.0 if moved else 0.0, seed=2)
    source, _ = simulate_source(whole, simulation, "a")
    affine = whole.affine.copy()
    affine[:3, 3] = whole.affine[:3, :3] @ (8, 6, 4)
    target = Volume(np.ascontiguousarray(whole.data[8:36, 6:36, 4:34]), affine)
    write_volume(folder / "s.nii.gz", source)
    write_volume(folder / "t.nii.gz", target)
    raw = Specimen("a", folder / "t.nii.gz", folder / "s.nii.gz", "test")
    config = MOVED if moved else PLAIN
    done = prepare_cohort([raw], folder / "out", config, workers=1)
    assert not done.failures
    assert done.rows[0].kept == (("rigid",) if moved else ())
    return raw, read_cohort(folder / "out")[0]


@pytest.mark.slow
def test_predictions_of_raw_scans_are_those_that_were_evaluated(raw_and_prepared):
    assert_same(*evaluated_and_from_raw(*raw_and_prepared))


def test_the_evaluation_predicts_from_what_the_prepared_pair_holds(raw_and_prepared, tmp_path):
    _, prepared = raw_and_prepared
    pair = prepare_pair(prepared, PreprocessConfig())
    model = predictor(pair.grid.spacing_mm, "a")
    evaluate({"model": model}, [replace(prepared, split="test")], volumes=tmp_path, baselines=[])
    written = read_volume(tmp_path / "a_model.nii.gz", constant=True)
    expected = pair.source_transform.restore(model(pair.source, quiet=True))
    np.testing.assert_allclose(written.data, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.long
@pytest.mark.slow
def test_of_a_real_pair_too(real_pairs, tmp_path):
    raw = next(row for row in read_cohort(real_pairs) if row.name == "sub-05")
    assert not prepare_cohort([raw], tmp_path / "out", PLAIN, workers=1).failures
    assert_same(*evaluated_and_from_raw(raw, read_cohort(tmp_path / "out")[0]))
