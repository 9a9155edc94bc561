"""What prepare says at its end: true of the rule that was taken, with the columns it recognised."""

from pathlib import Path

import pytest

from trainer.prepare.pipeline import PrepareArguments, prepare


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are not broken, wherever the data lie."""
    monkeypatch.setenv("COLUMNS", "300")


def summary_of(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], name: str = "plays.csv"
) -> dict[str, str]:
    (tmp_path / name).write_text(text)
    prepare(PrepareArguments(str(tmp_path / name), str(tmp_path / "data")))
    lines = (line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    return {line[0]: line[1].strip() for line in lines}


def plays(columns: str, *, rated: bool) -> str:
    rows = (
        (f"u{user}", f"i{(user * 3 + place) % 30}", 1 + (user + place) % 5, 1000 + place)
        for user in range(30)
        for place in range(8)
    )
    return columns + "".join(
        f"{user},{item},{rating},{time}\n" if rated else f"{user},{item},{time}\n"
        for user, item, rating, time in rows
    )


def test_ratings_that_were_recognised_and_their_limits_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = plays("user_id,item_id,rating,timestamp\n", rated=True)
    shown = summary_of(tmp_path, text, capsys)
    assert shown["ratings"] == "liked from 4, disliked up to 2"
    assert shown["columns"] == "user user_id, item item_id, rating rating, timestamp timestamp"


def test_what_belongs_to_another_rule_is_not_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ "rule leave-last-out, validation random" was said of validations that are the last rows."""
    shown = summary_of(tmp_path, plays("user_id,item_id,timestamp\n", rated=False), capsys)
    assert shown["split"] == "rule leave-last-out, seed 0"
    assert "ratings" not in shown
