"""Columns of the interactions that describe the item or the user: found, taken, held to it."""

from __future__ import annotations

import random
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.windows import make
from trainer.base.mistake import Mistake
from trainer.prepare.pipeline import prepare
from trainer.prepare.prepare_arguments import PrepareArguments

ITEMS, USERS = 30, 40
NAMES = {"user_column": "who (id)", "item_column": "what"}
Row = dict[str, Any]


def rows_of(days: int = 20, first: int = 0) -> list[Row]:
    """Plays whose rows repeat what is known of song and listener."""
    rows, draw = [], random.Random(first)
    for day in range(first, first + days):
        for user in range(USERS):
            item = draw.randrange(ITEMS)
            rows.append(
                {
                    "who (id)": f"u{user}",
                    "what": f"s{item}",
                    "song, title": f'Night "Train" {item}',
                    "genre": ("jazz", "folk", "metal")[item % 3],
                    "price €": 0.5 * (item % 20),
                    "country": ("fr", "jp")[user % 2],
                    "mood": draw.choice(("glad", "sad")),
                    "always": "x",
                    "stars": draw.randint(1, 5),
                    "at": 1_600_000_000 + 86_400 * day + user,
                }
            )
    return rows


def written(rows: list[Row], path: Path) -> Path:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path

    def line(cells: tuple[Any, ...]) -> str:
        texts = (str(cell).replace('"', '""') for cell in cells)
        return ",".join(f'"{text}"' for text in texts)

    lines = [line(tuple(columns)), *map(line, zip(*columns.values(), strict=True))]
    path.write_text("\n".join([*lines, ""]))
    return path


def items_of(folder: Path) -> list[Row]:
    found: list[Row] = pq.read_table(folder / "items.parquet").to_pylist()
    return found


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_they_are_what_a_file_of_items_would_be(suffix: str, tmp_path: Path) -> None:
    rows = rows_of()
    source = written(rows, tmp_path / f"plays{suffix}")
    of_item = ("what", "song, title", "genre", "price €")
    once = list({row["what"]: {name: row[name] for name in of_item} for row in rows}.values())
    items = written(once, tmp_path / f"items{suffix}")
    titled: dict[str, Any] = {**NAMES, "timestamp_column": "at", "title_column": "song, title"}
    made = make(source, tmp_path / "a", item_columns=of_item[1:], **titled)
    by_file = make(source, tmp_path / "b", items=str(items), **titled)
    assert items_of(tmp_path / "a") == items_of(tmp_path / "b")
    assert made.item_attributes == by_file.item_attributes
    assert items_of(tmp_path / "a")[0]["title"].startswith('Night "Train" ')
    vocabulary = pq.read_table(tmp_path / "a" / "attributes.parquet")
    assert vocabulary == pq.read_table(tmp_path / "b" / "attributes.parquet")
    assert "genre" not in made.source["unused"] and "mood" in made.source["unused"]


def test_a_day_that_is_appended_has_them_too(tmp_path: Path) -> None:
    source = written(rows_of(), tmp_path / "plays.csv")
    columns = {"item_columns": ("song, title", "genre"), "title_column": "song, title"}
    make(source, tmp_path / "data", timestamp_column="at", **columns, **NAMES)
    later = [{**row, "what": f"new{row['what']}"} for row in rows_of(2, first=20)]
    make(written(later, tmp_path / "later.csv"), tmp_path / "data", append=True)
    new = [item for item in items_of(tmp_path / "data") if item["raw_id"].startswith("new")]
    assert new and all(item["title"] for item in new)


def test_files_of_splits_are_taken_together(tmp_path: Path) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    written(rows_of(10), folder / "train.csv")
    written(rows_of(3, first=10), folder / "test.csv")
    make(folder, tmp_path / "data", user_columns=("country",), item_columns=("genre",), **NAMES)
    users = pq.read_table(tmp_path / "data" / "users.parquet").to_pylist()
    assert len({user["country"] for user in users}) == 2 and len(users) == USERS


