"""Cohorts: every layout is read, every malformed one is refused, splits share no specimen."""

from __future__ import annotations

from collections import Counter

import pytest

from sharding.volumes.cohort import SPLITS, Specimen, read_cohort, write_cohort
from sharding.volumes.splits import assign_splits


@pytest.fixture
def folder(tmp_path):
    """A folder with the empty files a_s, a_t, b_s, b_t, sub/c_s and sub/c_t."""
    (tmp_path / "sub").mkdir()
    for name in ("a", "b", "sub/c"):
        for role in "st":
            (tmp_path / f"{name}_{role}.nii.gz").touch()
    return tmp_path


def write(folder, text, encoding="utf-8"):
    path = folder / "cohort.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_with_relative_paths_and_blank_fields(folder):
    text = (
        "specimen, target,Source,split,\n"
        "b,b_t.nii.gz,,Val,\n\n"
        " a , ./a_t.nii.gz ,sub/../a_s.nii.gz,,\n"
        "c,sub/c_t.nii.gz\n"
    )
    path = write(folder, text)
    expected = [
        Specimen("a", folder / "a_t.nii.gz", folder / "a_s.nii.gz", None),
        Specimen("b", folder / "b_t.nii.gz", None, "val"),
        Specimen("c", folder / "sub/c_t.nii.gz", None, None),
    ]
    assert read_cohort(path) == expected
    assert read_cohort(str(folder)) == expected, "a folder stands for its cohort.csv"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_spreadsheets_write_byte_order_marks(folder, newline):
    text = newline.join(["specimen,target", "a,a_t.nii.gz", ""])
    assert read_cohort(write(folder, text, "utf-8-sig"))[0].name == "a"


def test_the_working_directory_does_not_matter(folder, monkeypatch):
    write(folder, "specimen,target\na,a_t.nii.gz\n")
    monkeypatch.chdir(folder / "sub")
    assert read_cohort("..")[0].target.is_file()


@pytest.mark.parametrize(
    ("text", "where", "rule", "remedy"),
    [
        ("specimen,source\na,a_s.nii.gz\n", "cohort.csv", "column target is missing", "first row"),
        (
            "target\na_t.nii.gz\n",
            "cohort.csv",
            "column specimen is missing, found target",
            "first row",
        ),
        ("", "cohort.csv", "the cohort file is empty", "first row"),
        ("specimen,target\n", "cohort.csv", "holds no specimen", "Add a row"),
        ("specimen,target\na,\n", "cohort.csv, line 2", "field target is empty", "Fill it"),
        ("specimen,target\na,\0a_t.nii.gz\n", "cohort.csv", "a byte of value 0", "in UTF-8"),
        (f"specimen,target\na,{'x' * 5000}\n", "cohort.csv", "name too long", "Check the path"),
        ("specimen,target\n\n\n,a_t.nii.gz\n", "line 4", "field specimen is empty", "Fill it"),
        (
            "specimen,target,split\na,a_t.nii.gz,training\n",
            "line 2",
            "one of train, val, test, got training",
            "Correct",
        ),
        ("specimen,target\na,a_t.nii.gz,b\n", "line 2", "more fields than columns", "quotes"),
        (
            "specimen,target\na,a_t.nii.gz\na,b_t.nii.gz\n",
            "cohort.csv",
            "specimen a is listed twice",
            "one row a specimen",
        ),
        (
            "specimen,target\na/../b,a_t.nii.gz\n",
            "cohort.csv",
            r"name 'a/\.\./b' must be letters",
            "Rename",
        ),
        ("specimen,target\n..,a_t.nii.gz\n", "cohort.csv", "must be letters", "Rename"),
        ("specimen,target\na,none.nii.gz\n", "none.nii.gz", "file of a does not exist", "path"),
        (
            "specimen,source,target\na,a_t.nii.gz,none.nii.gz\n",
            "none.nii.gz",
            "file of a does not exist",
            "path",
        ),
        (
            "specimen,target\na,a_t.nii.gz\nb,sub/../a_t.nii.gz\n",
            "a_t.nii.gz",
            "a and b share this file",
            "leaks between splits",
        ),
        (
            "specimen,target,source\na,a_t.nii.gz,b_t.nii.gz\nb,b_t.nii.gz,\n",
            "b_t.nii.gz",
            "a and b share this file",
            "leaks",
        ),
        (
            "specimen,target,mask\na,a_t.nii.gz,none.nii.gz\n",
            "none.nii.gz",
            "file of a does not exist",
            "path",
        ),
        (
            "specimen,target,mask\na,a_t.nii.gz,./a_t.nii.gz\n",
            "a_t.nii.gz",
            "the volumes of a must be different",
            "a file for each",
        ),
        (
            "specimen,target,mask\na,a_t.nii.gz,a_s.nii.gz\nb,b_t.nii.gz,a_s.nii.gz\n",
            "a_s.nii.gz",
            "a and b share this file",
            "leaks",
        ),
        (
            "specimen,target,source\na,a_t.nii.gz,sub/../a_t.nii.gz\n",
            "a_t.nii.gz",
            "the volumes of a must be different",
            "a file for each",
        ),
        ('specimen,target\n"a,a_t.nii.gz\n', "cohort.csv", "not a readable CSV", "UTF-8"),
    ],
)
def test_malformed_cohorts_are_refused(folder, refused, text, where, rule, remedy):
    path = write(folder, text)
    with refused(where, rule, remedy):
        read_cohort(path)


