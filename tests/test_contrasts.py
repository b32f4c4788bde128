"""Several contrasts as channels, from a cohort to shards, training, prediction and an export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import tiny_config
from two_contrasts import moved, write_two_contrasts

import distsynth
from distsynth.cli.main import main
from distsynth.config import with_overrides
from distsynth.data.dataset import PatchDataset
from distsynth.errors import ConfigError
from distsynth.evaluation.evaluate import evaluate
from distsynth.export.export import write_export
from distsynth.inference.ensemble import ensemble
from distsynth.inference.predictor import load_predictor
from distsynth.prediction.run import predict
from distsynth.runs.folder import BEST
from distsynth.study.survey import survey
from distsynth.training.loop import train
from sharding.shards.config import ShardConfig
from sharding.shards.shard_set import ShardSet
from sharding.shards.verify import verify
from sharding.shards.write import write_shards
from sharding.volumes.cohort import read_cohort, write_cohort
from sharding.volumes.pair import prepare_pair
from sharding.volumes.volume import read_volume, write_volume

FLAT = ShardConfig(patch_size=(16, 16), patches_per_specimen=40, stride=8, val_slices=4, seed=3)
KINDS = {
    "2d": FLAT,
    "2.5d": replace(FLAT, neighbours=1),
    "3d": replace(FLAT, patch_size=(16, 16, 16), patches_per_specimen=8, val_slices=0),
}
LEARNING = {
    "generator.residual": True,
    "generator.intensity_map": True,
    "augment.flips": (0,),
    "augment.contrast": 0.05,
    "discriminator.family": "patchgan",
    "discriminator.channels": (4,),
    "discriminator.conditional": True,
    "loss.lambda_bce": 0.01,
    "tracking.samples": 2,
}


def run_of(shards: Path, run: Path, kind: str, **more: object) -> Path:
    config = tiny_config(
        shards,
        {
            "data.patch_size": KINDS[kind].patch_size,
            "data.neighbours": KINDS[kind].neighbours,
            "data.contrasts": 2,
            "train.batch_size": 24 if kind != "3d" else 4,
        },
        LEARNING,
        more,
    )
    train(config, run)
    return run


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_two_contrasts(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def sets(cohort, tmp_path_factory):
    """Kind -> shards of both contrasts."""
    folder = tmp_path_factory.mktemp("sets")
    for kind, config in KINDS.items():
        write_shards(read_cohort(cohort), folder / kind, config, workers=1)
    return folder


@pytest.fixture(scope="module")
def runs(sets, tmp_path_factory):
    """Kind -> folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        run_of(sets / kind, folder / kind, kind)
    return folder


@pytest.fixture(scope="module")
def single(cohort, tmp_path_factory):
    """A cohort of T1 alone, and a run on it."""
    folder = tmp_path_factory.mktemp("single")
    specimens = [replace(row, contrast="", further=()) for row in read_cohort(cohort)]
    write_cohort(folder / "cohort.csv", specimens)
    write_shards(read_cohort(folder), folder / "shards", KINDS["2d"], workers=1)
    run_of(folder / "shards", folder / "run", "2d", **{"data.contrasts": 1})
    return folder


def unseen(cohort: Path, run: Path):
    """The files and the pair of a specimen that the run did not see."""
    data = load_predictor(run).checkpoint.data
    (row, *_) = (row for row in read_cohort(cohort) if data.split_of(row.name) == "test")
    return row, prepare_pair(row, data.preprocess, data.standards)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_the_contrasts_one_after_the_other(kind, cohort, sets, tmp_path):
    both = ShardSet(sets / kind)
    assert verify(both) == []
    assert both.manifest.contrasts == ("t1", "t2")
    slices = KINDS[kind].slices
    assert both.manifest.channels == 2 * slices
    found = PatchDataset(both, "train")[np.arange(5)].source
    for index in range(2):
        rows = [
            replace(row, source=row.sources[index], contrast="", further=())
            for row in read_cohort(cohort)
        ]
        write_shards(rows, tmp_path / str(index), KINDS[kind], workers=1)
        alone = ShardSet(tmp_path / str(index))
        assert alone.manifest.contrasts == ()
        expected = PatchDataset(alone, "train")[np.arange(5)].source
        part = found[:, index * slices : (index + 1) * slices]
        np.testing.assert_array_equal(part.numpy(), expected.numpy())


