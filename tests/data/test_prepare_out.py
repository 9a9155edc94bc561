"""What prepare and synth write, where, and that they touch nothing else; resources and ends."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pytest

from cluster.cli import main
from tests.data.planted import make, some_rows, write_csv
from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.files.whole_folder import PREFIX
from trainer.observe.progress import SilentProgress
from trainer.prepare.partitions.partition_plan import PartitionCounts, PartitionPlan
from trainer.prepare.pipeline import PrepareArguments, prepare, run_here
from trainer.sources import sql
from trainer.synth.synth import SynthArguments, synth

SMALL = {"users": 60, "items": 40, "interactions": 500}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "rows.csv", some_rows())


def synthesise(out: Path | str, **arguments: Any) -> None:
    synth(SynthArguments(str(out), **{**SMALL, **arguments}), SilentProgress(), show=False)


def tree(folder: Path) -> dict[str, int]:
    return {str(each): each.lstat().st_ino for each in folder.rglob("*")}


def test_folders_of_the_user_s_stay(source: Path, tmp_path: Path) -> None:
    """DATA.old, DATA.partial and a source of such a name, in success and in failure."""
    for name in ("out.old", "out.partial"):
        shutil.copytree(source.parent, tmp_path / "own")
        (tmp_path / "own").rename(tmp_path / name)
    before = tree(tmp_path)
    make(tmp_path / "out.old", tmp_path / "out")
    with pytest.raises(Mistake, match="does not exist"):
        make(tmp_path / "nowhere", tmp_path / "new")
    make(tmp_path / "out.partial", tmp_path / "out", extend=str(tmp_path / "out"))
    shutil.rmtree(tmp_path / "out")
    synthesise(tmp_path / "out")
    with pytest.raises(Mistake, match="exists already"):
        synthesise(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert tree(tmp_path) == before


def test_a_folder_is_replaced_alone(source: Path, tmp_path: Path) -> None:
    """What the user keeps in a dataset's folder, its next source among it, is not replaced."""
    old = make(source, tmp_path / "out")
    (tmp_path / "out/.derived/x").mkdir(parents=True)
    (tmp_path / "out/.derived/x/a.npy").write_text("ours")
    (tmp_path / "out/new.csv").write_text(source.read_text())
    with pytest.raises(Mistake, match=r"is to be replaced and holds new.csv.*move it away"):
        make(tmp_path / "out/new.csv", tmp_path / "out", extend=str(tmp_path / "out"))
    assert Dataset.load(tmp_path / "out", verify="digest") == old
    (tmp_path / "out/new.csv").rename(tmp_path / "new.csv")
    (tmp_path / "link").symlink_to("out")
    extended = make(tmp_path / "new.csv", tmp_path / "link", extend=str(tmp_path / "out"))
    assert extended.parent_digest == old.digest and (tmp_path / "link").is_symlink()
    assert not (tmp_path / "out/.derived").exists()
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_two_at_once(source: Path, tmp_path: Path) -> None:
    """To one OUT: the second is told at once, and the first is whole."""
    told: list[str] = []

    def engine(plan: PartitionPlan, *others: Any) -> list[PartitionCounts]:
        for command in (make, lambda source, out: synthesise(out)):
            with pytest.raises(Mistake) as error:
                command(source, tmp_path / "out")
            told.append(str(error.value))
        return run_here(plan, *others)

    arguments = PrepareArguments(str(source), str(tmp_path / "out"), memory_limit="256MB")
    prepare(arguments, SilentProgress(), engine)
    assert Dataset.load(tmp_path / "out", verify="digest").num_users == 6
    assert len(told) == 2 and all("is being made by another command" in each for each in told)


