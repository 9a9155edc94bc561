"""`prepare --look`: what a source holds, and nothing made."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.windows import DAY, START, make, make_log, write
from trainer.base.mistake import Mistake
from trainer.prepare.pipeline import prepare
from trainer.prepare.prepare_arguments import PrepareArguments
from trainer.prepare.preview.look_rows import LookedRows
from trainer.synth.synth import SynthArguments, synth


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheets are read here as they are on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")


def look(source: Path, capsys: pytest.CaptureFixture[str], **arguments: Any) -> str:
    before = sorted(source.parent.rglob("*"))
    prepare(PrepareArguments(str(source), look=True, **arguments))
    assert sorted(source.parent.rglob("*")) == before, "it makes nothing"
    return capsys.readouterr().out


def words_of(text: str, first: str) -> list[str]:
    """The words of the line that begins with one."""
    line = next(each for each in text.splitlines() if each.lstrip("│ ").startswith(first))
    return line.replace("│", " ").split()


def test_a_format_that_has_no_file_here_is_said(tmp_path: Path) -> None:
    source = tmp_path / "log.csv"
    source.write_text("user_id,item_id\n1,2\n")
    with pytest.raises(Mistake, match=r"has no \.inter file: the recbole format needs one"):
        prepare(PrepareArguments(str(source), look=True, format="recbole"))


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
    assert f"{100 * (1 - len(pairs) / len(log)):.1f} % of the rows" in shown
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


def test_side_tables_context_kinds_and_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is guessed of each column is what prepare makes of it."""
    synth(
        SynthArguments(
            str(tmp_path / "raw"), users=150, items=120, interactions=3000, raw=True, vectors=6,
            numbers=True, context=True, kinds=True, weights=True,
        ),
        show=False,
    )  # fmt: skip
    given: dict[str, Any] = {
        "items": str(tmp_path / "raw/items.parquet"),
        "users": str(tmp_path / "raw/users.parquet"),
        "event_column": "event",
        "event_weights": ("buy=10", "cart=3", "view=history"),
        "weight_column": "weight",
        "context": ("minutes",),
        "number": ("tempo",),
        "buckets": ("price",),
    }
    shown = look(tmp_path / "raw/interactions", capsys, **given)
    assert words_of(shown, "minutes")[1:4] == ["float", "context:", "number"]
    assert words_of(shown, "device")[2:4] == ["not", "read"]
    assert "nothing reads device. What is known when recommendations are asked for" in shown
    assert words_of(shown, "text")[1:] == ["float[]", "vector", "of", "6"]
    assert words_of(shown, "tempo")[2] == "number" and words_of(shown, "price")[2] == "buckets"
    assert words_of(shown, "genre")[2] == words_of(shown, "country")[2] == "category"
    assert words_of(shown, "moods")[2] == words_of(shown, "interests")[2] == "categories"
    assert words_of(shown, "title")[2] == "title" and words_of(shown, "item_id")[2] == "item"
    kinds = next(line for line in shown.splitlines() if line.startswith("kinds of events"))
    assert "(weight 10)" in kinds and "(weight 3)" in kinds and "(history)" in kinds
    assert "(--event-weights does not name it)" in kinds
    low, to, high = words_of(shown, "weights")[1:4]
    assert to == "to" and 0.1 <= float(low) < 0.2 and float(high) == 1
    given["event_weights"] = (*given["event_weights"], "dislike=negative")
    made = make(tmp_path / "raw/interactions", tmp_path / "data", **given)
    found = {key: (each.kind, bool(each.boundaries)) for key, each in made.attributes.items()}
    assert found == {
        "item.genre": ("single", False),
        "item.moods": ("multi", False),
        "item.price": ("single", True),
        "item.tempo": ("number", False),
        "item.text": ("vector", False),
        "user.country": ("single", False),
        "user.interests": ("multi", False),
        "user.age": ("number", False),
        "context.minutes": ("number", False),
    }