def test_what_differs_from_row_to_row_says_nothing_of_the_item(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of()
    source = written(rows, tmp_path / "plays.csv")
    with pytest.raises(Mistake, match=r"--item-columns mood: 30 of 30 items have several values"):
        make(source, tmp_path / "data", item_columns=("mood",), **NAMES)
    rows[0]["genre"] = "aa slip"
    source = written(rows, tmp_path / "plays.csv")
    arguments = PrepareArguments(
        str(source), str(tmp_path / "data"), item_columns=("genre",), **NAMES
    )
    prepare(arguments)
    told = capsys.readouterr().err
    assert f"genre: 1 items have several values, for example '{rows[0]['what']}'" in told


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"item_columns": ("stars",)}, "--item-columns stars: the column is that of the ratings"),
        ({"item_columns": ("what",)}, "--item-columns what: the column is that of the items"),
        ({"item_columns": ("genre", "genre")}, "--item-columns names genre twice"),
        ({"item_columns": ("genra",)}, "no column .*genre"),
        ({"item_columns": ("genre",), "context": ("genre",)}, "the column is that of the context"),
        ({"item_columns": ("genre",), "items": "x.csv"}, "two places for the same"),
        ({"user_columns": ("genre",), "users": "x.csv"}, "--users and --user-columns"),
    ],
)
def test_a_column_has_one_role(columns: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = written(rows_of(3), tmp_path / "plays.csv")
    with pytest.raises(Mistake, match=words):
        make(source, tmp_path / "data", **{**NAMES, "rating_column": "stars", **columns})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_look_finds_them_and_its_command_takes_them(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    source = written(rows_of(), tmp_path / f"plays{suffix}")
    prepare(PrepareArguments(str(source), look=True, timestamp_column="at", **NAMES))
    shown = capsys.readouterr().out
    assert "song, title, genre, price €: the same wherever an item is met" in shown
    assert "country: the same wherever a user is met" in shown
    assert "nothing reads mood, always." in shown
    command = shlex.split(shown.splitlines()[-1])
    at = command.index("--item-columns")
    assert command[at + 1 : at + 4] == ["song, title", "genre", "price €"]
    assert command[command.index("--user-columns") + 1] == "country"
    assert command[command.index("--title-column") + 1] == "song, title"
    # Looked at again with what it proposed: it says so, and proposes no more.
    again = {"item_columns": ("song, title", "genre", "price €"), "title_column": "song, title"}
    prepare(PrepareArguments(str(source), look=True, timestamp_column="at", **again, **NAMES))
    shown = capsys.readouterr().out
    assert shown.count("of the item") >= 3 and "wherever an item" not in shown


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("form", ["seconds", "dates", "moments"])
def test_the_look_says_what_may_be_times(
    form: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(5)
    for row in rows:
        moment = datetime.fromtimestamp(row.pop("at"), UTC)
        row["when it was"] = {
            "seconds": int(moment.timestamp()),
            "dates": moment.strftime("%Y-%m-%d"),
            "moments": moment.replace(tzinfo=None),
        }[form]
    source = written(rows, tmp_path / f"plays{suffix}")
    prepare(PrepareArguments(str(source), look=True, **NAMES))
    shown = " ".join(capsys.readouterr().out.split())
    asked = "look again with --timestamp-column 'when it was'"
    assert shown.count("looks like times") == 1 and asked in shown
    prepare(PrepareArguments(str(source), look=True, timestamp_column="when it was", **NAMES))
    assert "looks like times" not in capsys.readouterr().out


def test_few_rows_prove_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Items that are met once have one value of everything."""
    rows = [{**row, "what": f"s{number}"} for number, row in enumerate(rows_of(4))]
    source = written(rows, tmp_path / "plays.csv")
    prepare(PrepareArguments(str(source), look=True, timestamp_column="at", **NAMES))
    assert "wherever an item is met" not in capsys.readouterr().out


@pytest.mark.parametrize("split", ["leave-last-out", "time", "random"])
def test_the_look_counts_what_is_left_of_ratings(
    split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neutral ratings and repeats leave before a split; who likes nothing in it is not asked."""
    monkeypatch.setenv("COLUMNS", "200")
    source = written(rows_of(60), tmp_path / "plays.csv")
    given: dict[str, Any] = {"rating_column": "stars", "timestamp_column": "at", "test_share": 0.2}
    prepare(PrepareArguments(str(source), look=True, split=split, **given, **NAMES))
    shown = capsys.readouterr().out
    taken = next(line for line in shown.splitlines() if "(taken)" in line).split("│")
    rows, users = (int(cell.replace(",", "")) for cell in taken[2:4])
    made = make(source, tmp_path / "data", split=split, **given, **NAMES).splits["test"]
    assert abs(rows - made.rows) <= 0.15 * made.rows
    assert abs(users - made.queries) <= 0.15 * made.queries