def test_one_source_leaves_no_trace_of_contrasts_in_a_manifest(single, sets):
    manifest = json.loads((single / "shards" / "manifest.json").read_text(encoding="utf-8"))
    assert "contrasts" not in manifest
    assert all("further" not in row for row in manifest["specimens"])
    several = json.loads((sets / "2d" / "manifest.json").read_text(encoding="utf-8"))
    assert several["contrasts"] == ["t1", "t2"]


def test_a_set_is_not_updated_to_other_contrasts(cohort, single, tmp_path, refused):
    write_shards(read_cohort(single), tmp_path / "set", KINDS["2d"], workers=1)
    with refused("set", "holds one source, the cohort the contrasts t1, t2", "another folder"):
        write_shards(read_cohort(cohort), tmp_path / "set", KINDS["2d"], workers=1, update=True)


def test_the_shards_decide_how_many_contrasts_there_are(sets, tmp_path):
    config = tiny_config(sets / "2d", {"data.contrasts": 3})
    with pytest.raises(ConfigError, match=r"data\.contrasts must be 2, as in the shards"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_two_paths_are_predicted_as_the_pair_is_evaluated(kind, cohort, runs, tmp_path):
    model = load_predictor(runs / kind)
    data = model.checkpoint.config.data
    assert (data.contrasts, data.channels) == (2, 2 * KINDS[kind].slices)
    assert model.checkpoint.data.contrasts == ("t1", "t2")
    row, pair = unseen(cohort, runs / kind)
    expected = pair.source_transform.restore(model(pair.network_source, quiet=True))
    (written,) = predict(runs / kind, row.sources, tmp_path / "out.nii.gz", force=True)
    found = read_volume(written)
    np.testing.assert_allclose(found.affine, pair.grid.affine, atol=1e-5)
    np.testing.assert_allclose(found.data, expected, atol=1e-4)
    again = model.predict([read_volume(path) for path in row.sources], force=True)
    np.testing.assert_allclose(again.data, found.data, atol=1e-4)
    blank = pair.network_source.copy()
    blank[1] = 0
    assert np.abs(model(blank, quiet=True) - model(pair.network_source, quiet=True)).max() > 0.01


def test_a_cohort_is_predicted_in_the_order_of_the_model(cohort, runs, tmp_path):
    row, _ = unseen(cohort, runs / "2d")
    lines = ["specimen,source_t2,source_t1", f"{row.name},{row.sources[1]},{row.sources[0]}"]
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join(lines), encoding="utf-8")
    (one,) = predict(runs / "2d", turned, tmp_path / "out", force=True)
    (other,) = predict(runs / "2d", row.sources, tmp_path / "other.nii.gz", force=True)
    np.testing.assert_array_equal(read_volume(one).data, read_volume(other).data)
    record = json.loads((tmp_path / "other.json").read_text(encoding="utf-8"))["distsynth"]
    assert len(record["further_contrasts_sha256"]) == 1


def test_flips_ensembles_and_regions_see_every_contrast(cohort, runs):
    model = load_predictor(runs / "2.5d")
    row, pair = unseen(cohort, runs / "2.5d")
    turned = model.stitched(flips=(0,))
    mirrored = np.flip(model(np.flip(pair.network_source, 1), quiet=True), 0)
    expected = (model(pair.network_source, quiet=True) + mirrored) / 2
    np.testing.assert_allclose(turned(pair.network_source, quiet=True), expected, atol=1e-4)
    both = ensemble([model, model])
    mean, spread = both.predict_with_uncertainty(row.sources, force=True)
    plain = model.predict(row.sources, force=True)
    np.testing.assert_allclose(mean.data, plain.data, atol=1e-3)
    assert spread.data.max() < 1e-3
    inside = model.predict(row.sources, force=True, region=True)
    assert inside.shape == plain.shape
    assert np.isclose(inside.data, plain.data, atol=1e-3).mean() > 0.3


