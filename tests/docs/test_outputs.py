"""The page on outputs knows every field and file of a run."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

from tests.docs.blocks import ROOT
from tests.one_rank import begun, small_data

PAGE = (ROOT / "docs/guides/outputs.md").read_text()
PARTS = re.compile(r"`([^`\n]+)`")


def documented() -> list[str]:
    """Patterns of fields: `phase_seconds/...`, `embedding_norm/TABLE`; `_spread` and `/highest`
    stand behind the field they go on from."""
    found: list[str] = []
    for line in PAGE.splitlines():
        stem = ""
        for name in PARTS.findall(line.split("|")[1] if line.count("|") > 2 else ""):
            if name[0] in "_/":
                end = "/" if name[0] == "/" else "_"
                name = stem.rpartition(end)[0] + name
            stem = name
            found.append(re.sub(r"/(\.\.\.|[A-Z]+)$", "/*", name))
    return found


def test_every_field_of_a_line_of_metrics_is_told(tmp_path: Path) -> None:
    begun(small_data(tmp_path), tmp_path / "run", metrics={"enabled": True})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    fields = {field for line in lines for field in json.loads(line)}
    known = documented()
    assert len(fields) > 30
    assert sorted(f for f in fields if not any(fnmatch(f, name) for name in known)) == []


def test_every_file_of_a_run_is_told(tmp_path: Path) -> None:
    begun(small_data(tmp_path), tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    told = {part.partition("/")[0] for part in documented()}
    assert names <= told
