"""Tables in text files: the header, what stands between columns, and what is wrong with a line."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import duckdb
import pyarrow as pa

from trainer.base.mistake import Mistake
from trainer.files.filesystems import filesystem_of, reached
from trainer.sources import sql

HEADER_BYTES = 1 << 20
"""Longest first line."""
SEPARATORS = "\t,;|"
PACKED = {
    ".bz2": "bzip2",
    ".xz": "xz",
    ".lzma": "lzma",
    ".zip": "zip",
    ".7z": "7z",
    ".rar": "rar",
    ".tar": "tar",
    ".tgz": "tar",
    ".lz4": "lz4",
    ".br": "brotli",
    ".z": "compress",
    ".snappy": "snappy",
}
BEGINNINGS = {
    b"\x1f\x8b": "gzip, though it is not named .gz",
    b"\x28\xb5\x2f\xfd": "zstd, though it is not named .zst",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet, though it is not named .parquet",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"SQLite format 3": "SQLite",
    b"\xd0\xcf\x11\xe0": "an office document",
}
NULL_TEXTS = ("nan", "null", "none", "<na>")


@dataclass(frozen=True)
class Header:
    """The first line of a text file."""

    names: tuple[str, ...]
    """Column names; "" where a column has none."""
    separator: str

    @property
    def quote(self) -> str:
        """What may stand around values; nothing in files separated by tabs."""
        return "" if self.separator == "\t" else '"'


def suffix_of(file_name: str) -> str:
    """The suffix that tells a format: `.csv` of `a.csv.gz`."""
    suffixes = [each.lower() for each in PurePath(file_name).suffixes]
    while suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    if len(suffixes) > 1 and suffixes[-1] in PACKED:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def check_packing(file_name: str) -> None:
    """Raise Mistake on files that are packed by what nobody here unpacks."""
    packed = PACKED.get(PurePath(file_name).suffix.lower())
    if packed is not None:
        raise Mistake(
            f"{file_name} is packed by {packed}: unpack it, or pack it with gzip (.gz) or zstd "
            "(.zst), which are read as they are"
        )


def header_of(path: str) -> Header:
    """Column names of a text table, and its separator: the one most frequent in the first line."""
    check_packing(path)
    line = _first_line(path)
    bare = re.sub(r'"[^"]*"', "", line)
    separator = max(SEPARATORS, key=bare.count)
    if "\t" in bare and suffix_of(path) not in (".csv", ".txt"):
        separator = "\t"
    if not bare.count(separator):
        separator = " " if " " in bare.strip() else ","
    try:
        if separator == "\t":
            names = line.split(separator)
        else:
            names = next(csv.reader(io.StringIO(line), delimiter=separator))
    except (csv.Error, StopIteration) as error:
        raise Mistake(f"{path} line 1 is no line of column names ({error})") from error
    names = [each.strip() for each in names]
    if separator == " " and "" in names:
        raise Mistake(f"{path} line 1 has several blanks between names: separate columns by tabs")
    _check_names(path, names)
    return Header(tuple(names), separator)


def _check_names(path: str, names: list[str]) -> None:
    filled = [each for each in names if each]
    if not filled:
        raise Mistake(f"{path} line 1 has separators and no column names: write them there")
    if all(re.fullmatch(r"[-+]?[0-9.]+", each) for each in filled):
        raise Mistake(
            f"{path} line 1 has numbers where column names belong ({', '.join(names[:4])}): "
            "write the names of the columns above it, for example user_id,item_id"
        )
    if len({each.lower() for each in filled}) < len(filled):
        raise Mistake(f"{path} has a column name twice: {', '.join(names)}. Rename one")


def _first_line(path: str) -> str:
    """The first line, or the first ones where a quoted name goes on in the next."""
    line = b""
    with _unpacked(path) as stream:
        while len(line) <= HEADER_BYTES:
            piece = stream.readline(HEADER_BYTES + 1)
            line += piece
            if not piece or line.count(b'"') % 2 == 0:
                break
    _check_beginning(path, line)
    if len(line) > HEADER_BYTES:
        raise Mistake(f"{path} line 1 is longer than {HEADER_BYTES >> 20} MiB: it is no header")
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise Mistake(
            f"{path} line 1 has a byte that is not UTF-8 (0x{line[error.start]:02x}, "
            f"{_about(line, error.start)}): convert the file, for example by "
            "`iconv -f latin1 -t utf-8`"
        ) from error
    if not text.strip():
        raise Mistake(f"{path} line 1 is empty: the names of the columns belong there")
    if "\r" in text:
        raise Mistake(f"{path} ends its lines by \\r alone: convert them to \\n")
    return text


def _about(line: bytes, place: int) -> str:
    """The letters around a place, readable."""
    return repr(line[max(0, place - 10) : place + 10].decode("latin-1"))


def _check_beginning(path: str, line: bytes) -> None:
    for beginning, what in BEGINNINGS.items():
        if line.startswith(beginning):
            remedy = "convert it to UTF-8" if "UTF-16" in what else "rename or unpack it"
            raise Mistake(f"{path} is {what}, no UTF-8 text: {remedy}")
    if b"\x00" in line:
        raise Mistake(f"{path} has NUL bytes in its first line: it is no UTF-8 text")


@contextmanager
def _unpacked(path: str) -> Iterator[Any]:
    """A file's bytes, unpacked where its name says .gz or .zst."""
    filesystem, inner = filesystem_of(path)
    try:
        with reached(path), filesystem.open(inner, "rb") as packed:
            match PurePath(path).suffix.lower():
                case ".gz":
                    yield gzip.GzipFile(fileobj=packed)
                case ".zst":
                    native = pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd")
                    yield io.BufferedReader(native)
                case _:
                    yield packed
    except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowException) as error:
        raise Mistake(
            f"{path} cannot be unpacked ({error}): it is damaged, cut short, or not what its "
            "name says"
        ) from error
    except OSError as error:
        if error.filename is None and error.errno is None:  # zstd's, by pyarrow
            raise Mistake(f"{path} cannot be unpacked ({error}): it is damaged") from error
        raise