def test_contrasts_may_lie_on_grids_of_their_own(cohort, runs, tmp_path, refused):
    row, _ = unseen(cohort, runs / "2d")
    t2, coarse = read_volume(row.sources[1]), tmp_path / "t2.nii.gz"
    affine = t2.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    write_volume(coarse, replace(t2, data=t2.data[::2, ::2, ::2], affine=affine))
    model = load_predictor(runs / "2d")
    found = model.predict([row.sources[0], coarse], force=True)
    expected = model.predict(row.sources, force=True)
    assert found.shape == expected.shape
    assert np.corrcoef(found.data.ravel(), expected.data.ravel())[0, 1] > 0.9
    write_volume(coarse, moved(t2, 100.0))
    with refused(coarse, "contrasts of a scan must overlap: this one covers 0%", "affines"):
        model.predict([row.sources[0], coarse], force=True)


def test_other_contrasts_than_those_of_the_model_are_refused(
    cohort, runs, single, tmp_path, refused
):
    row, _ = unseen(cohort, runs / "2d")
    out = tmp_path / "out.nii.gz"
    trained = "trained on the contrasts t1, t2, and one scan is given"
    with refused(row.sources[0], trained, "Give 2 scans of the specimen in this order"):
        predict(runs / "2d", row.sources[0], out)
    with refused(row.sources[0], "trained on one source, and 2 scans are given", "one scan"):
        predict(single / "run", row.sources, out)
    with refused("cohort.csv", "trained on one source, and here is the contrasts t1", "same"):
        predict(single / "run", cohort, tmp_path / "folder")
    with refused("cohort.csv", "trained on the contrasts t1, t2, and here is one source", "same"):
        predict(runs / "2d", single / "cohort.csv", tmp_path / "folder")
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.nii.gz").touch()
    with refused(scans, "contrasts t1, t2, and this is a folder", "source_t1, source_t2"):
        predict(runs / "2d", scans, tmp_path / "folder")
    with refused(cohort, "must be the contrasts of one scan, and this holds many", "by itself"):
        predict(runs / "2d", [row.sources[0], cohort], out)
    assert not out.exists()
    model = load_predictor(runs / "2d")
    with pytest.raises(ValueError, match="source must have 2 contrasts"):
        model(np.zeros((20, 20, 20), np.float32), quiet=True)


def test_each_contrast_is_compared_with_its_own_training_scans(cohort, runs, tmp_path, refused):
    model = load_predictor(runs / "2d")
    row, _ = unseen(cohort, runs / "2d")
    assert model.compare(row.sources).scans == 3
    t2, noisy = read_volume(row.sources[1]), tmp_path / "noisy.nii.gz"
    noise = np.random.default_rng(0).normal(size=t2.shape) * 0.5
    write_volume(noisy, t2.with_data(np.abs(t2.data + noise)))
    found = model.compare([row.sources[0], noisy])
    assert found.differences and all(each.words.startswith("t2: ") for each in found.differences)
    with refused(row.sources[0], "t2: noise of", "force"):
        predict(runs / "2d", [row.sources[0], noisy], tmp_path / "out.nii.gz")


