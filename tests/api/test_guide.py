"""docs/guides/python.md: its Python runs from top to bottom, in a folder with plays.parquet."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.api.run import close_all

pytestmark = [pytest.mark.xdist_group("ranks"), pytest.mark.timeout(300)]
GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    random = np.random.default_rng(0)
    rows = 1500
    listener = random.integers(0, 40, rows)
    track = random.integers(0, 20, rows) * 3 + listener % 3
    plays = {
        "listener": [str(4700 + each) for each in listener],
        "track": track,
        "at": np.arange(rows),
    }
    pq.write_table(pa.table(plays), tmp_path / "plays.parquet")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    close_all()


def test_the_guide_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = BLOCK.findall(GUIDE.read_text())
    assert len(blocks) == 6
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{GUIDE.name}, block {number}", "exec"), names)
    assert (folder / "VECTORS/bundle.json").is_file()
    assert (folder / "RUN/evaluation.json").is_file()
    assert "40 60" in capsys.readouterr().out
