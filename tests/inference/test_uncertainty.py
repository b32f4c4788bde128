"""The spread of ensembles and flips, by itself, in files and in an evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distsynth.config import RunConfig, with_overrides
from distsynth.errors import ConfigError
from distsynth.evaluation.baselines import Cubic
from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.ensemble import ensemble
from distsynth.inference.predictor import Predictor
from distsynth.inference.scan import spread_in_units
from distsynth.inference.uncertainty import count, predict_with_uncertainty
from distsynth.metrics.results import read_results, results_json, results_table
from distsynth.models import build_generator
from distsynth.reporting.evaluation_files import write_evaluation
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.intensities import IntensityTransform

PLAIN = {
    "data.patch_size": (16, 16),
    "data.neighbours": 0,
    "data.alignment": 1,
    "generator.channels": (4,),
    "generator.kernels": (3,),
    "generator.norm": "none",
    "stitch.stride": 8,
    "stitch.trim": 2,
}


def predictor(seed, data=None, **changes):
    config = with_overrides(RunConfig(), PLAIN | {f"stitch.{k}": v for k, v in changes.items()})
    torch.manual_seed(seed)
    generator = build_generator(config.generator, config.data.sides, config.data.channels)
    record = data or DataRecord("sha", PreprocessConfig(), (1.0,) * 3, "RAS", {}, ())
    checkpoint = Checkpoint(config, record, Position(), {}, [], {})
    return Predictor(checkpoint, generator.eval(), torch.device("cpu"), name=f"seed-{seed}")


@pytest.fixture(scope="module")
def source():
    return np.random.default_rng(0).normal(size=(21, 19, 6)).astype(np.float32)


def flipped(model, source, axes):
    return np.flip(model(np.flip(source, axes), quiet=True), axes)


@pytest.mark.parametrize("method", ["windows", "whole"])
def test_the_spread_is_the_deviation_over_members_and_flips(method, source):
    members = [predictor(seed, method=method) for seed in (1, 2, 3)]
    together = ensemble(members).stitched(flips=(0, 1))
    assert count(together) == 12
    single = [
        flipped(member, source, axes) for member in members for axes in ((), (0,), (1,), (0, 1))
    ]
    mean, spread = predict_with_uncertainty(together, source, quiet=True)
    np.testing.assert_allclose(mean, np.mean(single, axis=0), atol=1e-5)
    np.testing.assert_allclose(spread, np.std(single, axis=0, ddof=1), atol=1e-5)
    assert mean.dtype == spread.dtype == np.float32
    np.testing.assert_allclose(mean, together(source, quiet=True), atol=1e-4)


def test_members_that_agree_have_no_spread(source):
    _, spread = predict_with_uncertainty(ensemble([predictor(1), predictor(1)]), source, quiet=True)
    assert spread.max() < 1e-6
    _, spread = predict_with_uncertainty(ensemble([predictor(1), predictor(2)]), source, quiet=True)
    assert spread.min() >= 0
    assert spread.mean() > 0.01


def test_a_single_network_without_flips_is_refused(source):
    for single in (predictor(1), ensemble([predictor(1)])):
        assert count(single) == 1
        with pytest.raises(ConfigError, match=r"--ensemble runs/b runs/c\), or flips"):
            predict_with_uncertainty(single, source)
    _, spread = predict_with_uncertainty(predictor(1, flips=(0,)), source, quiet=True)
    assert spread.max() > 0


def test_the_spread_is_in_the_units_of_the_prediction():
    transform = IntensityTransform(low=100.0, high=500.0, mean=0.3, std=0.2)
    synthetic = np.linspace(-1, 2, 60, dtype=np.float32).reshape(3, 4, 5)
    spread = np.full(synthetic.shape, 0.5, np.float32)
    expected = {"source": 0.5 * 0.2 * 400, "scaled": 0.5 * 0.2 * 1000, "standardised": 0.5}
    for units, value in expected.items():
        found = spread_in_units(synthetic, spread, transform, units)
        np.testing.assert_allclose(found, value, rtol=1e-4)


def test_an_evaluation_says_how_the_uncertainty_ranks_the_error(
    shard_folder, phantom_cohort, tmp_path
):
    data = DataRecord.of(ShardSet(shard_folder).manifest)
    one, two = predictor(1, data), predictor(2, data)
    models = {"one": one, "ensemble": ensemble([one, two]), "flips": one.stitched(flips=(0,))}
    found = evaluate(models, read_cohort(phantom_cohort), baselines=[Cubic()])
    assert set(found.risk_coverage) == {"ensemble", "flips"}
    (specimen,) = found.specimens
    row = found.results["ensemble"][specimen]
    curve = found.risk_coverage["ensemble"][specimen]
    assert 0 < row["aurc_oracle"] < row["aurc"] == curve.area
    assert row["aurc_random"] == pytest.approx(curve.risk[-1])
    assert "aurc" not in found.results["one"][specimen]
    table = read_results(results_json(results_table(found.results)), "results.json")
    assert table.values["ensemble"][specimen]["aurc"] == row["aurc"]
    assert np.isnan(table.values["cubic"][specimen]["aurc"])
    text = write_evaluation(tmp_path, found, models, {})
    assert "How the uncertainty ranks the error" in text
    assert (tmp_path / "pictures" / "ensemble_risk_coverage.png").is_file()
    lines = (tmp_path / "risk_coverage.csv").read_text().splitlines()
    assert lines[0] == "method,specimen,coverage,risk,oracle"
    assert len(lines) == 1 + 2 * 101
    page = (tmp_path / "report.html").read_text()
    assert "How the uncertainty ranks the error" in page
    assert "ranking by the true error (oracle) and by chance" in page


def test_both_volumes_come_through_the_front_door(shard_folder, phantom_cohort):
    data = DataRecord.of(ShardSet(shard_folder).manifest)
    model = ensemble([predictor(1, data), predictor(2, data)])
    path = read_cohort(phantom_cohort)[-1].source
    synthetic, spread = model.predict_with_uncertainty(path, force=True)
    assert synthetic.shape == spread.shape
    np.testing.assert_allclose(synthetic.affine, spread.affine)
    np.testing.assert_allclose(synthetic.data, model.predict(path, force=True).data, atol=1e-3)
    with pytest.raises(ConfigError, match="several predictions"):
        predictor(1, data).predict_with_uncertainty(path)
