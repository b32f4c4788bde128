"""One file to one file: what is said, refused, written, and the record beside it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import exchanged, noisy, scan, thick_slices

from distsynth.inference.duration import expected_seconds, in_words
from distsynth.inference.predictor import load_predictor
from distsynth.inference.scan import ScanOptions
from distsynth.prediction.file import FileOptions, predict_file
from distsynth.runs.checkpoint import load_checkpoint, save_checkpoint
from distsynth.runs.folder import BEST
from distsynth.runs.package import export_files, write_files
from sharding.volumes.header import codes_of
from sharding.volumes.volume import read_volume, write_volume


def written(path: Path, volume) -> Path:
    write_volume(path, volume)
    return path


def record_of(out: Path):
    return json.loads(out.with_name(out.name.partition(".")[0] + ".json").read_text())


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("distsynth")]


def test_two_lines_say_what_is_done_and_that_nothing_is_unlike_training(
    predictor, scans, tmp_path, caplog
):
    with caplog.at_level(logging.INFO, logger="distsynth"):
        predict_file(predictor, scans / "a.nii.gz", tmp_path / "out.nii.gz")
    done, like = lines(caplog)
    assert done == (
        f"{scans / 'a.nii.gz'}: 32x30x28 voxels of 0.4 mm become 64x60x56 voxels of 0.2 mm, "
        "resampled by cubic splines; 0.82 MB, in the source's units of intensity; less than 5 s on "
        "the cpu"
    )
    assert like == (
        f"{scans / 'a.nii.gz'}: like the 3 training scans in voxel size, extent of tissue, "
        "contrast and noise"
    )


def test_a_scan_turned_in_its_array_is_reoriented_and_not_refused(predictor, tmp_path, caplog):
    path = written(tmp_path / "turned.nii.gz", scan(21).reoriented("PSL"))
    with caplog.at_level(logging.INFO, logger="distsynth"):
        predict_file(predictor, path, tmp_path / "out.nii.gz")
    assert "reoriented from PSL to RAS, resampled by cubic splines" in lines(caplog)[0]
    assert ": like the 3 training scans" in lines(caplog)[1]


def test_slices_thicker_than_in_training_are_refused_unless_forced(
    predictor, tmp_path, refused, caplog
):
    path = written(tmp_path / "thick.nii.gz", thick_slices(scan(21), 5))
    out = tmp_path / "out.nii.gz"
    rule = r"unlike the 3 training scans: slices of 2 mm \(inferior-superior\) where training had"
    with refused(path, rule, "--force"):
        predict_file(predictor, path, out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["thick.nii.gz"]
    with caplog.at_level(logging.WARNING, logger="distsynth"):
        predict_file(predictor, path, out, FileOptions(scan=ScanOptions(force=True)))
    (warning,) = lines(caplog)
    assert "detail across slices cannot be restored" in warning
    unlike = record_of(out)["distsynth"]["unlike_training"]
    assert {"voxel size": True}.items() <= {
        each["what"]: each["refused"] for each in unlike
    }.items()


@pytest.mark.parametrize("spoil", [exchanged, lambda volume: noisy(volume, 0.6)])
def test_other_scans_that_are_refused(spoil, predictor, tmp_path, refused):
    path = written(tmp_path / "bad.nii.gz", spoil(scan(21)))
    with refused(path, "unlike the 3 training scans", "trained on such scans"):
        predict_file(predictor, path, tmp_path / "out.nii.gz")


def test_a_model_without_a_profile_says_that_it_cannot_compare(model, tmp_path, caplog):
    old = load_checkpoint(model / BEST)
    save_checkpoint(tmp_path / "old.pt", replace(old, data=replace(old.data, profile=None)))
    old_predictor = load_predictor(tmp_path / "old.pt", "cpu")
    thick = written(tmp_path / "thick.nii.gz", thick_slices(scan(21), 5))
    with caplog.at_level(logging.INFO, logger="distsynth"):
        predict_file(old_predictor, thick, tmp_path / "out.nii.gz")
    _, said = lines(caplog)
    assert said == (
        f"{thick}: the model does not tell what its training scans were like, so that this scan "
        "cannot be compared with them"
    )
    assert record_of(tmp_path / "out.nii.gz")["distsynth"]["training_scans"] == 0


def test_the_front_door_compares_refuses_and_forces(predictor, scans, refused):
    assert predictor.compare(scans / "a.nii.gz").differences == ()
    thick = thick_slices(scan(21), 5)
    assert next(each.what for each in predictor.compare(thick).differences) == "voxel size"
    with refused("source", "slices of 2 mm", "force=True"):
        predictor.predict(thick)
    assert predictor.predict(thick, force=True).spacing_mm == pytest.approx((0.2,) * 3)


def test_the_record_says_what_made_the_prediction(predictor, scans, tmp_path):
    out = predict_file(predictor.stitched(trim=2), scans / "a.nii.gz", tmp_path / "out.nii.gz")
    record = record_of(out)
    own = record["distsynth"]
    assert record["GeneratedBy"] == [{"Name": "distsynth", "Version": own["version"]}]
    assert "Research use only" in record["Description"]
    assert own["model"]["name"] == "run"
    assert own["model"]["family"] == "conv"
    assert own["model"]["shards_sha256"] == predictor.checkpoint.data.manifest_sha256
    assert own["stitching"]["trim"] == 2
    assert (own["units"], own["dtype"]) == ("source", "float32")
    assert own["grid"] == {"shape": [64, 60, 56], "spacing_mm": [0.2] * 3, "orientation": "RAS"}
    assert own["unlike_training"] == []
    assert str(scans) not in out.with_name("out.json").read_text()


def test_an_export_is_the_same_model_as_its_checkpoint(predictor, scans, tmp_path):
    write_files(tmp_path / "export", export_files(predictor.checkpoint))
    exported = load_predictor(tmp_path / "export", "cpu")
    keys = []
    for model, name in ((predictor, "one"), (exported, "two")):
        out = predict_file(model, scans / "a.nii.gz", tmp_path / f"{name}.nii.gz")
        keys.append(record_of(out)["distsynth"]["key"])
    assert keys[0] == keys[1]
    weights = predictor.checkpoint.learners["generator"]["network"]
    assert len(weights) > 1


# Units and types of voxels


def test_units(predictor, scans, tmp_path):
    found = {}
    for units in ("source", "scaled", "standardised"):
        options = FileOptions(scan=ScanOptions(units=units))
        path = predict_file(predictor, scans / "a.nii.gz", tmp_path / f"{units}.nii.gz", options)
        found[units] = read_volume(path).data
    source = read_volume(scans / "a.nii.gz").data
    low, high = np.percentile(source, (0.1, 99.9))
    np.testing.assert_allclose(
        found["scaled"], (found["source"] - low) / (high - low) * 1000, atol=0.1
    )
    scaled = np.clip((source - low) / (high - low), 0, 1)
    np.testing.assert_allclose(
        found["standardised"], (found["scaled"] / 1000 - scaled.mean()) / scaled.std(), atol=1e-3
    )


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mgz", ".nrrd"])
def test_integers_are_rounded_intensities(ending, predictor, scans, tmp_path):
    scaled = ScanOptions(units="scaled")
    plain = predict_file(
        predictor, scans / "a.nii.gz", tmp_path / f"a{ending}", FileOptions(scan=scaled)
    )
    path = predict_file(
        predictor,
        scans / "a.nii.gz",
        tmp_path / f"b{ending}",
        FileOptions(scan=scaled, dtype="int16"),
    )
    expected, found = read_volume(plain), read_volume(path)
    assert np.array_equal(found.data, np.rint(expected.data))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    assert path.stat().st_size < 0.7 * plain.stat().st_size
    if ending.startswith(".nii"):
        image = nib.load(path)
        assert image.get_data_dtype() == np.int16
        assert image.dataobj.slope == 1
        assert nib.load(plain).get_data_dtype() == np.float32


def test_ome_zarr_in_and_out_gives_what_nifti_gives(predictor, scans, tmp_path, refused):
    volume = read_volume(scans / "a.nii.gz")
    path = written(tmp_path / "a.ome.zarr", volume)
    expected = read_volume(predict_file(predictor, path, tmp_path / "out.nii.gz"))
    flipped = predictor.stitched(flips=(0,))
    options = FileOptions(scan=ScanOptions(uncertainty=True), overwrite=True)
    out = tmp_path / "out.ome.zarr"
    for _ in range(2):
        # The second time it replaces a folder.
        predict_file(flipped, path, out, options)
    assert read_volume(tmp_path / "out_uncertainty.ome.zarr").shape == expected.shape
    predict_file(predictor, scans / "a.nii.gz", out, FileOptions(overwrite=True))
    found = read_volume(out)
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    assert record_of(out)["distsynth"]["grid"]["orientation"] == "RAS"
    affine = volume.affine.copy()
    affine[0, 1] = 0.1
    oblique = written(tmp_path / "oblique.nii.gz", replace(volume, affine=affine))
    with refused("no.ome.zarr", "axes are oblique", r"Write \.nii\.gz"):
        predict_file(predictor, oblique, tmp_path / "no.ome.zarr")
    assert not list(tmp_path.glob("no*"))


def test_integers_that_cannot_hold_the_intensities_are_refused(predictor, scans, tmp_path, refused):
    out = tmp_path / "out.nii.gz"
    with refused(out, "fewer than 200 integers apart", "--units scaled"):
        predict_file(predictor, scans / "a.nii.gz", out, FileOptions(dtype="int16"))
    large = read_volume(scans / "a.nii.gz")
    path = written(tmp_path / "large.nii.gz", large.with_data(large.data * 1e6))
    with refused(out, "int16 holds -32768 to 32767", "--units scaled"):
        predict_file(predictor, path, out, FileOptions(dtype="int16"))
    assert not out.exists()
    options = FileOptions(dtype="uint16")
    with refused("out.mgz", "holds float32 or int16, not uint16", r"\.nii\.gz"):
        predict_file(predictor, scans / "a.nii.gz", tmp_path / "out.mgz", options)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 4), (2, 2), (3, 1)])
def test_the_codes_of_qform_and_sform_are_kept(codes, predictor, scans, tmp_path):
    image = nib.load(scans / "a.nii.gz")
    affine = image.affine
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    nib.save(image, tmp_path / "in.nii.gz")
    predict_file(predictor, tmp_path / "in.nii.gz", tmp_path / "out.nii.gz")
    found = nib.load(tmp_path / "out.nii.gz")
    assert codes_of(found.header) == codes
    expected = affine @ np.diag([0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(found.affine, expected, atol=1e-5)
    if codes[0] and codes[1]:
        np.testing.assert_allclose(found.get_qform(), found.get_sform(), atol=1e-5)


# The expected time


def test_the_expected_time_grows_with_the_voxels(predictor, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    # A second a patch of 16x16: so many as go through the network.
    windows = predictor.stitched(method="windows")
    shape = (32, 32, 4)
    assert expected_seconds(windows, shape) == len(windows.locations(shape))
    assert expected_seconds(windows.stitched(flips=(0, 1)), shape) == 4 * 9 * 4
    whole = predictor.stitched(method="whole")
    assert expected_seconds(whole, shape) == 4 * 4


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.1, "less than 5 s"),
        (7, "about 5 s"),
        (42, "about 40 s"),
        (100, "about 2 min"),
        (3000, "about 50 min"),
        (9000, "about 2 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


# Records of other things


def test_a_file_that_is_no_record_is_not_replaced(predictor, scans, tmp_path, refused):
    (tmp_path / "out.json").write_text('{"my": "notes"}')
    out = tmp_path / "out.nii.gz"
    with refused("out.json", "exists already", "--overwrite"):
        predict_file(predictor, scans / "a.nii.gz", out)
    assert (tmp_path / "out.json").read_text() == '{"my": "notes"}'
    predict_file(predictor, scans / "a.nii.gz", out, FileOptions(overwrite=True))
    assert "distsynth" in record_of(out)


def test_the_record_of_an_interrupted_prediction_is_replaced(predictor, scans, tmp_path):
    out = predict_file(predictor, scans / "b.nii.gz", tmp_path / "out.nii.gz")
    out.unlink()
    before = record_of(out)
    predict_file(predictor, scans / "a.nii.gz", out)
    assert record_of(out)["distsynth"]["scan_sha256"] != before["distsynth"]["scan_sha256"]
