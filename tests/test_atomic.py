"""A folder appears whole or not at all, and only where it may."""

from __future__ import annotations

import pytest

from sharding.atomic import atomic_folder
from sharding.errors import DataError

MARK = "results.json"


def test_a_failure_leaves_nothing(tmp_path):
    out = tmp_path / "judged"
    with pytest.raises(RuntimeError, match="boom"), atomic_folder(out, MARK, False) as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("boom")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_folder(tmp_path):
    out = tmp_path / "judged"
    with atomic_folder(out, MARK, False) as folder:
        (folder / MARK).write_text("{}")
        (folder / "old.txt").write_text("old")
    with pytest.raises(DataError, match="judged: the folder exists already"):
        atomic_folder(out, MARK, False).__enter__()
    with pytest.raises(RuntimeError), atomic_folder(out, MARK, True):
        raise RuntimeError
    assert (out / "old.txt").read_text() == "old"
    with atomic_folder(out, MARK, True) as folder:
        (folder / MARK).write_text("{}")
    assert [path.name for path in out.iterdir()] == [MARK]
    assert [path.name for path in tmp_path.iterdir()] == ["judged"]


def test_a_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="nothing of ours to overwrite"):
        atomic_folder(tmp_path / "home", MARK, True).__enter__()
    assert (tmp_path / "home" / "thesis.txt").exists()