@pytest.mark.parametrize("text", ["specimen,target,größe\n", "specimen,target\na,größe.nii\n"])
def test_other_encodings_are_refused(folder, refused, text):
    path = write(folder, text, "latin-1")
    with refused(path, "not a readable CSV file", "Save it as CSV in UTF-8"):
        read_cohort(path)


def test_a_link_does_not_hide_a_doubled_file(folder, refused):
    (folder / "other.nii.gz").symlink_to(folder / "a_t.nii.gz")
    path = write(folder, "specimen,target\na,a_t.nii.gz\nb,other.nii.gz\n")
    with refused("other.nii.gz", "a and b share this file", "leaks"):
        read_cohort(path)


def test_a_missing_cohort_is_refused(tmp_path, refused):
    with refused(tmp_path / "none", "cohort does not exist", r"cohort\.csv or a BIDS folder"):
        read_cohort(tmp_path / "none")
    with refused(tmp_path, "neither a cohort.csv nor BIDS", "Write a cohort.csv"):
        read_cohort(tmp_path)


def bids(root, subjects=("sub-02", "sub-01")):
    for subject in subjects:
        for session, suffix in (("ses-7T", "T2w"), ("ses-9T", "T2w"), ("ses-9T", "T1w")):
            anat = root / subject / session / "anat"
            anat.mkdir(parents=True, exist_ok=True)
            (anat / f"{subject}_{session}_{suffix}.nii.gz").touch()
    (root / "sub-note.txt").touch()
    return root


def test_a_bids_folder_with_patterns(tmp_path):
    root = bids(tmp_path)
    cohort = read_cohort(root, "ses-7T/anat/*_T2w.nii.gz", "ses-9T/anat/*_T2w.nii.gz")
    assert [specimen.name for specimen in cohort] == ["sub-01", "sub-02"]
    assert cohort[0].source == root / "sub-01/ses-7T/anat/sub-01_ses-7T_T2w.nii.gz"
    assert cohort[0].target == root / "sub-01/ses-9T/anat/sub-01_ses-9T_T2w.nii.gz"
    assert read_cohort(root, None, "ses-9T/anat/*_T1w.nii.gz")[0].source is None


def test_bids_patterns_must_match_one_file(tmp_path, refused):
    root = bids(tmp_path)
    with refused(root, "does not say which images", "--source-pattern and --target-pattern"):
        read_cohort(root)
    with refused(
        root, r"(?s)no subject .*\n  sub-01: .*\n  sub-02: .*matches 2 files", "Narrow or correct"
    ):
        read_cohort(root, None, "ses-9T/anat/*.nii.gz")
    with refused(
        root, r"(?s)no subject .*\n  sub-01: .*\n  sub-02: .*source .* 0 files", "Narrow or correct"
    ):
        read_cohort(root, "ses-3T/*.nii.gz", "ses-9T/anat/*_T1w.nii.gz")


def test_a_bids_subject_that_is_not_paired_is_named_and_left_out(tmp_path, caplog):
    root = bids(tmp_path)
    patterns = ("ses-7T/anat/*_T2w.nii.gz", "ses-9T/anat/*_T2w.nii.gz")
    next((root / "sub-01").glob(patterns[0])).unlink()
    assert [specimen.name for specimen in read_cohort(root, *patterns)] == ["sub-02"]
    assert "1 of 2 subjects are not paired and are left out" in caplog.text
    assert f"sub-01: source {patterns[0]} matches 0 files" in caplog.text


# Columns


def splits_of(path):
    return {row.name: row.split for row in read_cohort(path)}


@pytest.mark.parametrize(
    "first", ["specimen,target,Split", "specimen,target, split", " Specimen,TARGET,SPLIT "]
)
def test_columns_that_are_plainly_meant_are_read_and_said(folder, caplog, first):
    path = write(folder, f"{first}\na,a_t.nii.gz,test\nb,b_t.nii.gz,train\n")
    assert splits_of(path) == {"a": "test", "b": "train"}
    assert "is read as split" in caplog.text


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_spreadsheets_separate_by_what_they_like(folder, delimiter):
    rows = [("specimen", "target", "split"), ("a", "a_t.nii.gz", "val"), ("b", "b_t.nii.gz", "")]
    path = write(folder, "\n".join(delimiter.join(row) for row in rows))
    assert splits_of(path) == {"a": "val", "b": None}