def test_two_extend_one(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, where the second could not be told: it does not undo the first."""
    make(source, tmp_path / "out")
    other = write_csv(tmp_path / "other.csv", some_rows(users=9))

    def engine(plan: PartitionPlan, *others: Any) -> list[PartitionCounts]:
        elsewhere = make(other, tmp_path / "elsewhere", extend=str(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
        Path(elsewhere.path).rename(tmp_path / "out")
        return run_here(plan, *others)

    out = str(tmp_path / "out")
    arguments = PrepareArguments(str(source), out, extend=out, memory_limit="256MB")
    with pytest.raises(Mistake, match="was replaced by another command meanwhile"):
        prepare(arguments, SilentProgress(), engine)
    assert Dataset.load(out, verify="digest").num_users == 9
    assert not list(tmp_path.glob(f"{PREFIX}*"))


class TestStore:
    """OUT behind a URI."""

    @pytest.fixture(autouse=True)
    def memory(self) -> Iterator[None]:
        yield
        filesystem = fsspec.filesystem("memory")
        if filesystem.exists("/out"):
            filesystem.rm("/out", recursive=True)

    def test_prepare(self, source: Path, tmp_path: Path) -> None:
        expected = make(source, tmp_path / "out")
        there = make(source, "memory://out/data", scratch=str(tmp_path / "scratch"))
        assert there.digest == expected.digest
        assert list((tmp_path / "scratch").iterdir()) == []
        with pytest.raises(Mistake, match=r"memory://out/data exists already"):
            make(source, "memory://out/data")
        extended = make(source, tmp_path / "more", extend="memory://out/data")
        assert extended.parent_digest == expected.digest
        with pytest.raises(Mistake, match="cannot be replaced in place"):
            make(source, "memory://out/data", extend="memory://out/data")
        assert not (Path.cwd() / "memory:").exists()

    def test_synth(self, tmp_path: Path) -> None:
        synthesise("memory://out/synth")
        synthesise(tmp_path / "synth")
        there, here = Dataset.load("memory://out/synth"), Dataset.load(tmp_path / "synth")
        assert there.digest == here.digest

    def test_ray_needs_a_folder(self, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prepare", str(source), "memory://out/data", "--engine", "ray"]) == 1
        assert "all nodes share, not to memory://out/data" in capsys.readouterr().err


class TestScratch:
    """Where DuckDB keeps its own files."""

    def test_named(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[str] = []
        connect = duckdb.connect

        def noted(database: str = ":memory:") -> duckdb.DuckDBPyConnection:
            opened.append(database)
            return connect(database)

        monkeypatch.setattr(sql.duckdb, "connect", noted)
        make(source, tmp_path / "out", scratch=str(tmp_path / "scratch"))
        assert opened[0].startswith(str(tmp_path / "scratch/tandem-"))
        assert list((tmp_path / "scratch").iterdir()) == []

    def test_letters_that_it_reads_otherwise(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(Mistake, match=r"a\?b has \? in its path.*--scratch"):
            make(source, tmp_path / "a?b/out")
        assert not (tmp_path / "a?b").exists()
        make(source, tmp_path / "a?b/out", scratch=str(tmp_path))
        make(source, tmp_path / "out?")
        with pytest.raises(Mistake, match=r"a\\b has \\ in its path.*another OUT"):
            make(source, tmp_path / "a\\b/out", scratch=str(tmp_path))


def test_ctrl_c(tmp_path: Path) -> None:
    """In the midst of a statement: the status of a stopped command, and nothing left behind."""
    source = write_csv(tmp_path / "rows.csv", some_rows())
    program = (
        "import signal, sys, threading, os, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from trainer.prepare import steps\n"
        "def endless(connection, *others):\n"
        "    def stop():\n"
        "        time.sleep(0.5)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    threading.Thread(target=stop).start()\n"
        "    connection.execute('SELECT sum(hash(a.i + b.i)) FROM range(10000000) a(i), "
        "range(1000000) b(i)')\n"
        "steps.stage_rows = endless\n"
        "from cluster.cli import main\n"
        f"sys.exit(main(['prepare', {str(source)!r}, {str(tmp_path / 'out')!r}]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.endswith("stopped\n") and "Traceback" not in ended.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["rows.csv"]


def test_a_kill_leaves_nothing_for_long(source: Path, tmp_path: Path) -> None:
    """OUT is absent after it, and the next command for it clears up."""
    program = (
        "import sys, time\nfrom trainer.prepare import steps\n"
        "def waits(*others):\n    print('ready', flush=True)\n    time.sleep(100)\n"
        "steps.stage_rows = waits\nfrom cluster.cli import main\n"
        f"main(['prepare', {str(source)!r}, {str(tmp_path / 'out')!r}])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(f"{PREFIX}*"))
    make(source, tmp_path / "out")
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_the_version_of_duckdb_is_kept(source: Path, tmp_path: Path) -> None:
    assert make(source, tmp_path / "out").source["duckdb"] == duckdb.__version__


def test_names_of_columns_are_inherited(tmp_path: Path) -> None:
    """--extend: what was named once is known, and a usual name will do where it is not there."""
    text = "listener,track,at,heard\n" + "".join(
        f"{u},{100 + (u + n) % 9},{10 * n + u},{n}\n" for n in range(8) for u in range(6)
    )
    (tmp_path / "old.csv").write_text(text)
    items = tmp_path / "items.csv"
    items.write_text("track,label\n" + "".join(f"{n},T{n}\n" for n in range(100, 109)))
    named = {"user_column": "listener", "item_column": "track", "timestamp_column": "at"}
    old = make(
        tmp_path / "old.csv", tmp_path / "old", items=str(items), title_column="label", **named
    )
    later = text.replace(",1", ",9")
    for header in ("listener,track,at,heard", "user_id,item_id,timestamp,heard"):
        (tmp_path / "new.csv").write_text(header + "\n" + later.split("\n", 1)[1])
        made = make(tmp_path / "new.csv", tmp_path / header[:4], extend=str(tmp_path / "old"))
        assert made.source["columns"]["user"] == header.split(",")[0]
        assert made.parent_digest == old.digest
