"""Conditions: what they mean, and that a hostile one reads and runs nothing else."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.base.mistake import Mistake
from trainer.bundle import where as where_module
from trainer.bundle.where import Where, check_expression

ROWS = {
    "item": ["a", "b", "c", "d"],
    "genre": ["Jazz", "Rock", None, "jazz"],
    "price": [1.5, 20.0, None, 7.0],
    "tags": [["x", "y"], [], ["y"], ["z"]],
    "released": [1_000_000_000, 0, None, 1_600_000_000],
    "o'dd \"name": [1, 2, 3, 4],
}


@pytest.fixture
def where(tmp_path: Path) -> Where:
    return Where(made(tmp_path), 4)


def made(folder: Path) -> Path:
    (folder / "items").mkdir(exist_ok=True)
    table = pa.table(ROWS)
    times = pa.array(ROWS["released"], pa.int64()).cast(pa.timestamp("s"))
    table = table.set_column(4, "released", times)
    pq.write_table(table, folder / "items/attributes.parquet", row_group_size=3)
    return folder


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("genre = 'Jazz'", "a"),
        ("lower(genre) = 'jazz' AND price < 20", "ad"),
        ("genre IN ('Jazz', 'Rock') OR genre IS NULL", "abc"),
        ("NOT (genre = 'Jazz')", "bd"),
        ("price BETWEEN 5 AND 25", "bd"),
        ("list_contains(tags, 'y')", "ac"),
        ("'z' IN tags OR len(tags) = 0", "bd"),
        ("genre LIKE 'J%'", "a"),
        ("genre ILIKE 'J%'", "ad"),
        ("year(released) >= 2001", "ad"),
        ("released > DATE '2010-01-01' - INTERVAL 3 DAYS", "d"),
        ("CASE WHEN price > 5 THEN genre = 'Rock' ELSE true END", "abc"),
        ("CAST(price AS INTEGER) = 20", "b"),
        ('"o\'dd ""name" > 2', "cd"),
        ("TRUE", "abcd"),
        ("NULL", ""),
        ("price < 20 -- and a comment", "ad"),
    ],
)
def test_what_a_condition_means(where: Where, expression: str, rows: str) -> None:
    mask = where.mask(expression)
    assert [ROWS["item"][row] for row in np.flatnonzero(mask)] == list(rows)
    assert where.mask(expression) is mask, "kept"


HOSTILE = [
    *("read_text('{file}') = 'x'", "item IN (SELECT content FROM read_text('{file}'))"),
    *("EXISTS (FROM read_csv('{file}'))", "'x' = ANY(SELECT 1)", "(SELECT 1) = 1"),
    *("1) UNION SELECT (2", "1) FROM read_text('{file}') WHERE (1", "1), (2", "1) AS x, (1"),
    *("1) LIMIT (1", "1) ORDER BY (1", "1) INTO (1", "TRUE; DROP VIEW items", "1; SELECT 1"),
    *("TRUE) -- \n; DROP VIEW items; --", "TRUE */ --", "TRUE /*", "$1 = 1", "? = 1"),
    *("COPY (SELECT 1) TO '{out}'", "ATTACH '{out}'", "INSTALL httpfs", "LOAD httpfs"),
    *("SET memory_limit = '1TB'", "PRAGMA version", "getenv('HOME') = ''", "current_setting('x')"),
    *("row_number() OVER () = 1", "count(*) > 1", "sum(price) > 1", "unnest(tags) = 'x'"),
    *("list_filter(tags, t -> t = 'x') = []", "[t FOR t IN tags] = []", "COLUMNS('.*') = 1"),
    *("* = 1", "items.* = 1", "repeat('a', 1000000000) = ''", "range(1000000000) = []"),
    *("lpad('a', 1000000000, 'b') = ''", "query('SELECT 1') = 1", "nextval('x') = 1"),
    *("#1 = 1", "DEFAULT", "main.lower(genre) = 'x'", "pg_sleep(10) = 1", "random() < 0.5"),
    *("glob('/*') = []", "read_blob('{file}') = ''", "sniff_csv('{file}') = 1"),
    *(
        "genre = (VALUES (1))",
        "(WITH x AS (SELECT 1) SELECT 1 FROM x) = 1",
        "genre COLLATE DE = ''",
    ),
    *("", "  ", "'", '"', "(", ")", "a\0b", "1" * 5000, "\udc80", "(" * 2000, "-" * 3000),
]


@pytest.mark.parametrize("expression", HOSTILE, ids=lambda text: repr(text[:40]))
def test_a_hostile_condition_is_refused_in_one_line(
    where: Where, expression: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    before = sorted(tmp_path.rglob("*"))
    given = expression.replace("{file}", str(secret)).replace("{out}", str(tmp_path / "out"))
    with pytest.raises(Mistake) as caught:
        where.mask(given)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1200
    assert sorted(tmp_path.rglob("*")) == before
    assert where.mask("TRUE").all(), "the next one is answered"


@pytest.mark.parametrize(
    "statement",
    [
        *("SELECT * FROM read_text('{file}')", "COPY (SELECT 1) TO '{out}'", "ATTACH '{out}'"),
        *("SET enable_external_access = true", "SET allowed_paths = ['/']", "INSTALL httpfs"),
        *("SELECT * FROM '{file}'", "SELECT * FROM ROWS"),
    ],
)
def test_the_connection_reads_nothing_even_where_a_check_would_let_it(
    where: Where, statement: str, tmp_path: Path
) -> None:
    """The second wall, behind the list of what an expression is made of."""
    secret = tmp_path / "secret.csv"
    secret.write_text("x")
    given = statement.replace("{file}", str(secret)).replace("{out}", str(tmp_path / "out"))
    with pytest.raises(duckdb.Error):
        where._opened().execute(given)
    assert not (tmp_path / "out").exists()


def test_a_condition_that_takes_too_long_is_ended(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: object) -> None:
        raise duckdb.InterruptException("INTERRUPT Error: Interrupted!")

    class Interrupted:
        interrupt = staticmethod(lambda: None)
        execute = staticmethod(slow)

    monkeypatch.setattr(where, "_connection", Interrupted())
    with pytest.raises(Mistake, match="took more than 10 s: make it simpler"):
        where.mask("price < 1")


def test_few_masks_are_kept(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where_module, "KEPT_MASKS", 2)
    masks = [where.mask(f"price < {n}") for n in range(4)]
    assert len(where._kept) == 2 and where.mask("price < 3") is masks[3]


def test_what_is_allowed_is_checked_without_a_table() -> None:
    check_expression("a = 1 AND lower(b) LIKE '%x'")
