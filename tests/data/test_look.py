"""`prepare --look`: what a source holds, and nothing made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.windows import DAY, START, make, make_log, write
from trainer.base.mistake import Mistake
from trainer.prepare.pipeline import prepare
from trainer.prepare.prepare_arguments import PrepareArguments


def look(source: Path, capsys: pytest.CaptureFixture[str], **arguments: Any) -> str:
    before = sorted(source.parent.rglob("*"))
    prepare(PrepareArguments(str(source), look=True, **arguments))
    assert sorted(source.parent.rglob("*")) == before, "it makes nothing"
    return capsys.readouterr().out


def words_of(text: str, first: str) -> list[str]:
    """The words of the line that begins with one."""
    line = next(each for each in text.splitlines() if each.lstrip("│ ").startswith(first))
    return line.replace("│", " ").split()


def test_what_is_shown_is_what_prepare_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = make_log(5)
    source = write(log, tmp_path / "log.parquet")
    shown = look(source, capsys)
    assert words_of(shown, "rating")[1:3] == ["bigint", "rating"]
    assert words_of(shown, "time")[2] == "timestamp"
    assert "2020-09-13 00:00 to" in shown and "UTC" in shown
    assert "all 600 rows, read as parquet" in shown
    pairs = {(user, item) for user, item, *_ in log}
    assert f"{1 - len(pairs) / len(log):.1%} of the rows" in shown
    users, items = len({u for u, *_ in log}), len({i for _, i, *_ in log})
    assert f"{users}, {items}: {len(log) / users:.1f} rows a user" in shown
    assert f"to go on: tandem prepare {source} log-prepared" in shown
    made = make(source, tmp_path / "data")
    taken = next(line for line in shown.splitlines() if "(taken)" in line)
    assert made.split_rule["rule"] in taken
    held_out = int(taken.split("│")[2].replace(",", ""))
    assert abs(held_out - made.splits["test"].rows) <= 0.05 * len(log), "neutral ones are in it"


def test_text_columns_are_told_by_their_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "plays.csv"
    rows = [
        f"u{n % 7},[{n % 5}],{n * 0.5},2024-01-0{1 + n % 9},{'' if n % 4 else 'x'}"
        for n in range(40)
    ]
    source.write_text("user,item,price,date,note\n" + "\n".join(rows) + "\n")
    shown = look(source, capsys, split="random")
    assert words_of(shown, "price")[1:4] == ["double", "not", "read"]
    assert words_of(shown, "date")[1:3] == ["timestamp", "timestamp"]
    assert words_of(shown, "user")[1] == words_of(shown, "item")[1] == "varchar"
    assert "75 %" in shown and "[4]" in shown
    assert "random (taken)" in shown and "2024-01-01 00:00 to 2024-01-09 00:00" in shown
    assert shown.rstrip().endswith("plays-prepared --split random")


def test_columns_are_shown_where_none_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "odd.parquet"
    pq.write_table(pa.table({"who [1]": ["a", "b"], "what": [1.5, None]}), source)
    with pytest.raises(Mistake, match=r"cannot be prepared like this yet: .*--user-column"):
        look(source, capsys)
    shown = capsys.readouterr().out
    assert "who [1]" in shown and "50 %" in shown and "not read" in shown
    shown = look(source, capsys, user_column="who [1]", item_column="what")
    assert "none: histories have no order" in shown
    assert shown.rstrip().endswith("--user-column 'who [1]' --item-column what")


def test_times_of_no_unit_and_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write([(1, 1, 5, 3), (1, 2, 5, 4), (2, 1, 5, 9)], tmp_path / "log.parquet")
    assert "3 to 9, in no unit of time that is known" in look(source, capsys)
    source = write([(1, 1, 5, START), (1, 2, 5, START + DAY)], tmp_path / "log.parquet")
    assert look(source, capsys, window="day").rstrip().endswith("--window day")


@pytest.mark.parametrize("contents", ["", "user,item\n"])
def test_nothing_to_look_at(
    contents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "log.csv"
    source.write_text(contents)
    with pytest.raises(Mistake, match="is empty"):
        look(source, capsys)
