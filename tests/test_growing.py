"""Files that grow are read as they grow, and anew where they are others."""

import json
from pathlib import Path

import fsspec
import pytest

from trainer.files.storage import RemotePath, StoragePath, storage_path
from trainer.live.growing import GrowingColumns

TORN = b'{"step": 9, "lo\n\x00\x00\x00\n[1]\n3\n\n\xff\n{"a":' + b"[" * 5000 + b"\n"


def lines(*steps: int, **values: float) -> bytes:
    return b"".join(json.dumps({"step": step, **values}).encode() + b"\n" for step in steps)


@pytest.fixture(params=["disk", "object store"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    if request.param == "disk":
        return tmp_path / "metrics.jsonl"
    return storage_path(f"memory://{tmp_path}/metrics.jsonl")


def write(file: StoragePath, data: bytes) -> None:
    if isinstance(file, Path):
        file.write_bytes(data)
    else:
        fsspec.filesystem("memory").pipe_file(file._inner, data)


def test_each_look_takes_in_what_came_since(file: StoragePath) -> None:
    growing = GrowingColumns(file)
    assert growing.read() == {"step": []} and growing.newest == []
    text = lines(1, 2, loss=3.0)
    for more in (b"", b'{"step": 3, "loss": NaN', b', "extra": 1}\n', lines(4), TORN, lines(5)):
        text += more
        write(file, text)
        found = growing.read()
    assert found == {
        "step": [1, 2, 3, 4, 5],
        "loss": [3.0, 3.0, None, None, None],
        "extra": [None, None, 1, None, None],
    }
    assert growing.newest == [{"step": 5}]
    assert GrowingColumns(file).read() == found


@pytest.mark.parametrize(
    "other", [lines(1), lines(1, 2, 7, 8, 9, 10), lines(1, 2, 3, loss=9.0) * 40, b""]
)
def test_another_file_in_its_place_is_read_anew(file: StoragePath, other: bytes) -> None:
    """A resumed run drops the lines of steps that it trains again."""
    growing = GrowingColumns(file)
    write(file, lines(1, 2, 3, 4))
    growing.read()
    write(file, other)
    assert growing.read() == GrowingColumns(file).read()


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50,000 lines cost 6 to 9 s at each refresh of the page."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(lines(*range(5000)))
    growing = GrowingColumns(file)
    growing.read()
    parsed: list[object] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or loads(line))
    with file.open("ab") as stream:
        stream.write(lines(5000, 5001))
    assert growing.read()["step"] == list(range(5002))
    assert len(parsed) == 2


def test_an_object_store_is_asked_for_changes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    file = storage_path("memory://growing/metrics.jsonl")
    write(file, lines(1))
    growing = GrowingColumns(file)
    growing.read()
    monkeypatch.setattr(RemotePath, "read_bytes", None)
    assert growing.read()["step"] == [1]
