"""The notebooks run from top to bottom, and what is stored in them is what such a run shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def outputs(book) -> list[tuple[str, str]]:
    """(kind, text) of every output; seconds, which no two runs share, left out."""
    found = []
    for cell in book.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = next((kind for kind in ("text/html", "image/png", "text/plain") if kind in data), output.output_type)
            text = "" if kind == "image/png" else str(data.get(kind, output.get("text", "")))
            found.append((kind, re.sub(r"\d+\.\d s\b", "", text)))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_was_shown_by_a_clean_run(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not re.search(r"/(home|root|work|tmp|usr)/", path.read_text(encoding="utf-8"))


@pytest.mark.model
@pytest.mark.usefixtures("smollm2")  # unpacks the model where that has not been done, or skips
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_stored(path):
    stored = nbformat.read(path, as_version=4)
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(ROOT)}}).execute()
    for cell in book.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    shown = outputs(book)
    assert [kind for kind, _ in shown] == [kind for kind, _ in outputs(stored)]
    tables = [text for kind, text in shown if kind == "text/html"]
    assert tables and all(text.strip() for text in tables)
