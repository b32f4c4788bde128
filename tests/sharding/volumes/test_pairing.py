"""Pairs found in folders as people keep them: flat, a folder a specimen, BIDS, with gaps."""

from __future__ import annotations

import pytest

from sharding.io.errors import DataError
from sharding.volumes.cohort import read_cohort, write_cohort
from sharding.volumes.pairing import pair_files


@pytest.fixture
def folder(tmp_path):
    """Makes a folder with these files in it."""

    def make(*names):
        for name in names:
            path = tmp_path / "scans" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "scans"

    return make


def shown(pairing, folder):
    """Name -> files below the folder."""
    return {
        row.name: tuple(str(file.relative_to(folder)) for file in row.volumes)
        for row in pairing.specimens
    }


def test_files_side_by_side(folder):
    scans = folder("m1_7T.nii.gz", "m1_94T.nii.gz", "m2_7T.nii.gz", "m2_94T.nii.gz")
    found = pair_files(scans, "*_94T.nii.gz", "*_7T.nii.gz")
    assert shown(found, scans) == {
        "m1": ("m1_7T.nii.gz", "m1_94T.nii.gz"),
        "m2": ("m2_7T.nii.gz", "m2_94T.nii.gz"),
    }
    assert not found.left_out
    assert {row.split for row in found.specimens} == {None}


def test_wildcards_at_both_ends_and_uncompressed_files(folder):
    scans = folder("m1_7T_a.nii", "m1_94T_a.nii.gz", "m2_7T_b.nii", "m2_94T_b.nii.gz")
    assert list(shown(pair_files(scans, "*_94T*", "*_7T*"), scans)) == ["m1_a", "m2_b"]


def test_dates_and_scan_numbers_may_differ(folder):
    scans = folder("m1_7T_0203.nii", "m1_94T_0305.nii", "m2_7T_0204.nii", "m2_94T_0306.nii")
    assert list(shown(pair_files(scans, "*_94T_*.nii", "*_7T_*.nii"), scans)) == ["m1", "m2"]


def test_a_folder_for_each_specimen(folder):
    scans = folder("A/low.nii.gz", "A/high.nii.gz", "B/low.nii.gz", "B/high.nii.gz")
    assert shown(pair_files(scans, "*/high.nii.gz", "*/low.nii.gz"), scans) == {
        "A": ("A/low.nii.gz", "A/high.nii.gz"),
        "B": ("B/low.nii.gz", "B/high.nii.gz"),
    }


def test_bids_subjects(folder):
    scans = folder(
        *(
            f"sub-{number}/ses-{field}/anat/sub-{number}_ses-{field}_{kind}.nii.gz"
            for number in ("01", "02")
            for field, kind in (("7T", "T2w"), ("94T", "T2w"))
        )
    )
    found = pair_files(scans, "sub-*/ses-94T/anat/*_T2w.nii.gz", "sub-*/ses-7T/anat/*_T2w.nii.gz")
    assert list(shown(found, scans)) == ["sub-01", "sub-02"]


def test_sessions_of_a_person_are_pairs_that_share_a_split(folder, tmp_path):
    scans = folder(
        *(
            f"sub-{number:02}/ses-{session}/anat/sub-{number:02}_ses-{session}_{kind}.nii.gz"
            for number in range(6)
            for session in (1, 2)
            for kind in ("T1w", "T2w")
        )
    )
    found = pair_files(scans, "**/*_T1w.nii.gz", "**/*_T2w.nii.gz")
    assert len(found.specimens) == 12
    assert found.specimens[0].name == "sub-00_ses-1"
    splits = {row.name: row.split for row in found.specimens}
    for number in range(6):
        assert splits[f"sub-{number:02}_ses-1"] == splits[f"sub-{number:02}_ses-2"]
    assert set(splits.values()) == {"train", "val", "test"}
    write_cohort(tmp_path / "cohort.csv", found.specimens)
    assert [row.split for row in read_cohort(tmp_path / "cohort.csv")] == list(splits.values())


def test_sessions_of_too_few_people_are_refused(folder):
    scans = folder(
        *(
            f"sub-1/ses-{session}/sub-1_ses-{session}_{kind}.nii"
            for session in (1, 2)
            for kind in ("T1w", "T2w")
        )
    )
    with pytest.raises(DataError, match="2 pairs are of 1 subjects, too few"):
        pair_files(scans, "**/*_T1w.nii", "**/*_T2w.nii")


def test_runs_of_one_role_are_ambiguous_and_told(folder):
    scans = folder("m1_7T_1.nii", "m1_7T_2.nii", "m1_94T_x.nii", "m2_7T_1.nii", "m2_94T_y.nii")
    found = pair_files(scans, "*_94T_*.nii", "*_7T_*.nii")
    assert list(shown(found, scans)) == ["m2"]
    assert found.left_out == dict.fromkeys(
        ("m1_7T_1.nii", "m1_7T_2.nii", "m1_94T_x.nii"), "several files for its source"
    )


