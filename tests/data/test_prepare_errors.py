"""Bad input: each mistake has its own message with the value, the limit and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.data.planted import make, some_rows, write_csv
from trainer.prepare.pipeline import PrepareArguments

GOOD = "user,item,rating,timestamp\n" + "".join(
    f"{user},{item},{1 + (user + item) % 5},{item}\n" for user in range(5) for item in range(8)
)

BAD_TEXT: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such column": (
        GOOD,
        {"user_column": "usr"},
        r"no column 'usr' \(--user-column\). Did you mean user\? There are: user, item, rating",
    ),
    "no usual column": (
        GOOD.replace("user,item", "who,what"),
        {},
        r"no column with a usual name of users nor of items: name it with --user-column and "
        r"--item-column\. There are: who, what, rating",
    ),
    "no usual column of items": (
        GOOD.replace("item", "what"),
        {},
        r"no column with a usual name of items: name it with --item-column\.",
    ),
    "one column for both": (
        GOOD,
        {"user_column": "item"},
        r"--user-column and --item-column are both 'item'",
    ),
    "column twice": (GOOD.replace("rating", "item"), {}, r"column name twice.*Rename one"),
    "null user": (
        GOOD + ",3,4,9\n",
        {},
        r"'user' is missing \(null, NaN or empty\) in 1 rows, first in row 41.*--drop-null-ids",
    ),
    "NaN item": (GOOD + "3,NaN,4,9\n", {}, r"'item' is missing .* in 1 rows.*--drop-null-ids"),
    "no bytes": ("", {}, r"is empty \(0 bytes\)"),
    "header only": ("user,item\n", {}, r"is empty: it holds no interactions"),
    "one user": (
        "user,item\n" + "".join(f"7,{n}\n" for n in range(9)),
        {},
        r"has one user only: a retrieval model needs at least two",
    ),
    "one item": (
        "user,item\n" + "".join(f"{n},7\n" for n in range(9)),
        {},
        r"has one item only",
    ),
    "float ids": (
        "user,item\n1.0,2\n2.0,3\n2.5,4\n",
        {},
        r"'user' holds floating point numbers \(for example 1.0\).*cast it to integers",
    ),
    "date ids": (
        "user,item\n2024-01-01,2\n2024-01-02,3\n",
        {},
        r"'user' holds dates \(for example 2024-01-01\), which are no ids",
    ),
    "timestamps in words": (
        GOOD.replace(",7\n", ",soon\n"),
        {},
        r"'timestamp' cannot be read as a time in 5 rows, for example 'soon'.*ISO 8601",
    ),
    "ratings in words": (
        GOOD.replace("0,0,1,", "0,0,good,"),
        {},
        r"'rating' is no number in 1 rows, for example 'good'",
    ),
    "ratings of another scale": (
        GOOD.replace("0,0,1,", "0,0,10,"),
        {},
        r"'rating' goes from 1 to 10, not from 1 to 5: say .* --positive-threshold",
    ),
    "thresholds that contradict": (
        GOOD,
        {"positive_threshold": 3, "dislike_threshold": 3},
        r"--dislike-threshold 3 must lie below --positive-threshold 3",
    ),
    "threshold above all": (
        GOOD,
        {"positive_threshold": 6},
        r"--positive-threshold 6 is above every rating \(highest 5\)",
    ),
    "threshold without ratings": (
        "user,item\n1,2\n3,4\n",
        {"positive_threshold": 4},
        r"need ratings, .* has no rating column: name it with --rating-column",
    ),
    "time split without times": (
        "user,item\n1,2\n3,4\n",
        {"split": "time"},
        r"--split time needs times.*--timestamp-column",
    ),
    "given split without files": (
        GOOD,
        {"split": "given"},
        r"--split given needs files named train and test, .* has none",
    ),
    "share with given": (
        GOOD,
        {"split": "leave-last-out", "validation_share": 0.2},
        r"--validation-share with --split leave-last-out needs --test-share too",
    ),
    "empty part": (
        "user,item,timestamp\n1,2,1\n1,3,2\n2,3,1\n2,4,2\n",
        {},
        r"leave-last-out leaves no positive interaction for validation .*more data",
    ),
    "attributes without a file": (
        GOOD,
        {"item_attributes": ("genre",)},
        r"--item-attributes needs a file of attributes: give --items FILE",
    ),
    "title without a file": (GOOD, {"title_column": "t"}, r"--title-column needs .*--items FILE"),
    "memory limit": (GOOD, {"memory_limit": "much"}, r"--memory-limit 'much' is no size"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_csv(tmp_path: Path, case: str) -> None:
    contents, arguments, message = BAD_TEXT[case]
    source = tmp_path / "rows.csv"
    source.write_text(contents)
    with pytest.raises(ValueError, match=message):
        make(source, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history_length": -1}, r"--history-length -1 must be from 0 \(none\) to 10,000"),
        ({"test_share": 1.5}, r"--test-share 1.5 must lie between 0 and 1"),
        ({"test_share": 0.6, "validation_share": 0.5}, r"leave nothing for training"),
        ({"format": "recbol"}, r"unknown --format 'recbol'. Did you mean recbole\?"),
        ({"split": "leave-one-out"}, r"unknown --split .* Did you mean leave-last-out\?"),
        ({"threads": 0}, r"--threads 0 must be from 1 to 1,024"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareArguments("source", "out", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_order": True}, r"--in-order, but .* has timestamps \(column 'timestamp'\)"),
        ({"validation": "last"}, r"--validation last has a meaning only where the source names"),
    ],
)
def test_order_that_contradicts(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("user,item,timestamp\n1,2,3\n1,3,4\n")
    with pytest.raises(ValueError, match=message):
        make(source, tmp_path / "out", **arguments)


def test_the_last_of_what_has_no_times(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0 1 2 3\n")
    (tmp_path / "test.txt").write_text("0 4\n")
    with pytest.raises(ValueError, match=r"--validation last needs times, .* or say --in-order"):
        make(tmp_path, tmp_path / "out", validation="last")


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.csv does not exist: give a file"):
        make(tmp_path / "nowhere.csv", tmp_path / "out")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(ValueError, match=r"holds no files"):
        make(tmp_path / "source", tmp_path / "out")


def test_out_exists(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    source = write_csv(tmp_path / "rows.csv", some_rows())
    with pytest.raises(ValueError, match=r"out exists already: remove it"):
        make(source, tmp_path / "out")


def test_unrecognised_format(tmp_path: Path) -> None:
    (tmp_path / "rows.bin").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"not recognised .*rows.bin.*--format lightgcn\|recbole"):
        make(tmp_path / "rows.bin", tmp_path / "out")


def test_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("user,item\n1,2\n")
    with pytest.raises(ValueError, match=r"cannot be read as parquet"):
        make(tmp_path / "rows.parquet", tmp_path / "out")


def test_other_header(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    write_csv(folder / "a.csv", some_rows())
    (folder / "b.csv").write_text("item,user\n1,2\n")
    with pytest.raises(ValueError, match=r"b.csv has other columns than .*a.csv"):
        make(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("user::DOUBLE", r"'user' is of type DOUBLE \(for example .*ids are integers or strings"),
        ("DATE '2024-01-01' + user::INTEGER", r"'user' is of type DATE"),
        ("user = 1", r"'user' is of type BOOLEAN"),
        ("[user]", r"'user' is of type BIGINT\[\]"),
        ("user::UBIGINT + 9223372036854775808", r"beyond the largest int64"),
        ("nullif(user, 3)", r"'user' is missing .* in 10 rows"),
    ],
)
def test_bad_parquet_ids(tmp_path: Path, expression: str, message: str) -> None:
    source = tmp_path / "rows.parquet"
    duckdb.execute(
        f"COPY (SELECT {expression} AS user, item FROM (SELECT i % 5 AS user, i // 5 AS item "
        f"FROM range(50) AS r(i))) TO '{source}' (FORMAT parquet)"
    )
    with pytest.raises(ValueError, match=message):
        make(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("contents", "arguments", "message"),
    [
        ("name,genre\nx,a\n", {}, r"no column called item or item_id.*--item-column"),
        ("item,genre\n100,a\n100,b\n", {}, r"1 ids more than once, for example '100' \(2 rows\)"),
        ("item,genre\n100,a\n,b\n", {}, r"'item' of .*items.csv is missing"),
        (
            "item,genre\n100,a\n101,b\n",
            {"item_attributes": ("gener",)},
            r"no column 'gener' \(--item-attributes\). Did you mean genre\?",
        ),
        (
            "item,genre\n100,a\n101,b\n",
            {"title_column": "titel"},
            r"no column 'titel' \(--title-column\)",
        ),
        ("item,genre\n1,a\n", {}, r"none of the 1 ids of --items .* occurs in the interactions"),
        ("item,genre\n", {}, r"items.csv is empty: it has a header and no rows"),
    ],
)
def test_bad_items(tmp_path: Path, contents: str, arguments: dict[str, Any], message: str) -> None:
    source = write_csv(tmp_path / "rows.csv", some_rows())
    items = tmp_path / "items.csv"
    items.write_text(contents)
    with pytest.raises(ValueError, match=message):
        make(source, tmp_path / "out", items=str(items), **arguments)


def test_null_ids_are_dropped_on_request(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "rows.csv", some_rows())
    source.write_text(source.read_text() + ",3,5\nnull,4,6\n")
    dataset = make(source, tmp_path / "out", drop_null_ids=True)
    assert dataset.dropped == {"missing_id": 2}