@pytest.mark.parametrize(
    ("first", "rule"),
    [
        ("specimen,target,set", "the column 'set' is not known; the known ones are specimen,"),
        ("specimen,target,", "the column '' is not known"),
        ("specimen,target,split,split", "the column split is given twice"),
        ("specimen,target,split,Split", "the column split is given twice"),
        ("specimen,source", "the column target is missing, found specimen, source"),
    ],
)
def test_columns_that_say_something_else_are_refused(folder, refused, first, rule):
    fields = ["a", "a_t.nii.gz", "test", "test"][: first.count(",") + 1]
    path = write(folder, f"{first}\n{','.join(fields)}\n")
    with refused(path, rule, "Re|Keep|Add"):
        read_cohort(path)


def test_a_registration_without_its_source_is_refused(folder, refused):
    path = write(folder, "specimen,target,transform\na,a_t.nii.gz,sub\n")
    with refused(path, "transform needs the field native_source", "Give the source"):
        read_cohort(path)
    path = write(folder, "specimen,target,native_source,transform\na,a_t.nii.gz,a_s.nii.gz,sub\n")
    with refused(folder / "sub", "the folder holds no affine.tfm", "Check its path"):
        read_cohort(path)


def test_what_is_written_is_read_again(folder):
    odd = folder / 'with, comma "and quotes".nii.gz'
    odd.touch()
    cohort = [
        Specimen("a", folder / "a_t.nii.gz", folder / "a_s.nii.gz", "train"),
        Specimen("b", odd, None, None),
    ]
    (folder / "out").mkdir()
    write_cohort(folder / "out" / "cohort.csv", cohort)
    text = (folder / "out" / "cohort.csv").read_text()
    assert text.startswith("specimen,source,target,split\na,../a_s.nii.gz,../a_t.nii.gz,train\n")
    again = read_cohort(folder / "out")
    assert [(row.name, row.split) for row in again] == [("a", "train"), ("b", None)]
    assert again[1].target.samefile(odd)
    assert again[1].source is None


def test_masks_are_written_and_read_where_any_specimen_has_one(folder):
    masked = Specimen(
        "a", folder / "a_t.nii.gz", folder / "a_s.nii.gz", None, folder / "b_s.nii.gz"
    )
    write_cohort(folder / "cohort.csv", [masked, Specimen("b", folder / "b_t.nii.gz")])
    assert (folder / "cohort.csv").read_text() == (
        "specimen,source,target,mask,split\na,a_s.nii.gz,a_t.nii.gz,b_s.nii.gz,\nb,,b_t.nii.gz,,\n"
    )
    again = read_cohort(folder)
    assert again[0] == masked
    assert again[1].mask is None


def test_real_cohorts_are_read(real_t1w, real_pairs):
    t1w = read_cohort(real_t1w)
    sizes = Counter(assign_splits(t1w).values())
    assert all(sizes[split] >= 1 for split in SPLITS)
    assert all(specimen.source for specimen in read_cohort(real_pairs))


def test_a_dicom_folder_is_a_volume_that_no_two_specimens_share(tmp_path, refused):
    for name in ("a_t.nii.gz", "b_t.nii.gz", "scan/IM1", "scan/IM2", "pair.hdr", "pair.img"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    path = tmp_path / "cohort.csv"
    path.write_text("specimen,source,target\na,scan,a_t.nii.gz\nb,pair.hdr,b_t.nii.gz\n")
    first, second = read_cohort(path)
    assert first.source == tmp_path / "scan"
    assert second.source == tmp_path / "pair.hdr"
    path.write_text("specimen,source,target\na,scan,a_t.nii.gz\nb,scan/IM2,b_t.nii.gz\n")
    with refused(tmp_path / "scan/IM2", "a and b share this file", "leaks"):
        read_cohort(path)
    path.write_text("specimen,source,target\na,pair.img,a_t.nii.gz\nb,pair.hdr,b_t.nii.gz\n")
    with refused(tmp_path / "pair.hdr", "a and b share this file", "leaks"):
        read_cohort(path)


def test_paths_are_resolved_for_other_processes(folder, monkeypatch):
    write(folder, "specimen,target,source\na,a_t.nii.gz,sub/../a_s.nii.gz\nb,b_t.nii.gz,\n")
    monkeypatch.chdir(folder / "sub")
    first, second = (row.resolved() for row in read_cohort(".."))
    assert first == Specimen("a", folder / "a_t.nii.gz", folder / "a_s.nii.gz")
    assert second == Specimen("b", folder / "b_t.nii.gz")