def test_what_has_no_partner_is_named(folder):
    scans = folder("m1_7T.nii", "m1_94T.nii", "m2_7T.nii", "m3_94T.nii")
    found = pair_files(scans, "*_94T.nii", "*_7T.nii")
    assert list(shown(found, scans)) == ["m1"]
    assert found.left_out == {"m2_7T.nii": "no target", "m3_94T.nii": "no source"}


def test_targets_alone_and_masks(folder):
    scans = folder("a.nii.gz", "b.nii.gz", "a_mask.nii.gz")
    targets = pair_files(folder("x/a_T1w.nii"), "x/*_T1w.nii").specimens
    assert [(row.name, row.source) for row in targets] == [("a", None)]
    found = pair_files(scans, "[ab].nii.gz", mask="*_mask.nii.gz")
    assert [(row.name, row.mask is not None) for row in found.specimens] == [
        ("a", True),
        ("b", False),
    ]


@pytest.mark.parametrize("pattern", ["/etc/*", "../*", "m1.nii", ""])
def test_a_pattern_that_is_none_below_the_folder_is_refused(folder, pattern):
    with pytest.raises(DataError, match="--target: must be a pattern below the folder"):
        pair_files(folder("m1.nii"), pattern)


def test_a_pattern_that_matches_nothing_shows_what_is_there(folder):
    with pytest.raises(
        DataError, match=r"'\*_94T.nii' matches no file; the folder holds m1_7T.nii"
    ):
        pair_files(folder("m1_7T.nii"), "*_94T.nii", "*_7T.nii")


def test_nothing_paired_is_an_error(folder):
    with pytest.raises(DataError, match="no files are paired") as raised:
        pair_files(folder("m1_7T.nii", "m2_94T.nii"), "*_94T.nii", "*_7T.nii")
    assert "no target" in str(raised.value) and "no source" in str(raised.value)


def test_patterns_that_meet_are_refused(folder):
    with pytest.raises(DataError, match="the patterns of target and source both match"):
        pair_files(folder("m1_7T.nii", "m1_94T.nii"), "*T.nii", "*_7T.nii")


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        pair_files(tmp_path / "none", "*.nii")


def test_dicom_folders_and_volumes_of_two_files_are_paired(folder):
    scans = folder("m2_7T.hdr", "m2_7T.img", "m2_94T.mhd", "m2_94T.zraw", "m3_7T/notes.txt")
    for name in ("m1_7T", "m1_94T"):
        (scans / name).mkdir()
        for number in range(2):
            (scans / name / f"IM{number}").write_bytes(bytes(128) + b"DICM")
    found = pair_files(scans, "*_94T*", "*_7T*")
    assert shown(found, scans) == {
        "m1": ("m1_7T", "m1_94T"),
        "m2": ("m2_7T.hdr", "m2_94T.mhd"),
    }
    assert not found.left_out


@pytest.mark.parametrize("patterns", [("*_94T.*", "*_7T.*"), ("**/*_94T*", "**/*_7T*")])
def test_ome_zarr_folders_are_paired_and_not_looked_into(folder, patterns):
    scans = folder(
        "m1_7T.ome.zarr/zarr.json",
        "m1_7T.ome.zarr/0/m1_7T.nii",
        "m1_94T.zarr/.zgroup",
        "m2_7T.nii.gz",
        "m2_94T.ome.zarr/zarr.json",
    )
    found = pair_files(scans, *patterns)
    assert shown(found, scans) == {
        "m1": ("m1_7T.ome.zarr", "m1_94T.zarr"),
        "m2": ("m2_7T.nii.gz", "m2_94T.ome.zarr"),
    }
    assert not found.left_out


def test_several_contrasts_are_paired_by_a_pattern_each(tmp_path):
    for name in ("m1_T1", "m1_T2", "m1_94T", "m2_T1", "m2_94T", "m3_T1", "m3_T2", "m3_94T"):
        (tmp_path / f"{name}.nii.gz").touch()
    patterns = {"t1": "*_T1.nii.gz", "t2": "*_T2.nii.gz"}
    found = pair_files(tmp_path, "*_94T.nii.gz", patterns)
    assert [row.name for row in found.specimens] == ["m1", "m3"]
    assert all(row.contrasts == ("t1", "t2") for row in found.specimens)
    assert found.specimens[1].sources == (
        tmp_path / "m3_T1.nii.gz",
        tmp_path / "m3_T2.nii.gz",
    )
    assert found.left_out == {
        "m2_T1.nii.gz": "no source_t2",
        "m2_94T.nii.gz": "no source_t2",
    }
