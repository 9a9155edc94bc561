"""Which files a path means, whatever letters are in it, and which of them belong together."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import fsspec
import pytest

from tests.data.planted import make, some_rows, table, write_csv
from trainer.base.mistake import Mistake
from trainer.sources import sources
from trainer.sources.columns import Columns
from trainer.sources.formats.every import read_source
from trainer.sources.side_tables import SideFiles
from trainer.sources.sources import beside, list_files

ODD = [
    "a[1]",
    "b?c",
    "d*e",
    "{a,b}",
    "s p",
    "new\nline",
    "q'uote",
    'dq"',
    "user=7",
    "~t",
    "x::y",
    "%41",
    "#h",
    "ü💥",
    "-r",
    "back\\slash",
]
DECOYS = ["a1", "bxc", "dxe", "a", "b", "A"]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Folders with odd names, and what a pattern of these names would match."""
    for name in (*ODD, *DECOYS):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.csv").write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_taken_letter_for_letter(
    odd: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [str(odd / name / f"{name}.csv")]
    monkeypatch.chdir(odd)
    for path in (odd / name / f"{name}.csv", odd / name, Path(name), Path(name) / "*.csv"):
        assert list_files(str(path)) == expected


def test_patterns(odd: Path) -> None:
    assert list_files(f"{odd}/[ab][1x]*/*.csv") == [
        str(odd / "a1/a1.csv"),
        str(odd / "bxc/bxc.csv"),
    ]
    assert len(list_files(f"{odd}/**/*.csv")) == len(ODD) + len(DECOYS)


def test_object_stores() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("odd/a[1].csv", "odd/a1.csv", "odd/.hidden/x.csv"):
        memory.pipe_file(f"/{name}", b"x")
    assert list_files("memory://odd/a[1].csv") == ["memory:///odd/a[1].csv"]
    assert len(list_files("memory://odd")) == 2
    assert list_files("memory://odd/a[0-9].csv") == ["memory:///odd/a1.csv"]


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, message in (
        ("", "SOURCE is empty"),
        (str(tmp_path / "pipe"), "neither a file nor a folder"),
        ("/dev/zero", "neither a file nor a folder"),
        (str(tmp_path / "loop"), "does not exist"),
        ("\udcff.csv", "is not UTF-8"),
        ("nope://x", "Protocol not known"),
        (f"{tmp_path}/*.csv", "holds no files"),
    ):
        with pytest.raises(Mistake, match=message):
            list_files(path)


def test_folders(tmp_path: Path) -> None:
    """Hidden files and pipes are no data; linked folders are read, and once."""
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    for name in ("data/a.csv", "data/deep/b.csv", "data/.hidden", "else/c.csv"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "data/pipe")
    (tmp_path / "data/round").symlink_to("../data")
    (tmp_path / "data/linked").symlink_to("../else")
    found = [Path(each).relative_to(tmp_path) for each in list_files(str(tmp_path / "data"))]
    assert sorted(map(str, found)) == ["data/a.csv", "data/deep/b.csv", "data/linked/c.csv"]


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, not left out."""

    def refused(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "a.csv").write_text("x")
    monkeypatch.setattr(sources.os, "scandir", refused)
    with pytest.raises(PermissionError):
        list_files(str(tmp_path))


@pytest.mark.parametrize("name", ["z[1]", "user=7", "date=2024-01-01", "rating=5", "n\nl"])
def test_folders_say_nothing_of_their_rows(tmp_path: Path, name: str) -> None:
    """Neither hive folders nor patterns: source, side table and OUT lie below such a name."""
    plain = make(write_csv(tmp_path / "rows.csv", some_rows()), tmp_path / "plain")
    folder = tmp_path / name / "x"
    folder.mkdir(parents=True)
    (tmp_path / "z1/x").mkdir(parents=True)
    write_csv(tmp_path / "z1/x/rows.csv", some_rows(users=4))
    (folder / "items.csv").write_text("item,title\n100,x\n101,y\n")
    made = make(
        write_csv(folder / "rows.csv", some_rows()),
        folder / "out",
        items=str(folder / "items.csv"),
    )
    assert made.source["columns"] == plain.source["columns"]
    assert made.splits == plain.splits and made.dropped == plain.dropped
    assert made.item_attributes == () and made.num_users == 6
    extended = make(folder / "rows.csv", folder / "out", extend=str(folder / "out"))
    assert extended.splits["train"].rows == made.splits["train"].rows


class TestRecBole:
    """Side files of the dataset that is read, and of no other."""

    @pytest.fixture
    def two(self, tmp_path: Path) -> Path:
        for name in ("aaa", "tiny"):
            (tmp_path / f"{name}.inter").write_text(
                "user_id:token\titem_id:token\ttime:float\n"
                + "".join(f"{n % 6}\t{n % 8}\t{n}\n" for n in range(48))
            )
            (tmp_path / f"{name}.item").write_text(
                "item_id:token\ttitle:token_seq\n" + "".join(f"{n}\t{name} {n}\n" for n in range(8))
            )
            (tmp_path / f"{name}.user").write_text(
                "user_id:token\tage:token\n" + "".join(f"{n}\t{name}{n % 2}\n" for n in range(6))
            )
        return tmp_path

    @pytest.mark.parametrize("relative", [True, False])
    def test_of_its_own_name(
        self, two: Path, relative: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(two)
        dataset = make("tiny.inter" if relative else two / "tiny.inter", two / "out")
        assert table(dataset, "items")[0]["title"].startswith("tiny")
        values = {row["value"] for row in table(dataset, "attributes")}
        assert values == {None, "tiny0", "tiny1"}

    def test_two_in_a_folder(self, two: Path) -> None:
        with pytest.raises(Mistake, match=r"several datasets, aaa and tiny: name one's .inter"):
            make(two, two / "out")

    def test_a_side_file_of_another_name(self, two: Path) -> None:
        (two / "tiny.item").unlink()
        source = sources_of(two / "tiny.inter")
        assert source.items is None and source.users is not None
        assert source.notes == (
            "not read: aaa.item, which is of another dataset; name it by --items if it belongs "
            "here",
        )


def sources_of(path: Path) -> sources.Source:
    with duckdb.connect() as connection:
        return read_source(connection, str(path), None, Columns(), SideFiles())


def test_movielens_named_by_its_ratings(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text(
        "".join(f"{n % 5}::{n % 9}::{1 + n % 5}::{n}\n" for n in range(90))
    )
    (tmp_path / "movies.dat").write_text("".join(f"{n}::Film {n}::A|B\n" for n in range(9)))
    assert len(beside(str(tmp_path / "ratings.dat"))) == 2
    source = sources_of(tmp_path / "ratings.dat")
    assert source.items is not None and source.items.label.endswith("movies.dat")


def test_what_is_left_unread_is_told(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", some_rows())
    (tmp_path / "README.md").write_text("x")
    assert sources_of(tmp_path).notes == ("not read: README.md",)
    assert sources_of(tmp_path / "a.csv").notes == ()
