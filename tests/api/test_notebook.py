"""A notebook is a place to work in: the same calls, their progress, their mistakes, in a kernel."""

import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs Jupyter's kernel: requirements/dev.txt")
nbclient = pytest.importorskip("nbclient", reason="needs Jupyter's kernel: requirements/dev.txt")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
CELLS = (
    """import sys; sys.path.insert(0, ROOT)
import pandas as pd
import tandem
plays = pd.DataFrame({"listener": [n * 7 % 30 for n in range(900)], "track": range(900)})
plays["track"] = plays["track"] * 11 % 41
tandem.prepare(plays, "D", user_column="listener", item_column="track", memory_limit="1GB")""",
    'run = tandem.train("default", data="D", out="R", overrides={"training.epochs": 2})',
    "run.recommend(user=3, k=2)",
    'run.recommend(user=3, k=2, to="pandas")',
    "try:\n    run.recommend(user=4711)\nexcept tandem.Mistake as mistake:\n    print(mistake)",
)


def outputs(cell: Any) -> str:
    """What stands below a cell; `display_data` would be a box of its own for each line."""
    assert {each.output_type for each in cell.outputs} <= {"stream", "execute_result"}
    texts = (each.get("text") or each["data"]["text/plain"] for each in cell.outputs)
    return "\n".join(texts)


def test_a_notebook_from_a_table_to_recommendations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT)]))
    cells = [f"ROOT = {str(ROOT)!r}\n{CELLS[0]}", *CELLS[1:]]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    client = nbclient.NotebookClient(
        notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    prepared, trained, listed, framed, mistaken = map(outputs, notebook.cells)
    assert "rows in the source  900" in prepared
    assert "<Dataset D: 30 users, 41 items," in prepared
    assert "training  " in trained and "loss" in trained and "Warning" not in trained
    assert "making " in listed and "[Recommendation(item=" in listed
    assert listed.count("score=") == 2
    assert framed.split()[:3] == ["item", "title", "score"]
    assert mistaken.startswith("no user 4711 in D: ")
