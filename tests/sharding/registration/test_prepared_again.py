"""A folder that is prepared again: what is finished stays, what has changed is redone."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import pytest
from cheap_preparation import CHEAP
from prepared_folders import PLAIN, contents, inodes, prepared, redone

from sharding.io.lease import lease
from sharding.registration import step_work
from sharding.volumes.cohort import read_cohort
from sharding.volumes.volume import read_volume, write_volume

pytestmark = pytest.mark.slow


def test_a_second_run_does_nothing_and_writes_the_same(copy, tmp_path):
    out = tmp_path / "out"
    first = prepared(read_cohort(copy), out)
    before, files = inodes(out), contents(out)
    assert len(before) == 6
    second = prepared(read_cohort(copy), out)
    assert inodes(out) == before
    assert contents(out) == files
    assert second == first


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({"min_overlap": 0.3}, {"resample"}),
        ({"foreground_threshold": 0.06}, {"resample"}),
        ({"clip_percentiles": (0.5, 99.5)}, {"scale", "resample"}),
        ({"allow_finer_source": True}, set()),
    ],
)
def test_a_change_redoes_only_what_follows_from_it(one, tmp_path, change, steps):
    out = tmp_path / "out"
    prepared([one], out)
    before = inodes(out)
    changed = replace(PLAIN, preprocess=replace(PLAIN.preprocess, **change))
    prepared([one], out, changed)
    assert redone(before, inodes(out)) == {f"{one.name}/{step}" for step in steps}


def test_a_new_raw_file_redoes_its_specimen_only(copy, tmp_path):
    out = tmp_path / "out"
    specimens = read_cohort(copy)
    prepared(specimens, out)
    before, files = inodes(out), contents(out)
    volume = read_volume(specimens[1].target)
    write_volume(specimens[1].target, volume.with_data(volume.data + (volume.data > 500)))
    prepared(specimens, out)
    assert redone(before, inodes(out)) == {"phantom-01/scale", "phantom-01/resample"}
    after = contents(out)
    name = "phantom-01/scale/target.nii.gz"
    assert after[name] != files[name]


def test_a_step_left_out_and_taken_in_again(one, tmp_path):
    out = tmp_path / "out"
    both = replace(PLAIN, steps=("correct", "scale", "resample"))
    prepared([one], out, both)
    files, before = contents(out), inodes(out)
    prepared([one], out)
    assert contents(out) != files
    prepared([one], out, both)
    assert contents(out) == files
    assert redone(before, inodes(out)) == {f"{one.name}/scale", f"{one.name}/resample"}


@pytest.mark.parametrize("damage", ["cut", "gone", "no record"])
def test_damaged_results_are_made_again(one, tmp_path, damage):
    out = tmp_path / "out"
    prepared([one], out)
    files = contents(out)
    victim = out / one.name / "scale" / "source.nii.gz"
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:100])
    elif damage == "gone":
        victim.unlink()
    else:
        (out / one.name / "resample" / "step.json").write_text("{")
    assert prepared([one], out).failures == {}
    assert contents(out) == files


def test_killed_before_it_began_it_begins(one, tmp_path):
    """All that is there is what a lease wrote, or was about to write."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("..lease.json.partial-0a1b2c3d", "..lease.json.lock"):
        (out / name).touch()
    assert prepared([one], out, CHEAP).failures == {}
    assert not [path for path in out.rglob(".*") if ".partial-" in path.name]


def test_a_second_run_at_the_same_time_is_refused(one, tmp_path, refused):
    out = tmp_path / "out"
    prepared([one], out)
    files = contents(out)
    with lease(out), refused(out, "another process is writing here: process", "Wait"):
        prepared([one], out)
    assert contents(out) == files
    prepared([one], out)


def test_somebody_elses_folder_is_refused(one, tmp_path, refused):
    with refused(tmp_path, "holds something else", "new folder"):
        prepared([one], tmp_path)
    (tmp_path / "file").touch()
    with refused("file", "is a file", "Give a folder"):
        prepared([one], tmp_path / "file")
    (tmp_path / "empty").mkdir()
    prepared([one], tmp_path / "empty")


def test_a_specimen_named_like_a_file_of_ours_is_refused(one, tmp_path, refused):
    with refused("cohort.csv", "named like a file that prepare writes", "Rename"):
        prepared([replace(one, name="cohort.csv")], tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_named_and_what_is_finished_stays(
    copy, tmp_path, refused, monkeypatch, workers
):
    out = tmp_path / "out"
    specimens = read_cohort(copy)
    if workers == 1:

        def full(path, volume):
            if "phantom-01" in str(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            write_volume(path, volume)

        monkeypatch.setattr(step_work, "write_volume", full)
    else:
        # A whole process tree cannot be patched: the error itself is handed through the pool.
        monkeypatch.setattr("sharding.registration.prepare.prepare_specimen", no_space)
    with refused(out, "no space is left on the disk", "start again"):
        prepared(specimens, out, workers=workers)
    assert not (out / "cohort.csv").exists()
    monkeypatch.undo()
    before = inodes(out)
    assert prepared(specimens, out).failures == {}
    assert not redone(before, {name: inodes(out)[name] for name in before})


def no_space(specimen, out, config):  # noqa: ARG001
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failure_amid_a_cohort_leaves_the_rest(copy, tmp_path):
    specimens = read_cohort(copy)
    bad = specimens[1].target
    bad.write_bytes(bad.read_bytes()[:1000])
    out = tmp_path / "out"
    result = prepared(specimens, out)
    assert list(result.failures) == ["phantom-01"]
    assert result.failures["phantom-01"].startswith("phantom-01_target.nii.gz: ")
    assert [row.name for row in result.rows] == ["phantom-00", "phantom-02"]
    assert [specimen.name for specimen in read_cohort(out)] == ["phantom-00", "phantom-02"]
    told = json.loads((out / "quality.json").read_text())
    assert told["failures"] == result.failures
    assert "cut short or damaged" in (out / "quality.html").read_text()


def test_a_cohort_in_which_all_fail_has_no_cohort_file(one, tmp_path):
    out = tmp_path / "out"
    result = prepared([replace(one, source=None)], out)
    assert "has no source volume" in result.failures[one.name]
    assert result.rows == result.specimens == ()
    assert not (out / "cohort.csv").exists()
    assert (out / "quality.json").exists()


def test_a_bug_is_not_taken_for_a_failure_of_the_specimen(one, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(step_work, "fit_intensities", broken)
    with pytest.raises(ZeroDivisionError):
        prepared([one], tmp_path / "out")
