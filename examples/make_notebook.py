"""Make quickstart.ipynb from quickstart.py: `python examples/make_notebook.py`.

The script is cut at its lines `# %%`; cells that begin with `# %% [markdown]` are text.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

SCRIPT = Path(__file__).with_name("quickstart.py")
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
MARKDOWN = "[markdown]"


def notebook_of(script: str) -> nbformat.NotebookNode:
    """The script as a notebook without outputs; the same script gives the same notebook."""
    cells = []
    for number, block in enumerate(re.split(r"^# %% *", script, flags=re.MULTILINE)[1:]):
        head, _, body = block.partition("\n")
        body = body.strip()
        if head.strip() == MARKDOWN:
            cell = new_markdown_cell(re.sub(r"^# ?", "", body, flags=re.MULTILINE))
        else:
            cell = new_code_cell(body)
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


if __name__ == "__main__":
    nbformat.write(notebook_of(SCRIPT.read_text(encoding="utf-8")), NOTEBOOK)