def test_columns_of_side_tables_that_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(make_log(5), tmp_path / "log.parquet")
    table = {
        "item": list(range(60)),
        "odd": [[0.5] * (1 + n % 2) for n in range(60)],
        "deep": [{"a": n} for n in range(60)],
        "none": pa.array([None] * 60, pa.string()),
    }
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    shown = look(source, capsys, items=str(tmp_path / "items.parquet"))
    assert words_of(shown, "odd")[2:] == ["left", "out:", "lists", "of", "several", "lengths"]
    assert "left out: is of type STRUCT(a BIGINT), which no attribute can hold" in shown
    assert words_of(shown, "none")[2:5] == ["left", "out:", "holds"]
    shown = look(source, capsys, items=str(tmp_path / "items.parquet"), item_attributes=("none",))
    assert words_of(shown, "odd")[2:4] == ["not", "read"]


def test_roles_stay_in_one_line_on_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = 200
    log = {
        "user_id": range(rows),
        "item_id": [n % 50 for n in range(rows)],
        "timestamp": range(START, START + rows),
        "hour": [n % 24 for n in range(rows)],
        "dwell_seconds": [n / 7 for n in range(rows)],
    }
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    text = pa.array([[0.5] * 64] * 50, pa.list_(pa.float32()))
    titles = [f"The title of item {n}" for n in range(50)]
    items = {"item_id": range(50), "title": titles, "text": text}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    given: dict[str, Any] = {"context": ("hour",), "items": str(tmp_path / "items.parquet")}
    shown = look(tmp_path / "log.parquet", capsys, **given)
    for role in ("timestamp", "context: category", "not read", "item id", "vector of 64"):
        assert f"│ {role} " in shown
    assert f"{START} to" in shown and "~24" in shown and "missing" not in shown
    assert max(len(line) for line in shown.splitlines() if line.startswith("│")) <= 80


def test_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    """Against plain Python, over ties, repeats and missing ids."""
    random = np.random.default_rng(0)
    user = [None if n == 7 else f"u{random.integers(20)}" for n in range(300)]
    item = [None if n == 9 else int(random.integers(15)) for n in range(300)]
    time = random.integers(0, 40, 300).tolist()
    with closing(duckdb.connect()) as connection:
        given = pa.table({"raw_user": user, "raw_item": item, "t": time})  # noqa: F841  by DuckDB
        connection.execute("CREATE TABLE looked AS SELECT * FROM given")
        looked = LookedRows.read(connection, "t")
    rows = [each for each in zip(user, item, time, strict=True) if None not in each]
    assert looked.users == len({u for u, *_ in rows}) and looked.items == len(
        {i for _, i, _ in rows}
    )
    assert looked.pairs == len({(u, i) for u, i, _ in rows}) and len(looked.user_E) == len(rows)
    ordered = sorted(range(len(rows)), key=lambda place: (rows[place][2], place))
    by_user: dict[Any, list[int]] = {}
    for place in ordered:
        by_user.setdefault(rows[place][0], []).append(place)
    last = {places[-1] for places in by_user.values() if len(places) >= 3}
    found = looked.held_out("leave-last-out", None, 0.1)
    assert (found.rows, found.users) == (len(last), len(last))
    tenth = {
        p for ps in by_user.values() if len(ps) >= 3 for p in ps[len(ps) - round(len(ps) / 10) :]
    }
    found = looked.held_out("leave-last-out", 0.1, 0.1)
    left = {rows[place][1] for place in range(len(rows)) if place not in tenth}
    new = [place for place in tenth if rows[place][1] not in left]
    assert found.rows == len(tenth) and found.new_share == len(new) / len(tenth)
    moment = sorted(time for *_, time in rows)[int(len(rows) * 0.9)]
    assert looked.held_out("time", None, 0.1).rows == sum(t >= moment for *_, t in rows)
    assert 5 < looked.held_out("random", None, 0.1).rows < 80


