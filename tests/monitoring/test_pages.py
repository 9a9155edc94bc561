"""The report and the live page, opened in Chromium, and what feeds them."""

import html
import json
import math
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.monitoring.chromium import Visit, visit
from tests.monitoring.conftest import ROOT, needs
from tests.monitoring.two_ranks import free_port
from trainer.base.mistake import Mistake
from trainer.live.below import is_folder_of_runs, show_newest
from trainer.live.dashboard import DashboardArguments, dashboard
from trainer.live.growing import GrowingColumns
from trainer.live.page import as_script_data, panel_rows
from trainer.live.panels import DASHBOARDS
from trainer.live.runs import MOST_POINTS, read_run, thinned
from trainer.live.server import LivePage
from trainer.live.troubles import troubles_of
from trainer.observe.choice import Choice, TriedModel, tried_before, write_choice
from trainer.observe.per_user import per_user_file, write_per_user
from trainer.report.norms import bands
from trainer.report.one_run import learning
from trainer.report.people import Person, spread_users
from trainer.report.quality import best_evaluation, quality_of, still_learning
from trainer.report.report import ReportArguments, report, report_html

GROUPS = {"recall@20": [0.1, 0.2, 0.4], "ndcg@20": [0.1, 0.2, 0.3]}
EVALUATION = {
    "test": {
        "recall@20": 0.3,
        "ndcg@20": 0.2,
        "popularity": {"recall@20": 0.1, "ndcg@20": 0.05},
        "user_interval_95": {"recall@20": 0.04, "ndcg@20": 0.03},
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
    asked = ["How good", "Is it still learning", "Whom does it serve", "What does it recommend",
             "What was run", "What happened", "Everything that was measured"]  # fmt: skip
    assert sorted(asked, key=seen.dom.index) == asked
    for title in (
        "NDCG@20 0.2000 ± 0.0300 on the test split, 4.00 times the popularity ranking",
        "ndcg@20 on validation",
        "Length of items' embeddings by popularity",
        "recall@20 by the items' popularity",
        "started again at step 12",
        "Throughput",
        "Did not change",
    ):
        assert title in html.unescape(seen.dom), title
    assert ">No values yet" not in seen.dom
    assert seen.dom.count("<svg") == 4  # the others are folded away


@pytest.mark.slow
@needs("chromium")
def test_what_is_folded_away_is_drawn_when_it_is_opened(evaluated: Path, tmp_path: Path) -> None:
    file = report(ReportArguments((str(evaluated),), str(tmp_path / "report.html"), people=0))
    opened = file.read_text().replace('<details id="panels">', '<details id="panels" open>')
    file.write_text(opened)
    seen = visit(file.as_uri(), tmp_path)
    assert_clean(seen)
    assert seen.dom.count("<svg") >= 15
    assert len(opened) < 1_000_000


@pytest.mark.slow
@needs("chromium")
def test_titles_are_words_on_the_page(evaluated: Path, tmp_path: Path) -> None:
    hostile = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)> 🎬"
    one = {**read_run(evaluated), "norms": "", "dataset": hostile, "name": hostile}
    shown = [Person(hostile, 3, [hostile], [hostile])]
    one["path"] = str(evaluated)
    two = [{**one, "color": 0}, {**one, "color": 1, "name": f"{hostile} 2"}]
    for name, text in (("one", report_html([one], shown)), ("two", report_html(two, None))):
        file = tmp_path / f"{name}.html"
        file.write_text(text.replace('<details id="panels">', '<details id="panels" open>'))
        seen = visit(file.as_uri(), tmp_path)
        assert_clean(seen)
        assert "<title>Tandem report: &lt;script&gt;" in seen.dom
        assert "<img" not in seen.dom.replace("&lt;img", "").partition("<script>const CHARTS")[0]


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
    assert "is the best" in seen.dom and "their intervals overlap" in seen.dom


@pytest.mark.slow
@needs("chromium")
def test_the_live_page_opens_cleanly(live: LivePage, tmp_path: Path) -> None:
    seen = visit(live.url, tmp_path)
    assert_clean(seen)
    assert any(url.endswith("/data.json") for url in seen.requests)
    for title in ("Progress", "Time left", "Training loss", "Parts of a step"):
        assert title in seen.dom
    assert seen.dom.count("<svg") >= 18


@pytest.mark.slow
@needs("chromium")
def test_a_run_on_all_data_shows_what_its_try_had(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("validation.jsonl"))
    config = json.loads((out / "config.json").read_text())
    config["config"]["evaluation"] |= {"every_epochs": 0, "patience": None}
    (out / "config.json").write_text(json.dumps(config))
    with closing(LivePage(out, "127.0.0.1", 0)) as page:
        assert "not evaluated while it trains" in visit(page.url, tmp_path).dom
        models = (TriedModel("places", "the last items", 0.3),)
        write_choice(out, Choice("ndcg@20", "places", 61.0, {"popularity": 0.1}, models))
        seen = visit(page.url, tmp_path)
    assert_clean(seen)
    assert "ndcg@20 when tried" in seen.dom and "3.00 × popularity (0.1000)" in seen.dom


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
                if key.startswith("window"):
                    continue  # of runs by windows
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
    with pytest.raises(Mistake, match=r"there is no run in .* or below it"):
        dashboard(DashboardArguments(str(tmp_path)))
    (tmp_path / "file").touch()
    with pytest.raises(Mistake, match="is no run"):
        dashboard(DashboardArguments(str(tmp_path / "file")))
    gone = DashboardArguments(str(tmp_path / "gone"), port=0, prometheus=False, wait=0)
    with pytest.raises(Mistake, match="is no run after 0 s: is the name right"):
        dashboard(gone)
    assert not (tmp_path / "gone").exists()
    with pytest.raises(ValueError, match="which run"):
        ReportArguments(())


def test_values_that_are_not_finite_become_gaps(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 3.0, "extra": 1.0}\n{"st')
    columns = GrowingColumns(file).read()
    assert columns == {"step": [1, 2], "loss": [None, 3.0], "extra": [None, 1.0]}
    long = thinned({"step": list(range(10_000))})
    assert len(long["step"]) <= MOST_POINTS + 1 and long["step"][-1] == 9_999
    failed = [None] * 10_000
    failed[4_321] = 2.0  # type: ignore[call-overload]
    rare = thinned({"step": list(range(10_000)), "checkpoint_failures": failed})
    assert 2.0 in rare["checkpoint_failures"] and len(rare["step"]) <= MOST_POINTS + 2


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


@pytest.mark.slow
def test_a_run_that_is_starting_is_waited_for(run: Path, tmp_path: Path) -> None:
    page = LivePage(tmp_path / "later", "127.0.0.1", 0)
    try:
        waiting = json.loads(read_when_there(f"{page.url}data.json"))
        assert waiting == {"waiting": "later"} and not page.is_begun
        shutil.copytree(run, tmp_path / "later")
        time.sleep(1.5)  # a page is kept for a second
        shown = json.loads(read_when_there(f"{page.url}data.json"))
        assert page.is_begun and shown["runs"][0]["name"] == "later"
    finally:
        page.close()


@pytest.mark.slow
def test_the_runs_below_a_folder_are_listed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("week/a", "week/b"):
        shutil.copytree(run, tmp_path / name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")  # of something else
    dashboard(DashboardArguments(str(tmp_path)))
    shown = capsys.readouterr().out
    assert f"{tmp_path}/week/a" in shown and f"{tmp_path}/week/b" in shown
    assert "finished" in shown and "ndcg@20 0." in shown and "other" not in shown
    shutil.copytree(run, tmp_path / "search" / "trial-0")
    (tmp_path / "search" / "trials.json").write_text("[]")
    later = time.time() + 60
    os.utime(tmp_path / "search" / "trial-0" / "config.json", (later, later))
    assert is_folder_of_runs(str(tmp_path)) and not is_folder_of_runs(str(tmp_path / "week/a"))
    assert not is_folder_of_runs(str(tmp_path / "none"))
    (tmp_path / "week" / "gone").mkdir()
    (tmp_path / "week" / "gone" / "config.json").symlink_to("nowhere")
    (tmp_path / "config.json").write_text("{}")  # of something else, above all
    show_newest(tmp_path, "another")
    listed = capsys.readouterr().out
    assert listed.index("week/a") < listed.index("search/trial-0"), "though it is the newest"


QUIET = {
    "starts": [{"step": 0, "time": 0.0}],
    "metrics": {"data_wait_share": [0.9, 0.1, 0.1]},
    "now": {"phase": "training", "is_alive": True, "silent_seconds": 1.0, "cause": None},
}


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"now": {"silent_seconds": 301.0}}, "TandemStalled"),
        (
            {"now": {"phase": "failed", "is_alive": False, "cause": "no disk"}},
            "TandemRunEndedEarly",
        ),
        ({"now": {"phase": "stopped", "is_alive": False}}, "TandemRunEndedEarly"),
        ({"starts": [{"step": 0, "time": 0.0}, {"step": 9, "time": 950.0}]}, "TandemRestarted"),
        ({"metrics": {"checkpoint_failures": [0.0, 2.0, None]}}, "TandemCheckpointFailing"),
        (
            {"metrics": {"checkpoint_failures": [1.0, 2.0], "time": [100.0, 5000.0]}},
            "TandemCheckpointFailing",
        ),
        ({"metrics": {"data_wait_share": [0.1, 0.4, 0.4, 0.5]}}, "TandemDataStarvation"),
    ],
)
def test_troubles_are_told_where_they_are(changed: dict, name: str) -> None:
    """By the names of the alerts, each of which has its runbook."""
    assert troubles_of(QUIET, 1000.0) == []
    run = {**QUIET, **changed, "now": {**QUIET["now"], **changed.get("now", {})}}
    (found,) = troubles_of(run, 1000.0)
    assert found.name == name
    assert f"## {name}\n" in (ROOT / "docs/runbooks/alerts.md").read_text()


