"""Files and folders appear whole or not at all, and only where they may."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.io.atomic import (
    PARTIAL_NAME,
    atomic_folder,
    atomic_path,
    atomic_write,
    remove_leftovers,
)
from sharding.io.errors import DataError

MARK = "results.json"


def test_a_failure_leaves_nothing(tmp_path):
    out = tmp_path / "evaluated"
    with pytest.raises(RuntimeError, match="boom"), atomic_folder(out, MARK, False) as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("boom")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_folder(tmp_path):
    out = tmp_path / "evaluated"
    with atomic_folder(out, MARK, False) as folder:
        (folder / MARK).write_text("{}")
        (folder / "old.txt").write_text("old")
    with pytest.raises(DataError, match="evaluated: the folder exists already"):
        atomic_folder(out, MARK, False).__enter__()
    with pytest.raises(RuntimeError), atomic_folder(out, MARK, True):
        raise RuntimeError
    assert (out / "old.txt").read_text() == "old"
    with atomic_folder(out, MARK, True) as folder:
        (folder / MARK).write_text("{}")
    assert [path.name for path in out.iterdir()] == [MARK]
    assert [path.name for path in tmp_path.iterdir()] == ["evaluated"]


def test_a_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="another program wrote it"):
        atomic_folder(tmp_path / "home", MARK, True).__enter__()
    assert (tmp_path / "home" / "thesis.txt").exists()


# What killed processes leave


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.tar", ".tar"), ("a.b.nii.gz", ".nii.gz"), ("x", "")]
)
def test_what_is_being_written_is_swept_and_nothing_else(tmp_path, name, suffix):
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    kept = [".hidden", ".partial-abc", "a.partial-x.tar", ".git/config", "plain", ".x.partial-a b"]
    for other in kept:
        (folder / "deep" / other).parent.mkdir(exist_ok=True)
        (folder / "deep" / other).write_text("another's")
    (folder / ".y.partial-folder").mkdir()
    atomic_write(folder / name, "whole")
    with atomic_path(folder / "deep" / name, suffix) as partial:
        partial.write_text("half")
        assert PARTIAL_NAME.fullmatch(partial.name)
        os.link(partial, tmp_path / "left")
        left = partial
    # As a killed process leaves it.
    (tmp_path / "left").rename(left)
    remove_leftovers(folder, recursive=True)
    assert not left.exists()
    assert (folder / name).read_text() == (folder / "deep" / name).read_text().replace(
        "half", "whole"
    )
    assert all((folder / "deep" / other).read_text() == "another's" for other in kept)
    assert (folder / ".y.partial-folder").is_dir()


def test_there_may_be_no_leftovers(tmp_path):
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_no_finished_file_is_taken_for_an_unfinished_one(name):
    assert not PARTIAL_NAME.fullmatch(name)


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "file", "text")
        with atomic_path(tmp_path / "replaced") as partial:
            # As a library does that writes a file of its own in the place of ours.
            partial.unlink()
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
        with atomic_folder(tmp_path / "folder", MARK, False) as folder:
            (folder / MARK).write_text("{}")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    expected = {"file": 0o666, "replaced": 0o666, "folder": 0o777}
    assert modes == {name: mode & ~umask for name, mode in expected.items()}


def attempt(tmp_path, *, whole):
    """What a killed process leaves of a folder that it was to replace."""
    out, work = tmp_path / "out", tmp_path / ".out.partial-0a1b2c3d"
    (work / "new").mkdir(parents=True)
    (work / "new" / MARK).write_text("new")
    (work / ".lock").touch()
    if whole:
        out.replace(work / "replaced")
    return work


@pytest.mark.parametrize("whole", [False, True])
def test_what_a_killed_process_left_of_a_folder_is_removed(tmp_path, whole):
    with atomic_folder(tmp_path / "out", MARK, False) as folder:
        (folder / MARK).write_text("old")
    attempt(tmp_path, whole=whole)
    with pytest.raises(DataError, match="exists already"):
        atomic_folder(tmp_path / "out", MARK, False).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / MARK).read_text() == ("new" if whole else "old")


def test_what_another_process_is_making_is_left_alone(tmp_path):
    with atomic_folder(tmp_path / "out", MARK, False) as first:
        (first / MARK).write_text("first")
        with atomic_folder(tmp_path / "out", MARK, False) as second:
            (second / MARK).write_text("second")
        assert (first / MARK).read_text() == "first"
        shutil.rmtree(tmp_path / "out")
    assert (tmp_path / "out" / MARK).read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
