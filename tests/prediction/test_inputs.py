"""Which scans a folder, a cohort and a BIDS folder hold, and what their predictions are called."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from dicom_scans import write_slices
from scans import scan

from distsynth.prediction.inputs import bids_name, find_inputs, is_single, single_input
from sharding.volumes.volume import write_volume


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(folder: Path, out: Path, pattern: str | None = None) -> dict[str, str]:
    """Name of each scan -> its output below the folder."""
    found = find_inputs(folder, out, pattern)
    return {each.name: each.out.relative_to(out).as_posix() for each in found}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-01_T1w", "sub-01_rec-distsynth_T1w"),
        ("sub-01_ses-2_acq-fast_run-1_T2w", "sub-01_ses-2_acq-fast_rec-distsynth_run-1_T2w"),
        ("sub-01_ce-gd_dir-AP_echo-1_bold", "sub-01_ce-gd_rec-distsynth_dir-AP_echo-1_bold"),
        ("sub-01_rec-norm_run-2_T1w", "sub-01_rec-normdistsynth_run-2_T1w"),
        ("sub-01_space-T1w_desc-preproc_T1w", "sub-01_rec-distsynth_space-T1w_desc-preproc_T1w"),
    ],
)
def test_bids_names(name, expected):
    assert bids_name(name) == expected


def test_the_uncertainty_of_a_bids_scan_is_a_description_of_its_own():
    assert bids_name("sub-01_run-1_T1w", "uncertainty") == (
        "sub-01_rec-distsynth_run-1_desc-uncertainty_T1w"
    )
    assert bids_name("sub-01_desc-preproc_T1w", "uncertainty") == (
        "sub-01_rec-distsynth_desc-uncertainty_T1w"
    )


def test_a_folder_of_files_and_series(tmp_path, caplog):
    folder, out = tmp_path / "scans", tmp_path / "out"
    touch(*(folder / name for name in ("b.NII.GZ", "a.nrrd", "notes.txt", "c.mhd", "c.raw")))
    touch(folder / "d.img", folder / "d.hdr", folder / "deeper" / "e.nii.gz")
    volume = scan()
    write_slices(folder / "series", (volume.data * 1000).astype("uint16"), volume.affine)
    write_volume(folder / "e.ome.zarr", volume)
    with caplog.at_level(logging.INFO, logger="distsynth"):
        found = names(folder, out)
    assert found == {
        "a.nrrd": "a_synthetic.nii.gz",
        "b.NII.GZ": "b_synthetic.nii.gz",
        "c.mhd": "c_synthetic.nii.gz",
        "d.hdr": "d_synthetic.nii.gz",
        "e.ome.zarr": "e_synthetic.nii.gz",
        "series": "series_synthetic.nii.gz",
    }
    assert f"{folder}: left out, no volume: notes.txt" in caplog.text
    assert names(folder, out, "**/*.nii.gz") == {"deeper/e.nii.gz": "deeper/e_synthetic.nii.gz"}
    assert not is_single(folder)
    deep = names(folder, out, "**/*")
    assert {*deep} == {*found, "deeper/e.nii.gz"}, "a folder that is a volume was looked into"
    assert is_single(folder / "series")
    assert is_single(folder / "e.ome.zarr")
    assert is_single(folder / "a.nrrd")


def test_outputs_below_the_folder_are_not_taken_for_scans(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "out" / "a_synthetic.nii.gz")
    assert names(tmp_path, tmp_path / "out", "**/*.nii*") == {"a.nii": "a_synthetic.nii.gz"}


def test_folders_that_make_no_sense_are_refused(tmp_path, refused):
    out = tmp_path / "out"
    with refused(tmp_path, "no scan in this folder", "cohort.csv or a BIDS folder"):
        find_inputs(tmp_path, out)
    touch(tmp_path / "a.nii")
    with refused(tmp_path, "no scan in this folder that fits x", "Give"):
        find_inputs(tmp_path, out, "x*")
    with refused(tmp_path, "the scans lie in this folder", "another"):
        find_inputs(tmp_path, tmp_path)
    with refused(tmp_path / "none", "does not exist", "path"):
        find_inputs(tmp_path / "none", out)
    touch(tmp_path / "a.nrrd")
    with refused("a_synthetic.nii.gz", "a.nii and a.nrrd would both", "Rename"):
        find_inputs(tmp_path, out)


def test_a_cohort_needs_no_targets(tmp_path, refused):
    table = tmp_path / "cohort.csv"
    table.write_text("specimen;source\nm-2;x/b.nii\nm-1;x/a.nii\n")
    out = tmp_path / "out"
    for given in (table, tmp_path):
        assert not is_single(given)
        assert names(given, out) == {
            "m-1": "m-1_synthetic.nii.gz",
            "m-2": "m-2_synthetic.nii.gz",
        }
    assert find_inputs(table, out)[0].source == tmp_path / "x" / "a.nii"
    with refused(table, "names its scans itself", "--source-pattern"):
        find_inputs(table, out, "*.nii")
    table.write_text("specimen,target\nm-1,a.nii\n")
    with refused(table, "the column source is missing", "Add it"):
        find_inputs(table, out)
    table.write_text("specimen,source\nm-1,a.nii\nm-1,b.nii\n")
    with refused("line 3", "each once: 'm-1'", "drop the row"):
        find_inputs(table, out)
    table.write_text("specimen,source\n../m,a.nii\n")
    with refused("line 2", "letters, digits", "Rename"):
        find_inputs(table, out)


def test_a_prepared_specimen_is_predicted_from_its_own_grid(tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("specimen,source,target,native_source\nm,resampled.nii,t.nii,own.nii\n")
    (found,) = find_inputs(table, tmp_path / "out")
    assert found.source == tmp_path / "own.nii"


def test_a_bids_folder(tmp_path, refused):
    out = tmp_path / "derivatives" / "distsynth"
    files = (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_run-1_T1w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_run-2_T1w.nii",
    )
    touch(*(tmp_path / name for name in files))
    touch(tmp_path / "sub-01/anat/sub-01_T1w.json", tmp_path / "sub-01/func/sub-01_bold.nii.gz")
    found = names(tmp_path, out)
    assert list(found.values()) == [
        "sub-01/anat/sub-01_rec-distsynth_T1w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_rec-distsynth_run-1_T1w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_rec-distsynth_run-2_T1w.nii.gz",
    ]
    assert list(found) == list(files)
    first = find_inputs(tmp_path, out)[0]
    assert first.bids
    assert first.record.name == "sub-01_rec-distsynth_T1w.json"
    touch(tmp_path / "sub-01/anat/sub-01_T2w.nii.gz")
    with refused(tmp_path, "several kinds of images: T1w, T2w", "--source-pattern"):
        find_inputs(tmp_path, out)
    assert list(names(tmp_path, out, "**/*_T2w.nii.gz")) == ["sub-01/anat/sub-01_T2w.nii.gz"]
    with refused(tmp_path, "no subject has a scan that fits", "--source-pattern"):
        find_inputs(tmp_path, out, "**/*_FLAIR.nii.gz")


def test_what_lies_beside_a_single_output(tmp_path):
    found = single_input([tmp_path / "scan.nii"], tmp_path / "out" / "head.mgz")
    assert found.record == tmp_path / "out" / "head.json"
    assert found.uncertainty == tmp_path / "out" / "head_uncertainty.mgz"
    series = single_input([tmp_path / "scan"], tmp_path / "series")
    assert series.record == tmp_path / "series.json"
    assert series.uncertainty == tmp_path / "series_uncertainty.nii.gz"


def test_a_scan_can_be_read_from_any_format_that_is_found(tmp_path):
    for ending in (".nii", ".mgz", ".nrrd"):
        write_volume(tmp_path / f"x{ending.replace('.', '_')}{ending}", scan())
    assert len(names(tmp_path, tmp_path / "out")) == 3