def test_a_checkpoint_that_failed_long_ago_is_no_trouble_now() -> None:
    metrics = {"checkpoint_failures": [2.0, 2.0], "time": [100.0, 9000.0]}
    assert troubles_of({**QUIET, "metrics": metrics}, 9100.0) == []


def read_when_there(url: str) -> bytes:
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read()
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer within 10 s")


def learnt(*values: float) -> dict:
    """A run that was evaluated while training, so often."""
    columns = {"step": [10 * (n + 1) for n in range(len(values))], "ndcg@20": list(values)}
    columns["popularity/ndcg@20"] = [0.1] * len(values)
    return {
        "validation": columns,
        "evaluation": None,
        "summary": None,
        "choice": None,
        "config": {
            "data": {"train_splits": ["train"]},
            "evaluation": {"metric": "ndcg@20"},
            "training": {"epochs": 12},
        },
    }


def test_the_verdicts_follow_the_curve() -> None:
    assert "still learning: ndcg@20 grew by 200.0 %" in still_learning(learnt(0.1, 0.2, 0.25, 0.3))
    assert "levelled off" in still_learning(learnt(0.1, 0.3, 0.301, 0.3, 0.302))
    ended = still_learning(learnt(0.1, 0.3, 0.29, 0.28, 0.27))
    assert "best at evaluation 2 of 5, and 3 evaluations since" in ended
    patient = learnt(0.1, 0.11, 0.3, 0.29, 0.3)
    assert "still learning" in still_learning(patient)
    patient["config"]["evaluation"]["patience"] = 2  # it ended by itself
    assert "best at evaluation 3 of 5, and 2 evaluations since" in still_learning(patient)
    patient["summary"] = {"epochs": 5, "quality": {"out_of_patience": True}}
    assert still_learning(patient).endswith(", which ended it early: after epoch 5 of 12.")
    patient["summary"]["epochs"] = 12
    assert "early" not in still_learning(patient)
    assert "too few" in still_learning(learnt(0.1))
    assert "not evaluated while training" in still_learning(learnt())
    on_all = {**learnt(), "choice": {"curve": [0.1, 0.3, 0.2]}}
    assert "not evaluated while training" in still_learning(on_all)  # yet to be
    on_all["config"]["data"]["train_splits"] = ["train", "validation"]
    assert "when it was tried: ndcg@20 on validation was 0.3000 after epoch 2 of 3" in (
        still_learning(on_all)
    )
    quality = quality_of(learnt(0.1, 0.3, 0.2))
    assert quality is not None and quality.of("ndcg") == 0.3
    assert quality.times_popularity("ndcg") == pytest.approx(3)
    assert best_evaluation(learnt()) is None and quality_of(learnt()) is None


