from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
from tiny_runs import tiny_config

from distsynth.errors import ConfigError
from distsynth.evaluation.baselines import Cubic
from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.predictor import Predictor, load_predictor
from distsynth.metrics.definitions import METRICS
from distsynth.metrics.image import volume_metrics
from distsynth.metrics.results import RESULTS_FILE, read_results
from distsynth.prediction.file import FileOptions, predict_file
from distsynth.reporting.evaluation_files import write_evaluation
from distsynth.training.loop import train
from sharding.io.errors import DataError
from sharding.volumes.cohort import read_cohort
from sharding.volumes.pair import prepare_pair
from sharding.volumes.volume import read_volume, write_volume

BASELINES = ("identity", "cubic", "intensity-map", "neighbourhood-regression")


@pytest.fixture(scope="module")
def run_dir(shard_folder, tmp_path_factory):
    """A short run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(tiny_config(shard_folder), folder)
    return folder


@pytest.fixture(scope="module")
def predictor(run_dir):
    return load_predictor(run_dir / "checkpoints" / "best.pt", "cpu")


@pytest.fixture(scope="module")
def specimens(phantom_cohort):
    return read_cohort(phantom_cohort)


@pytest.fixture(scope="module")
def evaluated(predictor, specimens, tmp_path_factory):
    volumes = tmp_path_factory.mktemp("evaluated")
    return evaluate({"first": predictor}, specimens, "test", volumes), volumes


def of_split(specimens, predictor, split):
    splits = predictor.checkpoint.data.splits
    return [specimen for specimen in specimens if splits[specimen.name] == split]


class Perfect(Predictor):
    """Knows the answers: source bytes to target."""

    answers: dict[bytes, np.ndarray]

    def __call__(self, source, title="", quiet=False, empty=None, variance=None):  # noqa: ARG002
        if variance is not None:
            variance[...] = 0
        return self.answers[source.tobytes()]

    def stitched(self, **changes):  # noqa: ARG002
        return self


def perfect(predictor, specimens):
    made = Perfect(**{each.name: getattr(predictor, each.name) for each in fields(predictor)})
    pairs = [prepare_pair(row, predictor.checkpoint.data.preprocess) for row in specimens]
    answers = {pair.source.tobytes(): pair.target for pair in pairs}
    object.__setattr__(made, "answers", answers)
    return made


def test_every_method_is_evaluated_on_every_test_specimen(evaluated, predictor, specimens):
    evaluation, _ = evaluated
    names = [row.name for row in of_split(specimens, predictor, "test")]
    assert evaluation.specimens == names != []
    assert evaluation.training == 3
    assert list(evaluation.results) == [*BASELINES, "first"]
    for method, rows in evaluation.results.items():
        assert list(rows) == names
        for row in rows.values():
            assert row.keys() == {key for key in METRICS if not key.startswith("aurc")}
            for metric, value in row.items():
                # Baselines have no patches, so no seam and no window.
                missing = metric.startswith(("seam", "overlap")) and method != "first"
                assert math.isnan(value) == missing, (method, metric)


def test_numbers_are_those_of_the_prediction(evaluated, predictor, specimens):
    evaluation, _ = evaluated
    (row,) = of_split(specimens, predictor, "test")
    pair = prepare_pair(row, predictor.checkpoint.data.preprocess)
    for method, synthetic in (
        ("first", predictor(pair.source, quiet=True)),
        ("cubic", pair.source),
        ("identity", pair.nearest),
    ):
        expected = volume_metrics(synthetic, pair.target, pair.target_transform, pair.mask)
        found = evaluation.results[method][row.name]
        assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_saved_volumes_are_those_of_predict_on_the_target_grid(
    evaluated, predictor, specimens, tmp_path
):
    _, volumes = evaluated
    (row,) = of_split(specimens, predictor, "test")
    assert [path.name for path in volumes.iterdir()] == [f"{row.name}_first.nii.gz"]
    assert row.source is not None
    out = predict_file(predictor, row.source, tmp_path / "out.nii.gz", FileOptions(like=row.target))
    one, other = read_volume(out), read_volume(volumes / f"{row.name}_first.nii.gz")
    np.testing.assert_array_equal(one.affine, other.affine)
    np.testing.assert_array_equal(one.data, other.data)


@pytest.mark.slow
def test_a_perfect_model_has_perfect_numbers(predictor, specimens, tmp_path):
    models = {"perfect": perfect(predictor, of_split(specimens, predictor, "test"))}
    evaluation = evaluate(models, specimens)
    (row,) = evaluation.results["perfect"].values()
    for region in ("mask", "whole"):
        assert row[f"mse_{region}"] == 0
        assert row[f"psnr_{region}"] == row[f"psnr255_{region}"] == math.inf
        assert row[f"ssim_{region}"] == pytest.approx(1)
        assert row[f"ssim_global_{region}"] == pytest.approx(1)
    for metric in ("seam_index", "seam_index_outside", "seam_index_relative", "checkerboard"):
        assert row[metric] == 1, metric
    assert row["seam_excess"] == row["overlap_disagreement"] == 0
    assert "inf" in write_evaluation(tmp_path, evaluation, models, {})
    json.loads((tmp_path / RESULTS_FILE).read_text())


@pytest.mark.slow
def test_what_is_written(evaluated, predictor, run_dir, tmp_path):
    evaluation, _ = evaluated
    out = tmp_path / "evaluated"
    text = write_evaluation(out, evaluation, {"first": predictor}, {"first": run_dir})
    assert (out / "table.txt").read_text().strip() == text.strip()
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    (name,) = evaluation.specimens
    for method, by_specimen in evaluation.results.items():
        assert method in text
        found = {
            row["metric"]: float(row["value"] or "nan")
            for row in rows
            if row["method"] == method and row["statistic"] == "value"
        }
        assert found == pytest.approx(by_specimen[name], nan_ok=True)
    results = json.loads((out / RESULTS_FILE).read_text())
    assert results["methods"].keys() == evaluation.results.keys()
    names = {path.name for path in (out / "pictures").iterdir()}
    assert names == {f"{name}.png", "first_curves.png"}
    page = (out / "report.html").read_text()
    assert name in page
    for place in (tmp_path, run_dir.parent, predictor.checkpoint.config.data.shards):
        assert str(place) not in page


@pytest.mark.slow
def test_conventions_are_written_for_the_model_and_cubic(predictor, specimens, tmp_path):
    models = {"first": predictor}
    evaluation = evaluate(models, specimens, baselines=[Cubic()], conventions=True)
    text = write_evaluation(tmp_path, evaluation, models, {})
    (name,) = evaluation.specimens
    assert list(evaluation.conventions) == ["cubic", "first"]
    with (tmp_path / "conventions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 2 * 2 * 6
    found = {tuple(row.values())[:6]: float(row["value"] or "nan") for row in rows}
    ours = evaluation.results["first"][name]
    key = ("first", name, "standardised", "whole", "volume", "psnr_255")
    assert found[key] == pytest.approx(ours["psnr255_whole"], rel=1e-6)
    key = ("first", name, "standardised", "mask", "volume", "psnr_range")
    assert found[key] == pytest.approx(ours["psnr_mask"], rel=1e-6)
    markdown = (tmp_path / "conventions.md").read_text()
    page = (tmp_path / "conventions.html").read_text()
    for shown in (markdown, page):
        assert f"{ours['psnr255_whole']:.2f}" in shown
        assert "by convention alone" in shown
        assert "fastMRI" in shown
    assert str(tmp_path) not in page
    assert f"  first †  {name}" in text
    count = predictor.checkpoint.position.step
    report = (tmp_path / "report.html").read_text()
    for shown in (text, report):
        assert f"Optimiser steps: first {count}. † Untrained: fewer than 1,000" in shown
    assert "first †" in report
    assert f"## first †\n\nTrained for {count} optimiser steps." in markdown
    again = read_results((tmp_path / RESULTS_FILE).read_bytes(), "results.json")
    assert again.steps == {"first": count}


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_splits_may_be_judged(split, predictor, specimens):
    evaluation = evaluate({"first": predictor}, specimens, split)
    assert evaluation.specimens == [row.name for row in of_split(specimens, predictor, split)]


@pytest.mark.parametrize("which", ["source", "target", "both"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_scan_of_training_under_another_name_is_refused(
    which, split, predictor, specimens, tmp_path
):
    seen = of_split(specimens, predictor, split)[0]
    unseen = of_split(specimens, predictor, "test")[0]
    files = {}
    for name in ("source", "target"):
        origin = getattr(seen if which in (name, "both") else unseen, name)
        # Another name and another compression; the scan is the same.
        files[name] = tmp_path / f"other_{name}.nii"
        write_volume(files[name], read_volume(origin))
    other = replace(unseen, name="other", **files)
    cohort = [*of_split(specimens, predictor, "train"), other]
    with pytest.raises(DataError, match="seen in training or validation") as caught:
        evaluate({"first": predictor}, cohort)
    assert caught.value.where == str(files["target" if which == "target" else "source"])


def test_a_specimen_that_the_shards_did_not_hold_is_a_test_specimen(predictor, specimens, tmp_path):
    source = of_split(specimens, predictor, "test")[0]
    files = {}
    for name in ("source", "target"):
        files[name] = tmp_path / f"new_{name}.nii.gz"
        shutil.copy(getattr(source, name), files[name])
    new = replace(source, name="new", **files)
    evaluation = evaluate({"first": predictor}, [*specimens, new])
    assert evaluation.specimens == [source.name, "new"]
    assert evaluation.results["first"]["new"] == pytest.approx(
        evaluation.results["first"][source.name], nan_ok=True
    )


def altered(specimen, folder, name, **slices):
    """The specimen under another name, its files cut to these slices across z."""
    files = {}
    for kind, part in slices.items():
        volume = read_volume(getattr(specimen, kind))
        files[kind] = folder / f"{name}_{kind}.nii.gz"
        write_volume(files[kind], replace(volume, data=volume.data[:, :, part]))
    return replace(specimen, name=name, **files)


def test_a_thin_specimen_has_all_numbers_but_windowed_ssim(predictor, specimens, tmp_path):
    whole = of_split(specimens, predictor, "test")[0]
    thin = altered(whole, tmp_path, "thin", target=slice(8), source=slice(4))
    found = evaluate({"first": predictor}, [*specimens, thin], baselines=[Cubic()])
    values = found.results["first"]["thin"]
    assert {key for key, value in values.items() if math.isnan(value)} == {
        "ssim_mask",
        "ssim_whole",
    }
    pair = prepare_pair(thin, predictor.checkpoint.data.preprocess)
    error = np.mean((predictor(pair.source, quiet=True) - pair.target)[pair.mask] ** 2)
    assert values["mse_mask"] == pytest.approx(error, rel=1e-4)
    text = write_evaluation(tmp_path / "out", found, {"first": predictor}, {})
    note = "SSIM 3D has no value for thin, and so no mean: it needs 11 voxels along each axis."
    assert text.count(note) == 2
    assert note in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_a_mask_without_a_voxel_of_the_source_leaves_out_consistency(
    predictor, specimens, tmp_path
):
    whole = of_split(specimens, predictor, "test")[0]
    volume = read_volume(whole.target)
    mask = np.zeros(volume.shape, np.float32)
    mask[6:18, 6:18, 12] = 1
    write_volume(tmp_path / "mask.nii.gz", replace(volume, data=mask))
    small = replace(whole, name="small", mask=tmp_path / "mask.nii.gz")
    found = evaluate({"first": predictor}, [*specimens, small], baselines=[Cubic()])
    values = found.results["first"]["small"]
    assert {key for key, value in values.items() if math.isnan(value)} == {"consistency_error"}
    text = write_evaluation(tmp_path / "out", found, {"first": predictor}, {})
    assert "Consistency has no value for small, and so no mean: the mask holds no tissue" in text


def test_nothing_to_judge_or_to_fit_on_is_refused(predictor, specimens):
    without_test = of_split(specimens, predictor, "train")
    with pytest.raises(
        ConfigError, match=r"nothing to evaluate: no specimen .* split test \(3 in train\)"
    ):
        evaluate({"first": predictor}, without_test)
    with pytest.raises(ConfigError, match="no training specimen"):
        evaluate({"first": predictor}, of_split(specimens, predictor, "test"))


def test_models_of_other_data_and_names_of_baselines_are_refused(predictor, specimens):
    data = replace(predictor.checkpoint.data, manifest_sha256="other")
    other = replace(predictor, checkpoint=replace(predictor.checkpoint, data=data))
    with pytest.raises(ConfigError, match="second was trained on other shards"):
        evaluate({"first": predictor, "second": other}, specimens)
    with pytest.raises(ConfigError, match="a baseline is named cubic too"):
        evaluate({"cubic": predictor}, specimens)


def test_whole_slices_are_judged_beside_windows_and_told(predictor, specimens, tmp_path):
    both = {"windows": predictor, "whole": predictor.stitched(method="whole")}
    evaluation = evaluate(both, specimens, baselines=())
    for windows, whole in zip(*(evaluation.results[name].values() for name in both), strict=True):
        assert whole["psnr_mask"] == pytest.approx(windows["psnr_mask"], abs=1)
        assert whole["psnr_mask"] != windows["psnr_mask"], "untrimmed windows end where they end"
    write_evaluation(tmp_path, evaluation, both, {})
    page = (tmp_path / "report.html").read_text()
    assert "whole slices along axes 2" in page
    assert "16x16 patches, stride 8" in page