def text_relation(
    connection: duckdb.DuckDBPyConnection,
    files: list[str],
    header: Header,
    nulls: bool,
    of_folders: tuple[str, ...] = (),
) -> str:
    """SQL after FROM that reads text files of one header, all named columns as text.

    nulls: an unquoted `NaN`, `null` or `None` stands for a missing value; else a text is what it
    says. of_folders: columns that the names of folders hold. Names are given in SQL: a header may
    hold any.
    """
    columns = [f"c{place}" for place in range(len(header.names))]
    options: dict[str, sql.Option] = {
        "delim": header.separator,
        "quote": header.quote,
        "escape": header.quote,
        "header": True,
    }
    if nulls:
        options |= nulls_told(header.separator)
    selected = ", ".join(
        f"{column} AS {sql.name(name)}"
        for column, name in zip(columns, header.names, strict=True)
        if name
    )
    selected = ", ".join([selected, *map(sql.name, of_folders)])
    table = sql.csv(connection, files, columns, options, folders=of_folders != ())
    return f"(SELECT {selected} FROM {table})"


def nulls_told(separator: str) -> dict[str, sql.Option]:
    """Options that read what stands for a missing value, as it may be written, as NULL."""
    written = {"", "NaN"}
    for word in NULL_TEXTS:
        written |= {word, word.upper(), word.capitalize()}
    written |= {f" {each}" for each in written}
    return {
        "nullstr": sorted(each for each in written if separator not in each),
        "allow_quoted_nulls": False,
    }


@contextmanager
def readable(label: str, format: str) -> Iterator[None]:
    """Have what DuckDB says of a file be one line: the file, the line, what is wrong with it."""
    try:
        with sql.faults(f"reading {label}"):
            yield
    except sql.DatabaseError as error:
        cause = error.__cause__
        assert isinstance(cause, duckdb.Error)
        told = _told_of_line(str(cause))
        raise Mistake(told or f"{label} cannot be read as {format}: {sql.first_line(cause)}") from (
            cause
        )


def _told_of_line(message: str) -> str | None:
    """One line of DuckDB's many about a line of text that it cannot read; None for other errors."""
    line = re.search(r"CSV Error on Line: (\d+)", message)
    file = re.search(r"^\s*file = (.*)$", message, re.MULTILINE)
    if file is None:
        return None
    where = file[1] if line is None else f"{file[1]} line {line[1]}"
    original = re.search(r"Original Line: (.*)$", message, re.MULTILINE)
    reads = f" The line reads {original[1][:80]!r}" if original else ""
    columns = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    if columns:
        return (
            f"{where}: {columns[2]} columns, the header has {columns[1]}. Correct the line; a "
            f"value that holds the separator stands in quotes.{reads}"
        )
    if "Maximum line size" in message:
        return f"{where}: longer than DuckDB reads (2 MB). Is a quote before it not closed?{reads}"
    if "nicode" in message:
        return (
            f"{where}: bytes that are not UTF-8. Convert the file, for example by "
            f"`iconv -f latin1 -t utf-8`.{reads}"
        )
    if "unterminated quote" in message:
        return f"{where}: a quote that is not closed. Close it, or write it twice.{reads}"
    reason = sql.first_line(Exception(message))
    return f"{where}: {reason}.{reads}"
