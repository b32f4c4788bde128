"""The whole path on real scans, a few of them: what only real anatomy and headers can show."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from distsynth.config import with_overrides
from distsynth.evaluation.evaluate import Evaluation, evaluate
from distsynth.inference.predictor import load_predictor
from distsynth.prediction.file import predict_file
from distsynth.presets import preset
from distsynth.reporting.evaluation_files import write_evaluation
from distsynth.training.loop import train
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.simulation.simulate import SimulationConfig, simulate_cohort
from sharding.volumes.cohort import Specimen, read_cohort

pytestmark = [pytest.mark.slow, pytest.mark.long]

PEOPLE = {"sub-02": "train", "sub-01": "val", "sub-03": "test"}


@pytest.fixture(scope="module")
def people(real_t1w: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Specimen]:
    """Three people of the cohort's own splits, with simulated sources."""
    folder = tmp_path_factory.mktemp("people")
    chosen = [row for row in read_cohort(real_t1w) if row.name in PEOPLE]
    assert {row.name: row.split for row in chosen} == PEOPLE
    return read_cohort(simulate_cohort(chosen, folder, SimulationConfig()))


@pytest.fixture(scope="module")
def run_dir(people: list[Specimen], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on them: enough to beat interpolation, not to shine."""
    folder = tmp_path_factory.mktemp("run")
    shards = ShardConfig(patches_per_specimen=200, axes=(2,), val_slices=3, shard_mb=4)
    write_shards(people, folder / "shards", shards, workers=1)
    config = with_overrides(
        preset("small"),
        {
            "data.shards": str(folder / "shards"),
            "generator.channels": (8, 8),
            "train.epochs": 2,
            "train.batch_size": 8,
            "train.device": "cpu",
            "train.precision": "bf16",
            "stitch.axes": (2,),
            "tracking.mode": "disabled",
        },
    )
    train(config, folder / "run")
    return folder / "run"


def test_bf16_predicts_what_float32_does(people: list[Specimen], run_dir: Path) -> None:
    """Within 0.02 dB, on a whole head that no training saw."""
    predictors = {
        precision: load_predictor(run_dir, "cpu", precision) for precision in ("no", "bf16")
    }
    found = evaluate(predictors, people, baselines=())
    rounded, exact = (found.results[name]["sub-03"]["psnr_mask"] for name in ("bf16", "no"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=0.02)


@pytest.fixture(scope="module")
def evaluation(people: list[Specimen], run_dir: Path) -> Evaluation:
    """The run and the baselines on the test person."""
    return evaluate({"run": load_predictor(run_dir / "checkpoints" / "best.pt")}, people)


def test_the_ground_is_as_known(evaluation: Evaluation) -> None:
    psnr = {name: rows["sub-03"]["psnr_mask"] for name, rows in evaluation.results.items()}
    assert evaluation.specimens == ["sub-03"]
    # The intensity map alone gains 3 to 7 dB over cubic; the regression a little more.
    assert 3 < psnr["intensity-map"] - psnr["cubic"] < 7
    assert psnr["intensity-map"] < psnr["neighbourhood-regression"] < psnr["intensity-map"] + 2
    assert psnr["cubic"] + 2 < psnr["run"]
    seams = evaluation.results["run"]["sub-03"]["seam_index"]
    assert 0.8 < seams < 1.5


def test_an_evaluation_is_written_whole(
    evaluation: Evaluation, run_dir: Path, tmp_path: Path
) -> None:
    predictors = {"run": load_predictor(run_dir / "checkpoints" / "best.pt")}
    text = write_evaluation(tmp_path / "out", evaluation, predictors, {"run": run_dir})
    assert "neighbourhood-regression" in text
    written = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {
        "table.txt",
        "results.csv",
        "results.json",
        "report.html",
        "sub-03.png",
        "run_curves.png",
    }


def test_a_prediction_lies_on_the_target(
    people: list[Specimen], run_dir: Path, tmp_path: Path
) -> None:
    person = next(row for row in people if row.name == "sub-03")
    assert person.source is not None
    predictor = load_predictor(run_dir / "checkpoints" / "best.pt").stitched(stride=50)
    out = predict_file(predictor, person.source, tmp_path / "synthetic.nii.gz")
    synthetic, target = nib.load(out), nib.load(person.target)
    np.testing.assert_allclose(synthetic.affine, target.affine, atol=1e-4)
    # Sampled at every second voxel, 83 source voxels stand for 165 target voxels or 166: the
    # prediction fills the source's field of view.
    assert target.shape == (165, 193, 131)
    assert synthetic.shape == (166, 194, 132)
    a, b = (np.asarray(image.dataobj, np.float32) for image in (synthetic, target))
    a = a[tuple(map(slice, b.shape))]
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95


def test_two_real_acquisitions_make_shards(real_pairs: Path, tmp_path: Path) -> None:
    specimens = read_cohort(real_pairs)[:3]
    config = ShardConfig(patches_per_specimen=20, val_slices=1, stride=64)
    manifest = write_shards(specimens, tmp_path / "shards", config, workers=1).manifest
    assert [row.overlap > 0.8 for row in manifest.specimens] == [True] * 3
    shutil.rmtree(tmp_path / "shards")
