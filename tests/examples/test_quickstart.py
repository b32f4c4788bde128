from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from warm_workers import PROGRAMS

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT, NOTEBOOK = EXAMPLES / "quickstart.py", EXAMPLES / "quickstart.ipynb"
LEFT = {"cohort", "shards", "run", "evaluation"}


def left_in(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_the_whole_path_takes_fifteen_lines_at_most():
    with SCRIPT.open("rb") as file:
        lines = {
            token.start[0]
            for token in tokenize.tokenize(file.readline)
            if token.type in (tokenize.NAME, tokenize.OP, tokenize.STRING)
        }
    assert 5 <= len(lines) <= 15


def test_the_notebook_is_made_from_the_script():
    make = runpy.run_path(str(EXAMPLES / "make_notebook.py"))
    expected = make["notebook_of"](SCRIPT.read_text(encoding="utf-8"))
    found = nbformat.read(NOTEBOOK, as_version=4)
    assert found == expected, "run python examples/make_notebook.py"
    nbformat.validate(found)
    kinds = [cell.cell_type for cell in found.cells]
    assert kinds.count("code") == kinds.count("markdown") >= 4


@pytest.mark.long
@pytest.mark.slow
def test_the_script_runs_in_an_empty_folder(tmp_path):
    ended = subprocess.run(
        [sys.executable, SCRIPT],
        cwd=tmp_path,
        env=os.environ | PROGRAMS,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert left_in(tmp_path / "quickstart") == LEFT
    assert (tmp_path / "quickstart/evaluation/report.html").is_file()
    assert "(48, 48, 40)" in ended.stdout
    for method in ("identity", "cubic", "run"):
        assert method in ended.stdout
    # Messages are logs, and nobody has asked to see them.
    assert "epoch" not in ended.stderr


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs_in_an_empty_folder(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, resources=resources).execute()
    assert left_in(tmp_path / "quickstart") == LEFT
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    assert "psnr_mask" in said
    assert not [output for output in outputs if output.output_type == "error"]
