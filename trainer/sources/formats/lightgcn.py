"""LightGCN's text: a user and his items a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb

from trainer.base.mistake import Mistake
from trainer.sources import sql
from trainer.sources.checks import null_text
from trainer.sources.sources import GIVEN, Source
from trainer.sources.text_files import suffix_of

LINE_BYTES = 16 << 20
"""Longest line: two million items of one user."""


def lightgcn(
    connection: duckdb.DuckDBPyConnection, path: str, files: list[str]
) -> tuple[Source, list[str]]:
    """Lines `user item item ...` in train.txt, test.txt (and valid.txt), or in one file."""
    texts = [each for each in files if suffix_of(each) == ".txt" and _given(each) is not None]
    if not texts:
        if len(files) > 1:
            raise Mistake(f"{path} has no train.txt: the lightgcn format needs it")
        texts = files
    texts.sort(key=lambda each: _given(each) or 0)
    options: dict[str, sql.Option] = {
        "delim": "\n",
        "quote": "",
        "escape": "",
        "header": False,
        "max_line_size": LINE_BYTES,
        "buffer_size": 2 * LINE_BYTES,
    }
    parts = [
        f"""SELECT words[1] AS raw_user, unnest(words[2:]) AS raw_item,
            {_given(each) or 0}::TINYINT AS given
        FROM (SELECT string_split_regex(trim(line), '\\s+') AS words
              FROM {sql.csv(connection, [each], ["line"], options)} WHERE trim(line) <> '')"""
        for each in texts
    ]
    names = tuple(
        dict.fromkeys(("train", "validation", "test")[_given(each) or 0] for each in texts)
    )
    given = names if len(names) > 1 else ()

    def select(id_of: Callable[[str], str]) -> str:
        return (
            f"SELECT {id_of('raw_user')} AS raw_user, {id_of('raw_item')} AS raw_item, "
            f"NULL::DOUBLE AS rating, NULL::BIGINT AS timestamp, "
            f"{'given' if given else 'NULL::TINYINT AS given'} FROM ({' UNION ALL '.join(parts)})"
        )

    source = Source(
        format="lightgcn",
        select=select(lambda word: f"CASE WHEN NOT {null_text(word)} THEN {word} END"),
        as_written=select(lambda word: word),
        given=given,
        has_rating=False,
        has_timestamp=False,
        columns={},
    )
    return source, texts


def _given(file_name: str) -> int | None:
    """The split that LightGCN's file is of: `train.txt`, `test.txt.gz`."""
    return GIVEN.get(Path(file_name).name.split(".")[0])
