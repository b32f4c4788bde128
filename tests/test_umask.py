"""The user's umask says who may read what is written, in both directions."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from small_study import run_study

pytestmark = pytest.mark.slow

COMMANDS = ("phantom", "shard", "train", "predict", "evaluate", "report", "export")


@pytest.mark.long
@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_all_files_and_folders_of_a_study_follow_the_umask(umask, tmp_path):
    run_study(tmp_path, COMMANDS, umask=umask)
    written = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    kinds = {path.suffix for path in written}
    assert kinds >= {".gz", ".csv", ".tar", ".pt", ".png", ".html", ".json", ".jsonl", ".onnx"}
    assert kinds >= {".wandb", ".safetensors"}
    found = {path.relative_to(tmp_path): _mode(path) for path in written}
    expected = {name: _asked(tmp_path / name) & ~umask for name in found}
    assert found == expected


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _asked(path: Path) -> int:
    """What a program asks for that leaves the decision to the umask."""
    return 0o777 if path.is_dir() else 0o666
