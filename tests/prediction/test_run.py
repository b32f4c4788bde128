"""Many scans in one call: what is finished stays, what fails does not stop the others."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from killing import changes_of, killed_at
from moments import FileMoment
from scans import scan, thick_slices

from distsynth.cli.main import main
from distsynth.errors import ConfigError
from distsynth.prediction.run import predict
from sharding.io.errors import CohortError, DataError
from sharding.volumes.volume import read_volume, write_volume

NAMES = ["a_synthetic.nii.gz", "b_synthetic.nii.gz", "c_synthetic.nii.gz"]


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_scan_of_a_folder_is_predicted_once(predictor, scans, tmp_path, caplog):
    out = tmp_path / "out"
    found = predict(predictor, scans, out)
    assert [path.name for path in found] == NAMES
    made = stamps(out)
    assert set(made) == {*NAMES, *(name.replace(".nii.gz", ".json") for name in NAMES)}
    (alone,) = predict(predictor, scans / "b.nii.gz", tmp_path / "b.nii.gz")
    assert read_volume(found[1]).data.tobytes() == read_volume(alone).data.tobytes()
    with caplog.at_level(logging.INFO, logger="distsynth"):
        assert predict(predictor, scans, out) == found
    assert "3 of 3 scans were finished already, by the same model" in caplog.text
    assert stamps(out) == made
    # Where all may be replaced, what is finished is kept too.
    predict(predictor, scans, out, overwrite=True)
    assert stamps(out) == made


def test_another_model_settings_or_scan_are_not_taken_for_finished(predictor, scans, tmp_path):
    own, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(scans, own)
    predict(predictor, own, out)
    made = stamps(out)
    with pytest.raises(CohortError, match=r"3 of 3 scans failed") as caught:
        predict(predictor, own, out, stitching={"trim": 2})
    assert "exists already" in str(caught.value)
    assert stamps(out) == made
    shutil.copy(scans / "a.nii.gz", own / "b.nii.gz")
    with pytest.raises(CohortError) as caught:
        predict(predictor, own, out)
    assert list(caught.value.failures) == ["b.nii.gz"]
    predict(predictor, own, out, overwrite=True)
    now = stamps(out)
    assert {name for name in now if now[name] != made[name]} == {
        "b_synthetic.nii.gz",
        "b_synthetic.json",
    }
    a, b = (read_volume(out / f"{name}_synthetic.nii.gz").data for name in "ab")
    assert a.tobytes() == b.tobytes()


def test_a_scan_that_fails_does_not_stop_the_others(model, scans, tmp_path, capsys):
    own, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(scans, own)
    (own / "b.nii.gz").write_bytes(b"nothing")
    write_volume(own / "a.nii.gz", thick_slices(scan(21), 5))
    args = ["predict", str(model), str(own), "-o", str(out), "--device", "cpu"]
    assert main(args) == 1
    said = capsys.readouterr()
    assert said.out == ""
    *_, last = said.err.split("2 of 3 scans failed:")
    assert "a.nii.gz: unlike the 3 training scans: slices of 2 mm" in last
    assert "b.nii.gz: not a readable NIfTI file" in last
    assert sorted(stamps(out)) == ["c_synthetic.json", "c_synthetic.nii.gz"]
    made = stamps(out)
    shutil.copy(scans / "b.nii.gz", own / "b.nii.gz")
    assert main([*args, "--force"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(out / name) for name in NAMES]
    assert "1 of 3 scans were finished already" in said.err
    assert {name: when for name, when in stamps(out).items() if name in made} == made


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(model, scans, tmp_path):
    def words(out: Path) -> list[str | Path]:
        return ["distsynth", "predict", model, scans, "-o", out, "--device", "cpu"]

    whole = tmp_path / "whole"
    changes = changes_of(words(whole), whole)
    expected = contents(whole)
    assert len(expected) == 6
    for count in range(1, len(changes) + 1, 4):
        out = tmp_path / f"killed-{count}"
        killed_at(FileMoment(f"{out}/*", count=count, torn=count % 2 == 0), words(out))
        kept = {
            path.name: path.stat().st_mtime_ns
            for path in out.glob("*.nii.gz")
            if not path.name.startswith(".")
        }
        assert kept.keys() <= set(NAMES)
        predict(model, scans, out, device="cpu")
        assert {name: when for name, when in stamps(out).items() if name in kept} == kept
        assert contents(out) == expected


def test_a_bids_folder_becomes_a_derivative(predictor, scans, tmp_path):
    data, out = tmp_path / "data", tmp_path / "data" / "derivatives" / "distsynth"
    for name, session in (("a", ""), ("b", "ses-1/")):
        entities = f"sub-{name}_{session.replace('/', '_')}"
        folder = data / f"sub-{name}" / session / "anat"
        folder.mkdir(parents=True)
        shutil.copy(scans / f"{name}.nii.gz", folder / f"{entities}T1w.nii.gz")
    found = predict(predictor, data, out)
    assert [path.relative_to(out).as_posix() for path in found] == [
        "sub-a/anat/sub-a_rec-distsynth_T1w.nii.gz",
        "sub-b/ses-1/anat/sub-b_ses-1_rec-distsynth_T1w.nii.gz",
    ]
    record = json.loads(found[1].with_name("sub-b_ses-1_rec-distsynth_T1w.json").read_text())
    assert record["Sources"] == ["bids::sub-b/ses-1/anat/sub-b_ses-1_T1w.nii.gz"]
    dataset = json.loads((out / "dataset_description.json").read_text())
    assert dataset["DatasetType"] == "derivative"
    assert dataset["GeneratedBy"][0]["Name"] == "distsynth"
    assert predict(predictor, data, out) == found


def test_a_cohort_is_predicted_by_the_names_of_its_specimens(predictor, scans, tmp_path):
    (tmp_path / "cohort.csv").write_text(f"specimen,source\nmouse-1,{scans / 'a.nii.gz'}\n")
    found = predict(predictor, tmp_path / "cohort.csv", tmp_path / "out")
    assert found == [tmp_path / "out" / "mouse-1_synthetic.nii.gz"]


def test_options_that_do_not_go_together_are_refused(predictor, scans, tmp_path):
    one = scans / "a.nii.gz"
    for given, out, options, words in (
        (scans, "out", {"like": one}, "--like gives the grid of one scan"),
        (scans, "out", {"keep_patient": True}, "--keep-patient is for one DICOM series"),
        (one, "o.nii", {"pattern": "*"}, "--source-pattern chooses the scans of a folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            predict(predictor, given, tmp_path / out, **options)


def test_several_models_predict_their_mean(predictor, model, scans, tmp_path):
    one = predict(predictor, scans / "a.nii.gz", tmp_path / "one.nii.gz")
    two = predict([predictor, model], scans / "a.nii.gz", tmp_path / "two.nii.gz", device="cpu")
    # The same model twice.
    a, b = (read_volume(path).data for path in (*one, *two))
    assert abs(a - b).max() < 1e-4
    record = json.loads((tmp_path / "two.json").read_text())
    assert record["distsynth"]["model"]["name"] == "run + run"


def test_an_uncertainty_is_written_beside_each_prediction(predictor, model, scans, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="an uncertainty needs several predictions"):
        predict(predictor, scans, out, uncertainty=True)
    assert not out.exists()
    options = {"stitching": {"flips": (0,)}, "uncertainty": True}
    found = predict(predictor, scans, out, **options)
    for path in found:
        spread = read_volume(path.with_name(path.name.replace("synthetic", "uncertainty")))
        assert spread.shape == read_volume(path).shape
        assert spread.data.min() >= 0
        assert 0 < spread.data.mean() < 0.5 * read_volume(path).data.std()
    assert predict(predictor, scans, out, **options) == found
    # A prediction without it is another one.
    with pytest.raises(CohortError, match="exists already"):
        predict(predictor, scans, out, stitching={"flips": (0,)})
    one = tmp_path / "one.nii.gz"
    one.with_name("one_uncertainty.nii.gz").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"one_uncertainty\.nii\.gz: the file exists already"):
        predict(predictor, scans / "a.nii.gz", one, **options)
    assert (
        main(
            [
                "predict",
                str(model),
                str(scans / "a.nii.gz"),
                "-o",
                str(one),
                "--overwrite",
                "--uncertainty",
                "--stitch.flips",
                "0",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert read_volume(one.with_name("one_uncertainty.nii.gz")).shape == read_volume(one).shape


def test_a_region_is_another_prediction(predictor, scans, tmp_path):
    out = tmp_path / "out"
    (whole, *_) = predict(predictor, scans, out)
    with pytest.raises(CohortError, match="exists already"):
        predict(predictor, scans, out, region=True)
    (part,) = predict(predictor, scans / "a.nii.gz", tmp_path / "part.nii.gz", region=True)
    record = json.loads((tmp_path / "part.json").read_text())
    assert record["distsynth"]["region"] is True
    one, other = (read_volume(path).data for path in (whole, part))
    assert one.shape == other.shape
