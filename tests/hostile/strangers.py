"""Datasets and checkpoints as a stranger would make them: wrong inside, every digest right."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.documents import VALUES, places_of, swap_value


def sealed_checkpoint(path: Path, chance: random.Random) -> None:
    """checkpoint.json with other values, under a digest of its own."""
    file = chance.choice(sorted(path.glob("checkpoints/*/checkpoint.json")))
    swap_value(file, chance)
    _seal(file)


def _seal(file: Path) -> None:
    contents = json.loads(file.read_text())
    if isinstance(contents, dict):
        contents.pop("digest", None)
        text = json.dumps(contents, sort_keys=True)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        file.write_text(json.dumps({**contents, "digest": digest}))


def other_numbers(path: Path, chance: random.Random) -> None:
    """A tensor of the newest checkpoint with NaN, infinity or noise in it, its digest right."""
    file = sorted(path.glob("checkpoints/*/checkpoint.json"))[-1]
    facts = json.loads(file.read_text())
    saved = facts["tensors"][chance.choice(sorted(facts["tensors"]))]
    for piece in saved["pieces"]:
        shard = file.parent / piece["file"]
        content = bytearray(shard.read_bytes())
        count = piece["end"] - piece["begin"]
        item = chance.choice(
            (
                struct.pack("<f", float("nan")),
                struct.pack("<f", float("inf")),
                struct.pack("<f", 1e38),
                b"\xff" * 4,
                b"\x00" * 4,
                chance.randbytes(4),
            )
        )
        content[piece["begin"] : piece["end"]] = (item * (count // 4 + 1))[:count]
        shard.write_bytes(content)
        own = bytes(content[piece["begin"] : piece["end"]])
        piece["sha256"] = hashlib.sha256(own).hexdigest()
    file.write_text(json.dumps(facts))
    _seal(file)


def other_table(path: Path, chance: random.Random) -> None:
    """A Parquet file of a dataset with another column, its size and digest right."""
    file = chance.choice(sorted(path.rglob("*.parquet")))
    table = pq.read_table(file)
    name = chance.choice(table.column_names)
    place = table.column_names.index(name)
    act = chance.randrange(7)
    if act == 0:
        table = table.drop_columns([name])
    elif act == 1:
        names = [f"{each}x" if each == name else each for each in table.column_names]
        table = table.rename_columns(names)
    elif act == 2:
        table = table.slice(0, chance.choice((0, 1, max(table.num_rows - 1, 0))))
    elif act == 3:
        table = pa.concat_tables([table, table])
    elif act == 4:
        table = table.append_column(chance.choice(("surplus", name)), table.column(name))
    else:
        values = table.column(name).to_pylist()
        table = table.set_column(place, name, _other_column(values, chance, table.schema[place]))
    pq.write_table(table, file, row_group_size=chance.choice((1, 128, 10_000)))
    _record(path, file)


def _other_column(values: list[Any], chance: random.Random, field: pa.Field) -> pa.Array:
    """Some other values; where its type cannot hold them, of theirs."""
    strange = chance.choice((-1, 2**40, 2**62, -(2**63), None, 10**6, 1.5, "x", [], [None], [-1]))
    if isinstance(values[0] if values else None, list) and not isinstance(strange, list | None):
        strange = [strange]
    share = chance.choice((0.02, 0.5, 1.0))
    changed = [strange if chance.random() < share else value for value in values]
    for made in (
        lambda: pa.array(changed, field.type),
        lambda: pa.array(changed),
        lambda: pa.array([None if value is None else str(value) for value in changed]),
    ):
        try:
            return made()
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, pa.ArrowNotImplementedError):
            continue
    raise AssertionError("text holds anything")


def _record(path: Path, file: Path) -> None:
    """Have dataset.json know a file as it is now."""
    described = path / "dataset.json"
    contents = json.loads(described.read_text())
    files = contents["files"]
    content = file.read_bytes()
    name = str(file.relative_to(path))
    files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    lines = "".join(f"{each} {record['sha256']}\n" for each, record in sorted(files.items()))
    contents["digest"] = hashlib.sha256(lines.encode()).hexdigest()
    described.write_text(json.dumps(contents))


def other_counts(path: Path, chance: random.Random) -> None:
    """Numbers of dataset.json a little off, nothing else."""
    described = path / "dataset.json"
    contents = json.loads(described.read_text())
    places = [each for each in places_of(contents) if each[0] != "files"]
    numbers = [each for each in places if type(_at(contents, each)) is int]
    *above, last = chance.choice(numbers)
    holder = _at(contents, tuple(above))
    near = (holder[last] + 1, holder[last] - 1, 0, holder[last] * 2, chance.choice(VALUES))
    holder[last] = chance.choice(near)
    described.write_text(json.dumps(contents), encoding="utf-8", errors="surrogatepass")


def _at(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        document = document[key]
    return document
