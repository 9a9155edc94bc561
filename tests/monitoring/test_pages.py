"""The report and the live page, opened in Chromium, and what feeds them."""

import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.monitoring.chromium import Visit, visit
from tests.monitoring.conftest import needs
from tests.monitoring.two_ranks import free_port
from trainer.live.dashboard import DashboardArguments, dashboard
from trainer.live.growing import GrowingColumns
from trainer.live.page import as_script_data, panel_rows
from trainer.live.panels import DASHBOARDS
from trainer.live.runs import MOST_POINTS, read_run, thinned
from trainer.live.server import LivePage
from trainer.report.norms import bands
from trainer.report.report import ReportArguments, report

GROUPS = {"recall@20": [0.1, 0.2, 0.4], "ndcg@20": [0.1, 0.2, 0.3]}
EVALUATION = {
    "test": {
        "recall@20": 0.3,
        "ndcg@20": 0.2,
        "popularity": {"recall@20": 0.1, "ndcg@20": 0.05},
        "popularity_groups": GROUPS,
    }
}


@pytest.fixture
def evaluated(run: Path) -> Path:
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    return run


@pytest.fixture
def live(run: Path) -> Iterator[LivePage]:
    page = LivePage(run, "127.0.0.1", 0)
    yield page
    page.close()


def assert_clean(seen: Visit) -> None:
    assert seen.console == []
    assert seen.outside == set()
    assert 'data-drawn="yes"' in seen.dom


@pytest.mark.slow
@needs("chromium")
def test_the_report_opens_cleanly(evaluated: Path, tmp_path: Path) -> None:
    file = report(ReportArguments((str(evaluated),), str(tmp_path / "report.html")))
    seen = visit(file.as_uri(), tmp_path)
    assert_clean(seen)
    for title in (
        "Training loss",
        "Evaluation",
        "Popularity against embedding norm",
        "recall@20 by popularity, test",
        "Ranks and restarts",
        "Throughput",
    ):
        assert title in seen.dom
    assert ">No values yet" not in seen.dom
    assert seen.dom.count("<svg") >= 20


@pytest.mark.slow
@needs("chromium")
def test_several_runs_stand_side_by_side(evaluated: Path, tmp_path: Path) -> None:
    other = tmp_path / "run-b"
    other.symlink_to(evaluated)
    runs = (str(evaluated), str(other))
    file = report(ReportArguments(runs, str(tmp_path / "report.html")))
    seen = visit(file.as_uri(), tmp_path, dark=True)
    assert_clean(seen)
    assert seen.dom.count("optimizer.table_learning_rate") >= 1


@pytest.mark.slow
@needs("chromium")
def test_the_live_page_opens_cleanly(live: LivePage, tmp_path: Path) -> None:
    seen = visit(live.url, tmp_path)
    assert_clean(seen)
    assert any(url.endswith("/data.json") for url in seen.requests)
    for title in ("Progress", "Time left", "Training loss", "Parts of a step"):
        assert title in seen.dom
    assert seen.dom.count("<svg") >= 18


def test_the_live_page_has_every_panel_that_the_runs_files_can_feed() -> None:
    """Each once: two panels that differ in Prometheus alone, as mean and median, are one there."""
    shown = [tuple(panel["keys"]) for row in panel_rows() for panel in row["panels"]]
    assert set(shown) == {p.keys for d in DASHBOARDS for p in d.panels if p.keys}
    assert len(set(shown)) == len(shown)


@pytest.mark.slow
@needs("chromium")
def test_the_check_itself_sees_errors_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://example.invalid/a.png"><script>missing();</script>')
    seen = visit(page.as_uri(), tmp_path)
    assert seen.outside == {"http://example.invalid/a.png"}
    assert any("missing is not defined" in line for line in seen.console)


@pytest.mark.slow
def test_every_key_of_a_panel_is_written_by_a_run(run: Path) -> None:
    read = read_run(run)
    for row in panel_rows():
        for panel in row["panels"]:
            for key in panel["keys"]:
                names = read["validation"] if key == "@" else read["metrics"]
                assert [n for n in names if n == key or key == "@" or n.startswith(key)], panel


@pytest.mark.slow
def test_a_run_tells_its_restarts(run: Path) -> None:
    read = read_run(run)
    assert [start["step"] for start in read["starts"]] == [0, 12]
    assert read["now"]["phase"] == "finished"
    assert read["now"]["step"] == read["now"]["total_steps"]


@pytest.mark.slow
def test_a_run_in_its_first_seconds_can_be_read(run: Path, tmp_path: Path) -> None:
    young = tmp_path / "young"
    young.mkdir()
    (young / "config.json").write_text((run / "config.json").read_text())
    (young / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "step_seconds"')
    read = read_run(young)
    assert read["now"]["loss"] is None and read["metrics"] == {"step": []}
    out = report(ReportArguments((str(young),), str(tmp_path / "report.html")))
    assert "no finished checkpoint" in out.read_text()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run"):
        report(ReportArguments((str(tmp_path),)))
    with pytest.raises(ValueError, match="is no run"):
        dashboard(DashboardArguments(str(tmp_path)))
    with pytest.raises(ValueError, match="which run"):
        ReportArguments(())


def test_values_that_are_not_finite_become_gaps(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 3.0, "extra": 1.0}\n{"st')
    columns = GrowingColumns(file).read()
    assert columns == {"step": [1, 2], "loss": [None, 3.0], "extra": [None, 1.0]}
    long = thinned({"step": list(range(10_000))})
    assert len(long["step"]) <= MOST_POINTS + 1 and long["step"][-1] == 9_999


def test_names_cannot_break_out_of_the_page() -> None:
    assert "</script>" not in as_script_data("DATA", {"name": "</script><script>alert(1)"})
    with pytest.raises(ValueError):
        as_script_data("DATA", math.nan)


def test_bands_follow_the_norms() -> None:
    """Norm = 1 + log10(count): bands must show just that."""
    count = np.repeat([0, 1, 10, 100, 1000], 50)
    norm = 1 + np.log10(np.maximum(count, 1))
    found = bands(count, norm)
    assert found["count"] == pytest.approx([1, 10, 100, 1000])
    assert found["mean"] == found["low"] == found["high"] == pytest.approx([1, 2, 3, 4])


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(run: Path, capsys: pytest.CaptureFixture) -> None:
    stop, port = threading.Event(), free_port()
    arguments = DashboardArguments(str(run), port=port, prometheus=False)
    serving = threading.Thread(target=dashboard, args=(arguments, stop))
    serving.start()
    try:
        shown = json.loads(read_when_there(f"http://127.0.0.1:{port}/data.json"))
    finally:
        stop.set()
        serving.join()
    assert shown["runs"][0]["name"] == "run-a"
    assert f"live page:  http://127.0.0.1:{port}/" in capsys.readouterr().out


def read_when_there(url: str) -> bytes:
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read()
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer within 10 s")