def test_what_was_tried_stands_beside_the_closed_forms(evaluated: Path, tmp_path: Path) -> None:
    hostile = "<b>x</b>"
    models = (TriedModel("places", "the last items", 0.3), TriedModel(hostile, "in case", 0.2))
    baselines = {"popularity": 0.1, "EASE": 0.25}
    choice = Choice("ndcg@20", "places", 61.0, baselines, models, (0.2, 0.3, 0.28))
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    assert tried_before(run) == []
    write_choice(run, choice)
    assert tried_before(run) == [
        "tried on validation before it began, ndcg@20: places 0.3000, the best of 2 models, 3.00 "
        "times popularity; nothing trained: EASE 0.2500, popularity 0.1000"
    ]
    page = report_html([{**read_run(run), "norms": "", "dataset": None}], None)
    places = [page.index(f">{name}</td>") for name in ("places", "EASE", "&lt;b&gt;x&lt;/b&gt;")]
    assert places == sorted(places) and "for 1 min 1 s, beside what needs no training" in page
    assert "when it was tried" not in page  # it was watched itself
    on_all = read_run(run)
    on_all["validation"] = {name: [] for name in on_all["validation"]}
    assert len(learning(on_all)) == 1  # it is yet to be evaluated
    on_all["config"]["data"]["train_splits"] = ["train", "validation"]
    assert "when it was tried" in report_html([{**on_all, "norms": "", "dataset": None}], None)
    tried, _ = learning(on_all)
    assert tried.title == "ndcg@20 on validation, when it was tried"
    assert list(tried.series[0].x) == [1, 2, 3] and tried.levels == [("popularity", 0.1)]
    (run / "choice.json").write_text('{"metric": 1}')  # of another version
    assert tried_before(run) == []


