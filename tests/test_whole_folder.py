"""Folders whole or not at all, and everybody else's left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from trainer.base.mistake import Mistake
from trainer.files import whole_folder as module
from trainer.files.whole_folder import NEW, OLD, OWNER, PREFIX, REPLACED, whole_folder


def make(out: Path | str, word: str = "new", names: tuple[str, ...] = ("a", "deep/b")) -> None:
    with whole_folder(out) as folder:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(word)


def plain(out: Path, word: str) -> None:
    """The same folder, made by somebody else."""
    (out / "deep").mkdir(parents=True)
    (out / "a").write_text(word)
    (out / "deep/b").write_text(word)


def replace(out: Path, word: str = "new") -> None:
    """Replace a folder of files a and deep/b."""
    with whole_folder(out, replaces=lambda old: ("a", "deep/b")) as folder:
        (folder / "a").write_text(word)


def tree(folder: Path) -> dict[str, str]:
    """Files by path, folders that are empty as well."""
    return {
        str(each.relative_to(folder)): each.read_text() if each.is_file() else "/"
        for each in sorted(folder.rglob("*"))
        if each.is_file() or not any(each.iterdir())
    }


def killed(parent: Path, out: str, *, new: bool = False, old: bool = False) -> Path:
    """What a command for `out` leaves when it is killed."""
    beside = parent / f"{PREFIX}dead"
    beside.mkdir(parents=True)
    (beside / OWNER).write_text(json.dumps({"out": out, "pid": 1, "host": "here"}))
    (beside / REPLACED).write_text(json.dumps(["a", "deep/b"]))
    for name, wanted in ((NEW, new), (OLD, old)):
        if wanted:
            (beside / name / "deep").mkdir(parents=True)
            (beside / name / "a").write_text(name)
            (beside / name / "deep/b").write_text(name)
    return beside


def test_whole(tmp_path: Path) -> None:
    make(tmp_path / "x/y/out")
    assert tree(tmp_path) == {"x/y/out/a": "new", "x/y/out/deep/b": "new"}
    assert (tmp_path / "x/y/out").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_not_at_all(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), whole_folder(tmp_path / "x/y/out") as folder:
        (folder / "a").write_text("half")
        raise error
    assert not tree(tmp_path) and not (tmp_path / "x").exists()


THERE: dict[str, Callable[[Path], object]] = {
    "a file": lambda out: out.write_text("mine"),
    "an empty folder": lambda out: out.mkdir(),
    "a folder": lambda out: plain(out, "mine"),
    "a link": lambda out: (plain(out.with_name("own"), "mine"), out.symlink_to(out.parent / "own")),
    "a link to nothing": lambda out: out.symlink_to("nowhere"),
    "a link in a circle": lambda out: out.symlink_to(out),
}


@pytest.mark.parametrize("what", THERE)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_is_there_stays(tmp_path: Path, what: str, when: str) -> None:
    out = tmp_path / "out"
    if when == "before":
        THERE[what](out)
    elif what == "an empty folder":
        pytest.skip("a rename takes its place, and nothing is lost")
    message = r"out (exists already|was made by another)"
    with pytest.raises(Mistake, match=message), whole_folder(out) as folder:
        assert when == "meanwhile"
        (folder / "a").write_text("new")
        THERE[what](out)
    assert os.path.lexists(out)
    assert not list(tmp_path.glob(f"{PREFIX}*"))
    if not out.is_symlink() and out.is_dir():
        assert set(tree(out).values()) <= {"mine"}


@pytest.mark.parametrize(
    "name", ["", "s3:x", "a b\nc", "[x]", "d?*", "user=7", "ü💥", "-o", "x" * 255]
)
def test_names(tmp_path: Path, name: str) -> None:
    if not name:
        with pytest.raises(Mistake, match="OUT is empty"):
            make("")
        return
    make(tmp_path / name)
    assert set(tree(tmp_path / name)) == {"a", "deep/b"}
    with pytest.raises(Mistake, match="exists already"):
        make(tmp_path / name)


def test_a_file_above(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Mistake, match=r"file is a file: OUT .* cannot lie in it"):
        make(tmp_path / "file/out")
    assert tree(tmp_path) == {"file": "mine"}


def test_neighbours_of_the_same_name_stay(tmp_path: Path) -> None:
    """A user's own OUT.partial and OUT.old, and folders that only look like ours."""
    for name in ("out.partial", "out.old", f"{PREFIX}mine"):
        plain(tmp_path / name, "mine")
    (tmp_path / f"{PREFIX}file").write_text("mine")
    (tmp_path / f"{PREFIX}mine" / OWNER).write_text('["out"]')
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "out.old")
    before = tree(tmp_path)
    make(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert tree(tmp_path) == before


def test_replaced(tmp_path: Path) -> None:
    make(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to("real")
    replace(tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "real") == {"a": "new"}
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("fails_in", ["body", "check"])
def test_not_replaced(tmp_path: Path, fails_in: str) -> None:
    make(tmp_path / "out", "old")

    def replaces(old: Path) -> Iterator[str]:
        assert (old / "a").read_text() == "old"
        raise Mistake("not this one")
        yield "a"

    message = "not this one"
    with (
        pytest.raises(Mistake, match=message),
        whole_folder(tmp_path / "out", replaces) as folder,
    ):
        (folder / "a").write_text("new")
        if fails_in == "body":
            raise Mistake(message)
    assert tree(tmp_path) == {"out/a": "old", "out/deep/b": "old"}


def test_the_users_files_in_a_replaced_folder_stay(tmp_path: Path) -> None:
    """They came after the look at the folder: nothing in them is ours."""
    make(tmp_path / "out", "old")
    (tmp_path / "out/deep/notes").write_text("mine")
    replace(tmp_path / "out")
    (kept,) = tmp_path.glob(f"{PREFIX}*/{OLD}/deep/notes")
    assert kept.read_text() == "mine" and not (tmp_path / "out/deep").exists()


def test_replaced_by_two(tmp_path: Path) -> None:
    """The second to come finds another folder than it read, and leaves it."""
    make(tmp_path / "out", "old")

    def only_old(old: Path) -> tuple[str, ...]:
        if (old / "a").read_text() != "old":
            raise Mistake("changed meanwhile")
        return ("a", "deep/b")

    with (
        pytest.raises(Mistake, match="changed meanwhile"),
        whole_folder(tmp_path / "out", only_old) as folder,
    ):
        (folder / "a").write_text("second")
        (tmp_path / "out/a").write_text("first")
    assert tree(tmp_path) == {"out/a": "first", "out/deep/b": "old"}


@pytest.mark.parametrize(
    ("new", "old", "out", "expected"),
    [
        (True, False, False, {"out/a": "new"}),  # killed at work
        (True, True, False, {"out/a": "old"}),  # between two renames
        (False, True, True, {"out/a": "there"}),  # after both
        (True, True, True, {"out/a": "there", f"{PREFIX}dead/{OLD}/a": OLD}),  # someone else's out
    ],
)
def test_what_a_killed_command_left(
    tmp_path: Path, new: bool, old: bool, out: bool, expected: dict[str, str]
) -> None:
    killed(tmp_path, "out", new=new, old=old)
    if out:
        plain(tmp_path / "out", "there")
    if old:
        replaced = tmp_path / "out"
        with pytest.raises(Mistake, match="out exists already"):
            make(replaced)
    else:
        make(tmp_path / "out")
    found = tree(tmp_path)
    assert {key: found[key] for key in expected} == expected
    assert any(f"{PREFIX}dead" in key for key in found) == any(PREFIX in key for key in expected)


def test_other_commands_leftovers_stay(tmp_path: Path) -> None:
    killed(tmp_path, "other", new=True)
    make(tmp_path / "out")
    assert (tmp_path / f"{PREFIX}dead/{NEW}/a").exists()


def test_a_hostile_marker_names_no_file_outside(tmp_path: Path) -> None:
    beside = killed(tmp_path / "p", "out", old=True)
    (tmp_path / "mine").write_text("mine")
    names = ["../../../mine", str(tmp_path / "mine"), 7, None]
    (beside / REPLACED).write_text(json.dumps(names))
    plain(tmp_path / "p/out", "there")
    with pytest.raises(Mistake, match="exists already"):
        make(tmp_path / "p/out")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.timeout(60)
def test_a_marker_that_is_none_is_nobodys_business(tmp_path: Path) -> None:
    """A FIFO in its place was waited for, and one nested deeply was called a bug."""
    markers = [tmp_path / f"{PREFIX}{name}" / OWNER for name in ("pipe", "deep", "zero", "folder")]
    for marker in markers:
        marker.parent.mkdir()
    os.mkfifo(markers[0])
    markers[1].write_text("[" * 60_000)
    markers[2].symlink_to("/dev/zero")
    markers[3].mkdir()
    make(tmp_path / "out")
    assert all(marker.parent.is_dir() for marker in markers)


def test_a_second_command_is_told_at_once(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("first")
        with pytest.raises(
            Mistake, match=rf"being made by another command \(process {os.getpid()}"
        ):
            make(tmp_path / "out")
    assert tree(tmp_path) == {"out/a": "first"}


def test_a_killed_process_is_no_command_at_work(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom trainer.files.whole_folder import whole_folder\n"
        "with whole_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'a').write_text('half')\n"
        "    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    with pytest.raises(Mistake, match=f"process {process.pid} on"):
        make(tmp_path / "out")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    make(tmp_path / "out")
    assert tree(tmp_path) == {"out/a": "new", "out/deep/b": "new"}


def test_without_locks_leftovers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path, "out", new=True)

    def no_locks(file: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    make(tmp_path / "out")
    assert (tmp_path / "out/a").exists() and (tmp_path / f"{PREFIX}dead/{NEW}/a").exists()


class TestStore:
    """OUT behind a URI."""

    @pytest.fixture
    def memory(self) -> Iterator[fsspec.AbstractFileSystem]:
        filesystem = fsspec.filesystem("memory")
        yield filesystem
        if filesystem.exists("/whole"):
            filesystem.rm("/whole", recursive=True)

    def test_sent(self, memory: fsspec.AbstractFileSystem) -> None:
        make("memory://whole/out", names=("z.json", "a", "deep/b.json"))
        assert sorted(memory.find("/whole")) == [
            "/whole/out/a",
            "/whole/out/deep/b.json",
            "/whole/out/z.json",
        ]
        with pytest.raises(Mistake, match="exists already"):
            make("memory://whole/out")

    def test_the_description_comes_last(
        self, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where sending fails, all that was sent goes away, and nothing else."""
        sent: list[str] = []
        put = type(memory).put_file

        def fails_at_last(own: object, here: str, there: str) -> None:
            sent.append(there)
            if there.endswith(".json"):
                memory.pipe_file("/whole/out/mine", b"")
                raise OSError("no more")
            put(memory, here, there)

        monkeypatch.setattr(type(memory), "put_file", fails_at_last)
        with pytest.raises(OSError, match="no more"):
            make("memory://whole/out", names=("a.json", "b", "deep/c"))
        assert sent[-1] == "/whole/out/a.json"
        assert memory.find("/whole") == ["/whole/out/mine"]

    def test_two_commands(self, memory: fsspec.AbstractFileSystem) -> None:
        with (
            pytest.raises(Mistake, match="was made by another command meanwhile"),
            whole_folder("memory://whole/out") as folder,
        ):
            (folder / "a").write_text("second")
            make("memory://whole/out", "first")
        assert memory.cat_file("/whole/out/a") == b"first"
        assert len(memory.find("/whole")) == 2

    def test_unknown(self) -> None:
        with pytest.raises(Mistake, match=r"nope://x.*give a folder"):
            make("nope://x")
        replaced = whole_folder("memory://x", replaces=lambda old: ())
        with pytest.raises(Mistake, match="cannot be replaced in place"), replaced:
            pass
