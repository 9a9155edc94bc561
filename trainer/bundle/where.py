"""`--where`: one SQL expression over the items' attributes, held to reading nothing else.

Whoever asks may be a stranger, by way of a server. So the text is parsed by DuckDB and has to be
one expression made of columns, constants, comparisons and functions of a list; then it is run in a
connection of its own that may open the attributes' file alone, with its settings locked, for a
bounded time and in bounded memory.
"""

from __future__ import annotations

import atexit
import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from trainer.base.mistake import Mistake
from trainer.bundle.choices import ATTRIBUTES
from trainer.sources import sql

LONGEST = 4096
"""Characters of an expression."""
SECONDS = 10.0
MEMORY = "512MB"
KEPT_MASKS = 16
"""Answers of the last expressions are kept: 1 byte an item each."""
PARTS = {
    *("CONJUNCTION", "COMPARISON", "CONSTANT", "COLUMN_REF", "FUNCTION", "OPERATOR"),
    *("BETWEEN", "CAST", "CASE", "TYPE"),
}
FUNCTIONS = {
    *("+", "-", "*", "/", "//", "%", "||", "~~", "!~~", "~~*", "!~~*"),
    *("abs", "round", "floor", "ceil", "trunc", "least", "greatest", "nullif", "isnan"),
    *("lower", "upper", "trim", "ltrim", "rtrim", "length", "substring", "concat"),
    *("contains", "prefix", "suffix", "starts_with", "ends_with", "regexp_matches"),
    *("list_contains", "list_has", "list_has_any", "list_has_all", "list_value", "len"),
    *("array_contains", "array_has", "array_has_any", "array_has_all", "array_length"),
    *("date_part", "date_trunc", "year", "month", "day", "hour", "now", "today", "epoch"),
    *("to_years", "to_months", "to_weeks", "to_days", "to_hours", "to_minutes", "to_seconds"),
}
HOW = "write one condition on columns, such as genre = 'Jazz' AND price < 20"


class Where:
    """The attributes' table of a bundle, and the items that expressions hold for. Of one thread."""

    def __init__(self, folder: Path, num_items: int) -> None:
        self.num_items = num_items
        self._file = folder / ATTRIBUTES
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._connection: duckdb.DuckDBPyConnection | None = None

    def mask(self, expression: str) -> np.ndarray:
        """Items for which the expression is true, bool [I].

        Raises:
            Mistake: where it is no single expression, names what is not there, or takes too long.
        """
        if expression in self._kept:
            self._kept.move_to_end(expression)
            return self._kept[expression]
        check_expression(expression)
        mask_I = np.zeros(self.num_items, dtype=bool)
        mask_I[self._rows(expression)] = True
        self._kept[expression] = mask_I
        while len(self._kept) > KEPT_MASKS:
            self._kept.popitem(last=False)
        return mask_I

    def columns(self) -> dict[str, str]:
        """What an expression may name, with the types."""
        found = sql.columns_of(self._opened(), "items")
        return {name: kind for name, kind in found.items() if name != "file_row_number"}

    def _rows(self, expression: str) -> np.ndarray:
        connection = self._opened()
        timer = threading.Timer(SECONDS, connection.interrupt)
        timer.start()
        try:
            # The line's end closes a comment that the expression may end in.
            found = connection.execute(
                f"SELECT file_row_number AS row FROM items WHERE (\n{expression}\n)"
            ).fetchnumpy()
        except duckdb.InterruptException as error:
            raise Mistake(
                f"where {expression!r:.80} took more than {SECONDS:g} s: make it simpler"
            ) from error
        except duckdb.IOException:
            raise
        except duckdb.Error as error:
            names = ", ".join(f"{name} {kind}" for name, kind in self.columns().items())
            raise Mistake(
                f"where {expression!r:.80}: {sql.first_line(error)}; the items have {names:.400}"
            ) from error
        finally:
            timer.cancel()
        rows: np.ndarray = np.asarray(found["row"]).astype(np.int64)
        return rows

    def _opened(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            self._connection = _locked(self._file)
            weakref.finalize(self, self._connection.close)
        return self._connection


def _locked(file: Path) -> duckdb.DuckDBPyConnection:
    """A connection whose view `items` is a file, and that can open no other."""
    connection = duckdb.connect(
        config={
            "python_enable_replacements": False,
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
            "memory_limit": MEMORY,
            "temp_directory": "",
        }
    )
    path = str(file.absolute())
    connection.execute(f"SET allowed_paths = [{sql.text(path)}]")
    connection.execute("SET enable_external_access = false")
    source = sql.literal_files(connection, [file])
    connection.execute(
        f"CREATE VIEW items AS SELECT * FROM read_parquet({source}, file_row_number = true, "
        "hive_partitioning = false)"
    )
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET lock_configuration = true")
    return connection


def check_expression(expression: str) -> None:
    """Raise Mistake unless the text is one expression, of what may be in one."""
    shown = f"where {expression!r:.80}"
    if not expression.strip():
        raise Mistake(f"where is empty: {HOW}")
    if len(expression) > LONGEST:
        raise Mistake(f"where has {len(expression):,} characters; at most {LONGEST:,}")
    if "\0" in expression:
        raise Mistake(f"{shown} holds a zero byte: {HOW}")
    parsed = _parsed(f"SELECT (\n{expression}\n)")
    if parsed["error"]:
        raise Mistake(
            f"{shown} is no SQL ({' '.join(parsed['error_message'].split()):.200}): {HOW}"
        )
    plain = _parsed("SELECT (\n1\n)")
    if len(parsed["statements"]) != 1 or _around(parsed) != _around(plain):
        raise Mistake(f"{shown} is more than one expression: {HOW}")
    for part in _parts(parsed["statements"][0]["node"]["select_list"]):
        if part["class"] not in PARTS:
            what = part["class"].lower().replace("_", " ")
            raise Mistake(f"{shown} holds a {what}, which is not allowed: {HOW}")
        name = part.get("function_name")
        if part["class"] == "FUNCTION" and (name not in FUNCTIONS or part.get("schema")):
            allowed = ", ".join(sorted(each for each in FUNCTIONS if each[0].isalpha()))
            raise Mistake(f"{shown} calls {name!r:.40}, which is not allowed; there are {allowed}")


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A database of nothing, that parses."""
    atexit.register(_parser.cache_clear)  # before Python ends, when DuckDB would complain of it
    return duckdb.connect(config={"autoload_known_extensions": False, "threads": 1})


def _parsed(statement: str) -> dict[str, Any]:
    try:
        asked = _parser().cursor().execute("SELECT json_serialize_sql(?)", [statement])
        row = asked.fetchone()
    except (duckdb.Error, UnicodeEncodeError) as error:
        return {"error": True, "error_message": sql.first_line(error)}
    assert row is not None
    found: dict[str, Any] = json.loads(row[0])
    return found


def _around(parsed: dict[str, Any]) -> Any:
    """A statement without its one selected expression; None where there is not one."""
    node = dict(parsed["statements"][0]["node"])
    if len(node.pop("select_list", [])) != 1:
        return None
    return [node, parsed["statements"][0].get("named_param_map")]


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """Every expression in a tree, at any depth."""
    if isinstance(node, dict):
        if "class" in node:
            yield node
        for each in node.values():
            yield from _parts(each)
    elif isinstance(node, list):
        for each in node:
            yield from _parts(each)