def test_people_shown_go_from_the_least_active_to_the_most() -> None:
    count = np.array([0, 5, 1, 100, 7, 0, 50])
    assert spread_users(count, 3) == [2, 4, 3]
    assert spread_users(count, 50) == [2, 1, 4, 6, 3]
    assert spread_users(np.zeros(4, dtype=int), 3) == []


def test_runs_are_held_against_each_other_user_by_user(evaluated: Path, tmp_path: Path) -> None:
    digest = read_run(evaluated)["dataset_digest"]
    runs = [tmp_path / name for name in ("a", "b")]
    for lift, run in enumerate(runs):
        shutil.copytree(evaluated, run)
        record = json.loads((run / "evaluation.json").read_text())
        record["test"]["ndcg@20"] += 0.1 * lift
        (run / "evaluation.json").write_text(json.dumps(record))
        values = [user % 7 / 10 + 0.1 * lift + user % 2 / 100 * lift for user in range(50)]
        table = pa.table({"user": range(50), "ndcg@20": pa.array(values, pa.float32())})
        write_per_user(per_user_file(run, "test"), table, digest)
    file = report(ReportArguments(tuple(map(str, runs)), str(tmp_path / "r.html"), people=0))
    assert "over 50 users, more than chance over users)" in file.read_text()