def test_an_evaluation_uses_every_contrast(cohort, runs, single, tmp_path, refused):
    evaluation = distsynth.evaluate(runs / "2d", read_cohort(cohort), tmp_path / "evaluation")
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "models and the regression see t1, t2; the other baselines see t1 alone" in page
    alone = evaluate({"one": load_predictor(single / "run")}, read_cohort(single))
    (name,) = evaluation.specimens
    both, one = (
        found.results["neighbourhood-regression"][name]["psnr_mask"]
        for found in (evaluation, alone)
    )
    assert both > one + 6, "the target is two thirds of what only T2 shows"
    assert evaluation.results["cubic"][name] == pytest.approx(
        alone.results["cubic"][name], nan_ok=True
    )
    with refused(name, "trained on the contrasts t1, t2, and here is one source", "same"):
        evaluate({"2d": load_predictor(runs / "2d")}, read_cohort(single))


def test_a_network_learns_from_the_second_contrast(cohort, sets, single, tmp_path):
    """The same training sees T2 or does not: the error of the target tells."""
    errors = {}
    more = {"train.epochs": 12, "generator.channels": (8,), "optim.lr_generator": 3e-3}
    for name, shards, count in (("both", sets / "2d", 2), ("one", single / "shards", 1)):
        config = with_overrides(tiny_config(shards), {**more, "data.contrasts": count})
        train(config, tmp_path / name)
        model = load_predictor(tmp_path / name)
        row, pair = unseen(cohort, tmp_path / name)
        del row
        source = pair.network_source if name == "both" else pair.source
        error = (model(source, quiet=True) - pair.target)[pair.mask]
        errors[name] = float(np.mean(error**2))
    assert errors["both"] < 0.5 * errors["one"], errors


def test_an_export_carries_the_contrasts(cohort, runs, tmp_path):
    export = write_export(runs / "2.5d" / BEST, tmp_path / "export")
    card = (export / "README.md").read_text(encoding="utf-8")
    assert (
        "channels of a source: 6, the contrasts t1, t2 one after the other, of each a slice" in card
    )
    assert "distsynth predict . t1.nii.gz t2.nii.gz -o synthetic.nii.gz" in card
    assert "t2: training sources: 3 scans" in card
    row, pair = unseen(cohort, export)
    model, exported = load_predictor(runs / "2.5d"), load_predictor(export)
    np.testing.assert_array_equal(
        model(pair.network_source, quiet=True), exported(pair.network_source, quiet=True)
    )
    (written,) = predict(export, row.sources, tmp_path / "out.nii.gz", force=True)
    assert read_volume(written).shape == pair.grid.shape
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession((export / "model.onnx").read_bytes())
    patch = np.random.default_rng(0).normal(size=(2, 6, 16, 16)).astype(np.float32)
    (found,) = session.run(["synthetic"], {"source": patch})
    assert found.shape == (2, 1, 16, 16)
    with pytest.raises(Exception, match=r"invalid dimensions"):
        session.run(["synthetic"], {"source": patch[:, :3]})


def test_the_command_finds_several_contrasts(cohort, tmp_path, capsys):
    out = tmp_path / "cohort.csv"
    start = ["cohort", str(cohort.parent), "--target", "*_target.nii.gz", "-o", str(out)]
    assert main([*start, "--source", "t1=*_t1.nii.gz", "t2=*_t2.nii.gz"]) == 0
    assert read_cohort(out) == read_cohort(cohort)
    assert "specimen  t1" in capsys.readouterr().out
    assert main([*start, "--overwrite", "--source", "*_t1.nii.gz", "*_t2.nii.gz"]) == 2
    assert "must name each of several contrasts" in capsys.readouterr().err


def test_a_survey_measures_the_alignment_of_every_contrast(cohort, tmp_path):
    row = read_cohort(cohort)[0]
    away = tmp_path / "away.nii.gz"
    still = survey([replace(row, further=(replace(row.further[0], source=row.source),))])
    write_volume(away, moved(read_volume(row.source), 0.6))
    found = survey([replace(row, further=(replace(row.further[0], source=away),))])
    assert still.contrasts == found.contrasts == ("t1", "t2")
    assert still.displacement_voxels == 0
    assert found.displacement_voxels == pytest.approx(3, abs=0.7)
