"""Where reports are written: whole or not at all, and over nothing that is somebody else's."""

import json
import os
from pathlib import Path

import pytest

from tests.retrieval.test_full_disk import files_of_at_most
from trainer.base.mistake import Mistake
from trainer.config.presets import find_preset
from trainer.report.report import ReportArguments, _free_place, report


@pytest.fixture
def run(tmp_path: Path) -> str:
    folder = tmp_path / "runs" / "a [b]"
    folder.mkdir(parents=True)
    facts = {
        "run_id": "0123456789ab",
        "preset": "default",
        "data": str(tmp_path / "data"),
        "dataset_digest": "0" * 64,
        "world_size": 1,
        "versions": {"torch": "2.13.0"},
        "config": find_preset("default").to_json(),
    }
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n\x00torn\n')
    return str(folder)


def make(run: str, out: Path | None = None) -> Path:
    made = report(ReportArguments((run,), None if out is None else str(out)))
    assert isinstance(made, Path)
    return made


def test_a_report_replaces_a_report(run: str, tmp_path: Path) -> None:
    first = make(run)
    assert first == Path(run) / "report.html" and first == make(run)
    other = make(run, tmp_path / "new" / "folder" / "page.html")
    assert other.read_text()[:1000] == first.read_text()[:1000]
    assert other == make(run, other)


def test_a_page_of_several_does_not_replace_that_of_one(run: str) -> None:
    made = report(ReportArguments((run, run)))
    assert made == Path(run) / "reports.html"


@pytest.mark.parametrize("kind", ["folder", "file", "empty", "fifo", "device", "link", "name"])
def test_what_is_no_report_is_left_alone(kind: str, run: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    match kind:
        case "folder":
            out.mkdir()
        case "file":
            out.write_text("<title>my thesis</title>")
        case "empty":
            out.touch()
        case "fifo":
            os.mkfifo(out)
        case "device":
            out = Path("/dev/null")
        case "link":
            (tmp_path / "mine").write_text("mine")
            out.symlink_to(tmp_path / "mine")
        case "name":
            (tmp_path / "mine").write_text("mine")
            out = tmp_path / "mine" / "report.html"
    before = out.lstat() if kind != "name" else None
    with pytest.raises(Mistake, match=str(out)):
        make(run, out)
    if before is not None:
        assert out.lstat() == before


def test_an_empty_name_is_refused(run: str) -> None:
    with pytest.raises(Mistake, match="--out is empty"):
        ReportArguments((run,), "")
    with pytest.raises(Mistake, match="RUN is empty"):
        ReportArguments(("",))


def test_a_full_disk_leaves_the_good_page(run: str) -> None:
    page = make(run)
    before = page.read_bytes()
    with files_of_at_most(len(before) // 2), pytest.raises(OSError, match="File too large") as told:
        make(run)
    assert told.value.filename == str(page)
    assert page.read_bytes() == before
    assert sorted(each.name for each in page.parent.iterdir()) == sorted(
        ["config.json", "metrics.jsonl", "report.html"]
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"test": 3}', '{"test": {"recall@20": "x"}}'])
def test_a_damaged_evaluation_is_named(text: str, run: str) -> None:
    (Path(run) / "evaluation.json").write_text(text)
    with pytest.raises(Mistake, match=r"evaluation\.json (is no JSON|holds no evaluations)"):
        make(run)


def test_a_link_to_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    """It was replaced by the page."""
    link = tmp_path / "page.html"
    link.symlink_to(tmp_path / "gone.html")
    with pytest.raises(Mistake, match="is a link to what is not there"):
        _free_place(ReportArguments((str(tmp_path),), out=str(link)))
    assert link.is_symlink() and not link.exists()
