"""JSON documents, Parquet, safetensors and line files changed in place."""

from __future__ import annotations

import json
import os
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path, random.Random], None]

DEEP = "[" * 100_000
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.5, 2**31, 2**63, 10**30, -(2**62), 1e308, 1e-300),
    *("", "x", "1", "false", "nan", "../../notes.txt", "/etc/passwd", "http://127.0.0.1:9/x"),
    *("'; DROP TABLE x; --", "a'); COPY (SELECT 1) TO 'stolen.csv'; --", "[red]x[/red]", "\x1b[2J"),
    *("a" * 10_000, "💥", "\ud800", "line\nend", "\x00"),
    *([], {}, [1], [[]], ["a"], {"a": 1}, [None], {"": {}}),
    *(float("nan"), float("inf"), -float("inf")),
]


def places_of(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a document has a value, as paths of keys and places."""
    found = [path] if path else []
    inner = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in inner:
        found += places_of(value, (*path, key))
    return found


def swap_value(path: Path, chance: random.Random) -> None:
    """A value somewhere becomes another; now and then a key goes, comes or is renamed."""
    document = json.loads(path.read_text())
    places = places_of(document)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        *above, last = chance.choice(places)
        holder = document
        try:
            for key in above:
                holder = holder[key]
            act = chance.randrange(8)
            if act == 0:
                del holder[last]
            elif act == 1 and isinstance(holder, dict):
                holder[chance.choice(("x", "", "__class__", "a\nb", f"{last}x"))] = holder.pop(last)
            elif act == 2 and isinstance(holder, dict):
                holder["surplus"] = chance.choice(VALUES)
            else:
                holder[last] = _other(holder[last], chance)
        except (KeyError, IndexError, TypeError):
            continue  # the change before took its place away
    path.write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")


def _other(value: Any, chance: random.Random) -> Any:
    """Another value: near the old one, or anything."""
    if chance.random() < 0.4:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int | float):
            return chance.choice(
                (-value, value + 1, value * 10**9, str(value), float(value), [value])
            )
        if isinstance(value, str):
            return chance.choice(
                (value + "x", value[:-1], value.upper(), f"../{value}", [value], 3)
            )
        if isinstance(value, list):
            return chance.choice((value * 2, value[:-1], value[::-1], dict.fromkeys("ab"), "x"))
    return chance.choice(VALUES)


def spoil_text(path: Path, chance: random.Random) -> None:
    """No JSON any more, or JSON as nobody writes it."""
    text = path.read_bytes()
    cut = chance.randrange(len(text) + 1)
    key = re.search(rb'"[^"]+"', text)
    double = b"{" + (key.group() if key else b'"a"') + b": 1, "
    path.write_bytes(
        chance.choice(
            (
                b"",
                b" \n",
                text[:cut],
                b"\xef\xbb\xbf" + text,
                text.decode().encode("utf-16"),
                text[:cut] + b"\xff\x00" + text[cut:],
                DEEP.encode(),
                b'{"a":' * 50_000,
                text + text,
                text + b"\x00" * 100,
                b"[" + text + b"]",
                b"null",
                b"3",
                b'"x"',
                text.replace(b"{", double, 1),
                text.replace(b"1", b"1e999"),
                text.replace(b"0", b"9" * 5000, 1),
                text.replace(b":", b": NaN,", 1),
                b"1" * 2_000_000,
            )
        )
    )


def flip(path: Path, chance: random.Random) -> None:
    """One to some bits, or bytes, of a file; or it is cut, or longer."""
    content = bytearray(path.read_bytes())
    act = chance.randrange(6)
    if act == 0:
        content = content[: chance.randrange(len(content) + 1)]
    elif act == 1:
        content += bytes(chance.randrange(256) for _ in range(chance.choice((1, 8, 1000))))
    elif act == 2:
        content = bytearray(len(content))
    for _ in range(chance.choice((1, 1, 3, 50))):
        if content:
            # Footers and headers are where a reader believes what it reads.
            end = chance.choice((len(content), min(len(content), 400)))
            place = chance.randrange(end)
            place = len(content) - 1 - place if chance.random() < 0.5 else place
            content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def mend_size(path: Path, chance: random.Random) -> None:
    """Bits flipped at the same length: what a size does not tell."""
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 3, 50))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def header(path: Path, chance: random.Random) -> None:
    """A safetensors file's header: another length, other JSON, other offsets, shapes and types."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    body, data = content[8 : 8 + size], content[8 + size :]
    if chance.random() < 0.3:
        size = chance.choice((0, 1, size + 1, size - 1, 2**63, 2**64 - 1, len(content), 10**9))
    else:
        document = json.loads(body)
        name = chance.choice([key for key in document if key != "__metadata__"])
        entry = document[name]
        act = chance.randrange(5)
        if act == 0:
            entry["data_offsets"] = chance.choice(
                ([0, 0], [-1, 8], [0, 2**62], [8, 0], [0], "x", None, [0.5, 1], [0, len(data) + 8])
            )
        elif act == 1:
            entry["shape"] = chance.choice(([], [-1], [2**62, 2**62], [0], "x", [1.5], None))
        elif act == 2:
            entry["dtype"] = chance.choice(("F64", "I8", "x", "", None, 3, "BOOL"))
        elif act == 3:
            document[chance.choice(("x", "", "../x", "a\nb"))] = document.pop(name)
        else:
            document[name] = chance.choice(VALUES)
        body = json.dumps(document).encode("utf-8", "surrogatepass")
        size = len(body)
    path.write_bytes(struct.pack("<Q", size) + body + data)


def other_kind(path: Path, chance: random.Random) -> None:
    """A folder, link, FIFO or nothing in a file's place."""
    path.unlink()
    act = chance.randrange(6)
    if act == 0:
        path.mkdir()
    elif act == 1:
        os.mkfifo(path)
    elif act == 2:
        path.symlink_to("/dev/zero")
    elif act == 3:
        path.symlink_to(path.name)
    elif act == 4:
        path.symlink_to("/nowhere/at/all")


JSON_CHANGES: tuple[Change, ...] = (swap_value, swap_value, swap_value, spoil_text, other_kind)
BINARY_CHANGES: tuple[Change, ...] = (flip, flip, mend_size, other_kind)


def within(inner: str, changes: tuple[Change, ...]) -> Change:
    """A change to one of a folder's files that match `inner`, chosen by chance."""

    def change(path: Path, chance: random.Random) -> None:
        found = sorted(each for each in path.glob(inner) if each.is_file())
        chance.choice(changes)(chance.choice(found), chance)

    return change
