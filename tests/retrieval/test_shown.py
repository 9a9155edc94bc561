"""What evaluate, recommend and similar show: ids whole, titles as they are, in any window."""

import io

import pytest

from trainer.bundle.asked import Item, Recommendations
from trainer.retrieval.evaluate import Evaluation
from trainer.retrieval.evaluate_run import as_sheet
from trainer.retrieval.recommend import notes_on, sheets

UUID = "0b1e4a57-7b1a-4e0c-9a51-0d5a3f1d9b1{}"


def text_of(found: Recommendations, window: int | None, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(window or ""))
    stream = io.StringIO()
    for sheet in sheets(found, "user [/]u1", window):
        sheet.print(stream)
    return stream.getvalue()


@pytest.mark.parametrize("window", [None, 20, 60, 80, 200])
@pytest.mark.parametrize("title", [None, "[/encore] :heart: live at the hall with all its friends"])
def test_both_lists_hold_whole_ids(
    window: int | None, title: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item(row, UUID.format(row), title) for row in range(3)]
    found = Recommendations(items, [0.5, 0.25, 0.125], items[:2])
    text = text_of(found, window, monkeypatch)
    assert [text.count(UUID.format(row)) for row in range(3)] == [2, 2, 1]
    assert text.startswith("user [/]u1\n") and "…" not in text
    assert (title is None) or text.count("[/encore]") == 5
    assert [f"{score:.4f}" in text for score in found.scores] == [True] * 3


def test_lists_of_any_lengths_stand_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item(0, "i0", None)
    assert "│ 2 │" in text_of(Recommendations([item], [0.5], [item] * 2), 200, monkeypatch)
    assert "│ 2 │" in text_of(Recommendations([item] * 2, [0.5] * 2, []), 200, monkeypatch)
    assert "recommended" in text_of(Recommendations([], [], []), 10, monkeypatch)


def test_an_evaluation_keeps_its_figures_whole_at_40_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"recall@10": 0.1234, "recall@20": 0.2345}
    evaluation = Evaluation(
        values=values,
        user_intervals={},
        intervals={"recall@10": 0.01},
        groups={"recall@10": [0.1, 0.3], "recall@20": [0.2, 0.4]},
        activity={},
        new_items={"recall@10": 0.05, "recall@20": 0.06, "users": 3},
        baseline=values,
        baseline_groups={},
        baseline_activity={},
        num_queries=100,
        num_queries_of_split=1000,
        unknown_items=0,
        unknown_queries=0,
        seconds=0.7,
    )
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    as_sheet(evaluation, "test").print(stream)
    title, *lines = stream.getvalue().splitlines()
    assert title.endswith("seen ones left out; 0.7 s")
    assert max(map(len, lines)) <= 40
    assert sum(line.count("0.1234") + line.count("0.2345") for line in lines) == 4


def test_scores_below_zero_are_explained() -> None:
    item = Item(0, "i0", None)
    assert notes_on(Recommendations([item], [0.5], [])) == []
    assert notes_on(Recommendations([], [], [])) == []
    both = notes_on(Recommendations([item] * 2, [0.5, -0.1], [], note="nothing is known"))
    assert both[0] == "nothing is known" and "below zero is no dislike" in both[1]