def test_how_many_numbers_are_categories_is_decided_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """64 different ones are, 65 are not: of items, of the context, and in what is shown."""
    rows = 2000
    log: dict[str, Any] = {
        "user": [n % 40 for n in range(rows)],
        "item": [n % 130 for n in range(rows)],
    }
    items: dict[str, Any] = {"item": range(130)}
    for count in (64, 65):
        log[f"c{count}"] = [n % count for n in range(rows)]
        items[f"i{count}"] = [0.5 * (n % count) for n in range(130)]
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    given: dict[str, Any] = {"context": ("c64", "c65"), "items": str(tmp_path / "items.parquet")}
    shown = look(tmp_path / "log.parquet", capsys, **given)
    assert words_of(shown, "c64")[2:4] == ["context:", "category"]
    assert words_of(shown, "c65")[2:4] == ["context:", "number"]
    assert words_of(shown, "i64")[2] == "category" and words_of(shown, "i65")[2] == "number"
    made = make(tmp_path / "log.parquet", tmp_path / "data", **given)
    kinds = {name: each.kind for name, each in made.attributes.items()}
    assert kinds == {
        "context.c64": "single", "context.c65": "number",
        "item.i64": "single", "item.i65": "number",
    }  # fmt: skip


def test_preparing_imports_no_torch() -> None:
    """It is six seconds of processor where nothing else takes one."""
    code = "import sys, trainer.prepare.pipeline; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_columns_of_unusual_names_are_guessed_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a word in the name, by the name that a side table shares, by how many values there are;
    never what is a price, a date or different in every row."""
    sales = tmp_path / "sales.csv"
    rows = [
        f"{n},K{n % 37},{n % 11},{1 + n % 3},{n * 0.5},2024-01-0{1 + n % 9}" for n in range(300)
    ]
    sales.write_text("nr,wer,was,menge,preis,wann\n" + "\n".join(rows) + "\n")
    shown = look(sales, capsys)
    assert "takes wer for users, was for items, wann for times, a guess" in shown
    command = f"tandem prepare {sales} sales-prepared --user-column wer --item-column was"
    assert f"to go on: {command} --timestamp-column wann" in shown
    goods = tmp_path / "goods.csv"
    lines = "\n".join(f"{n},blue spoon {n},{n % 3}" for n in range(4))
    goods.write_text(f"menge,text,group\n{lines}\n")
    shown = look(sales, capsys, items=str(goods))
    assert "takes menge for items, wer for users" in shown
    assert "text: nearly each item has one of its own" in shown
    assert shown.rstrip().endswith("--title-column text")
    sales.write_text("client,what,amount\n" + "\n".join(f"{n % 7},{n % 5},1.5" for n in range(99)))
    assert "takes client for users, what for items, a guess" in look(sales, capsys)
    rated = [f"c{n % 9},p{n % 11},{n % 90}" for n in range(99)]
    sales.write_text("cookie,url,rating\n" + "\n".join(rated))
    assert "takes cookie for users, url for items, a" in look(sales, capsys, positive_threshold=50)
    sales.write_text("cookie,url,amount\n" + "\n".join(f"{each}.5" for each in rated))
    shown = look(sales, capsys, weight_column="amount")
    assert "takes cookie for users, url for items, a" in shown
    sales.write_text("order,c,url\n" + "\n".join(f"o{n},c{n % 50},p{n % 70}" for n in range(5000)))
    assert "takes c for users, url for items, a" in look(sales, capsys)
    sales.write_text(
        "-a,--b,t\n" + "\n".join(f"{n % 7},{n % 5},2024-01-0{n % 9 + 1}" for n in range(99))
    )
    shown = look(sales, capsys, in_order=True)
    assert shown.rstrip().endswith("--user-column=-a --item-column=--b --in-order")
    sales.write_text("a,b\n" + "\n".join(f"{n},{n / 8}" for n in range(99)))
    with pytest.raises(Mistake, match="no column with a usual name of users nor of items"):
        look(sales, capsys)
