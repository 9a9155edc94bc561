"""Runs on storage behind a URI, and who may write a run's folder."""

import errno
import fcntl
import json
import os
import re
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import make_dataset
from tests.distributed import free_port, run_ranks
from tests.monitoring.test_pages import read_when_there
from tests.s3 import s3_server
from tests.test_training import _worker, losses, small_config, train
from trainer.base.mistake import Mistake
from trainer.files import line_file, signs
from trainer.files.filesystems import filesystem_of
from trainer.files.json_files import committed, write_json
from trainer.files.line_file import LineFile, read_records
from trainer.files.storage import RemotePath, StoragePath, storage_path
from trainer.live.dashboard import DashboardArguments, dashboard
from trainer.report.norms import norms_by_popularity
from trainer.report.report import ReportArguments, report
from trainer.retrieval.evaluate_run import EvaluateArguments, evaluate
from trainer.retrieval.recommend import RecommendArguments, recommend
from trainer.run import lock
from trainer.run.folder import RunFolder, RunSpec
from trainer.run.lock import RunLock
from trainer.run.state import read_state

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "data"
    make_dataset(path, users=80, items=60, rows=1500)
    return str(path)


def test_a_remote_path_is_used_like_a_path() -> None:
    root = storage_path("memory://paths/run")
    assert isinstance(root, RemotePath)
    assert not root.exists() and list(root.iterdir()) == []
    write_json(root / "a" / "config.json", {"x": 1})
    assert root.exists() and (root / "a" / "config.json").is_file()
    assert [path.name for path in root.iterdir()] == ["a"]
    assert json.loads((root / "a/config.json").read_text()) == {"x": 1}
    assert str(root.parent) == "memory://paths" and root.with_name("other").name == "other"
    (root / "a/config.json").unlink()
    (root / "a/config.json").unlink(missing_ok=True)
    root.remove_tree()
    assert not root.exists()
    assert isinstance(storage_path("file:///tmp/x"), Path)


def test_lines_are_whole_for_others_when_flushed() -> None:
    file = LineFile(storage_path("memory://lines/metrics.jsonl"))
    file.append("one")
    file.append("two")
    assert not file.path.exists()  # written now and then, and when asked
    file.flush()
    assert file.path.read_text() == "one\ntwo\n"
    again = LineFile(file.path)
    again.append("three")
    again.flush()
    assert again.read() == ["one", "two", "three"]


def test_lines_survive_a_kill_while_they_are_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each resume rewrites metrics.jsonl; a kill in its midst once took a run's first 155 steps."""
    file = LineFile(tmp_path / "lines.jsonl")
    for number in range(3):
        file.append(json.dumps({"step": number}))

    def killed_midway(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[:4])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", killed_midway)
        with pytest.raises(KeyboardInterrupt):
            file.keep(lambda record: record["step"] < 2)
    again = LineFile(file.path)
    assert [record["step"] for record in read_records(again.path)] == [0, 1, 2]
    again.keep(lambda record: record["step"] < 2)
    again.append('{"step": 9}')
    assert [record["step"] for record in read_records(again.path)] == [0, 1, 9]
    assert [path.name for path in tmp_path.iterdir()] == ["lines.jsonl"]


def test_a_storage_that_is_none_is_named() -> None:
    with pytest.raises(
        Mistake, match=r"nosuch://bucket/run: .*give a folder, or for example s3://"
    ):
        storage_path("nosuch://bucket/run")


def test_a_storage_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Archives that are none, arguments that no URI has: fsspec raised what it liked, and the
    message called it a bug of ours."""
    (tmp_path / "notes.txt").write_text("mine")
    archive = f"x::{tmp_path}/notes.txt"
    others = ("github://x", "dir://x", "reference://x", "jupyter://x", "generic://x")
    for uri in (f"zip://{archive}", f"tar://{archive}", *others):
        for opening in (storage_path, filesystem_of):
            with pytest.raises(Mistake, match=re.escape(f"{uri}: ")):
                opening(uri)


def written_at(file: StoragePath, seconds: float) -> None:
    """Have its storage say that it was."""
    if isinstance(file, Path):
        os.utime(file, (seconds, seconds))
    else:
        stored = file._filesystem.store[file._inner]
        stored.modified = datetime.fromtimestamp(seconds, UTC)


@pytest.mark.parametrize("kind", ["folder", "object store"])
def test_two_runs_to_one_folder_across_nodes(kind: str, tmp_path: Path) -> None:
    """The other node's kernel lock is not seen here: its sign in owner.json is."""
    folder = tmp_path if kind == "folder" else storage_path(f"memory://{tmp_path.name}/run")
    write_json(
        folder / "owner.json",
        {
            "run_id": "theirs",
            "token": "t",
            "host": "node-b",
            "machine": "another",
            "pid": 7,
            "renewed": time.time() - 20,
        },
    )
    written_at(folder / "owner.json", time.time() - 20)
    with pytest.raises(ValueError, match=r"in use by another run, on node-b \(its last sign: 2"):
        RunLock(folder).take("ours")
    again = RunLock(folder)
    again.take("theirs")  # a restart of the same start
    with pytest.raises(ValueError, match="in use by another run"):
        RunLock(folder).take("ours")
    again.release()
    assert not (folder / "owner.json").exists()
    after = RunLock(folder)
    after.take("ours")
    after.release()


def test_a_silent_owner_is_given_up(tmp_path: Path) -> None:
    first = RunLock(tmp_path)
    first.take("first")
    owner = json.loads((tmp_path / "owner.json").read_text())
    first.release()
    write_json(tmp_path / "owner.json", {**owner, "machine": "another"})
    written_at(tmp_path / "owner.json", time.time() - signs.SILENT_SECONDS - 1)
    second = RunLock(tmp_path)
    second.take("second")
    second.release()
    # Killed on this machine: its kernel lock is gone, and no one need wait.
    write_json(tmp_path / "owner.json", {**owner, "renewed": time.time()})
    third = RunLock(tmp_path)
    third.take("third")
    third.release()


def test_a_holder_that_has_taken_its_name_off_is_about_to_go(tmp_path: Path) -> None:
    """owner.json is removed a moment before the kernel's lock is."""
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ending = threading.Timer(1.0, fcntl.flock, (held, fcntl.LOCK_UN))
        ending.start()
        after = RunLock(tmp_path)
        after.take("ours")
        ending.join()
    after.release()


def test_an_earlier_attempt_of_the_same_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 of the group before, on a node that was cut off, ends a little later."""
    before, after = RunLock(tmp_path), RunLock(tmp_path)
    before.take("ours")
    ending = threading.Timer(1.5, before.release)
    ending.start()
    started = time.monotonic()
    after.take("ours")
    assert time.monotonic() - started > 1
    ending.join()
    assert json.loads((tmp_path / "owner.json").read_text())["run_id"] == "ours"
    monkeypatch.setattr(signs, "SILENT_SECONDS", 1.0)
    with pytest.raises(ValueError, match="in use by another run"):
        RunLock(tmp_path).take("ours")
    after.release()


def test_an_owner_that_was_replaced_writes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said so in the log, and went on writing checkpoints beside the new owner's."""
    monkeypatch.setattr(signs, "RENEW_SECONDS", 0.02)
    folder = RunFolder(tmp_path)
    folder.lock.take("ours")
    folder.lock.confirm()
    folder.append_metrics({"step": 1})
    owner = json.loads((tmp_path / "owner.json").read_text())
    theirs = {**owner, "token": "t", "run_id": "theirs", "host": "node-b"}
    while json.loads((tmp_path / "owner.json").read_text()) != theirs:
        write_json(tmp_path / "owner.json", theirs)  # a sign on its way may come after it
        time.sleep(0.1)
    with pytest.raises(OSError, match="taken over by another start of the run on node-b"):
        folder.lock.confirm()
    assert folder.lock.is_lost
    folder.append_metrics({"step": 2})
    assert [record["step"] for record in read_records(folder.metrics_file)] == [1]
    time.sleep(0.1)
    folder.lock.release()
    assert json.loads((tmp_path / "owner.json").read_text()) == theirs


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_by_owner_json_alone(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.01)
    first = RunLock(tmp_path)
    first.take("first")
    with pytest.raises(ValueError, match="in use by another run, on "):
        RunLock(tmp_path).take("second")
    first.release()
    second = RunLock(tmp_path)
    second.take("second")
    second.release(forget=True)


def test_a_lock_file_taken_away_is_not_held(tmp_path: Path) -> None:
    """Its holder forgot it while this one waited for it: a third would have held the folder."""
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def go() -> None:
            (tmp_path / ".lock").unlink()
            fcntl.flock(held, fcntl.LOCK_UN)

        ending = threading.Timer(0.5, go)
        ending.start()
        after = RunLock(tmp_path)
        after.take("ours")
        ending.join()
        with pytest.raises(ValueError, match="in use by another run"):
            RunLock(tmp_path).take("theirs")
        after.release()


def test_lines_of_an_object_store_do_not_hold_up_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole file is written anew each time: in a thread, and the rarer the longer it takes."""
    monkeypatch.setattr(line_file, "REWRITE_SECONDS", 0.0)
    file = LineFile(storage_path("memory://slow/metrics.jsonl"))
    file._pause = 0.0
    may_write, wrote = threading.Event(), threading.Event()

    def slow(path: RemotePath, text: str) -> None:
        assert may_write.wait(30)
        real(path, text)
        wrote.set()

    real = RemotePath.write_text
    monkeypatch.setattr(RemotePath, "write_text", slow)
    for number in range(50):
        file.append(json.dumps({"step": number}))  # would wait for the first write
    assert not file.path.exists()
    may_write.set()
    assert wrote.wait(30)
    file.flush()
    assert [record["step"] for record in read_records(file.path)] == list(range(50))


def test_the_marker_of_a_folder_is_nothing_in_it() -> None:
    """Consoles of object stores make an object of a folder's own name."""
    root = storage_path("memory://marked/run")
    assert isinstance(root, RemotePath)
    (root / "a.json").write_text("{}")
    real = root._filesystem.ls
    listed = [*real(root._inner, detail=False), f"{root._inner}/"]
    root._filesystem.ls = lambda *_, **__: listed
    try:
        assert [path.name for path in root.iterdir()] == ["a.json"]
    finally:
        del root._filesystem.ls


def on_s3(spec: RunSpec, variables: dict[str, str]) -> None:
    os.environ |= variables  # the fork server knows them not
    _worker(spec)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_on_s3(data: str, tmp_path: Path) -> None:
    """Two ranks train, stop, resume past a damaged shard, evaluate and recommend, in a bucket."""
    config = small_config(
        checkpoint={"every_steps": 4, "keep": 2}, optimizer={"schedule": "constant"}
    )
    here = tmp_path / "here"
    train(RunSpec("ml-100k", config, data, str(here)), 2)
    with s3_server() as (bucket, variables):
        out = f"{bucket}/runs/a"
        stopped = replace(config, training=replace(config.training, max_steps=6))
        run_ranks(2, on_s3, RunSpec("ml-100k", stopped, data, out), variables)
        saved = [path.name for path in committed(storage_path(f"{out}/checkpoints"))]
        assert saved == ["step-00000004", "step-00000006"]
        spec = RunSpec("ml-100k", config, data, out)
        with pytest.raises(AssertionError, match="exists already; choose another --out"):
            run_ranks(2, on_s3, spec, variables)
        shard = storage_path(f"{out}/checkpoints/step-00000006/rank-00000.safetensors")
        shard.write_text("damaged")
        run_ranks(2, on_s3, replace(spec, resume=True), variables)
        lines = RunFolder(out).metrics_file.read_text().splitlines()
        curve = {record["step"]: record["loss"] for record in map(json.loads, lines)}
        assert curve == losses(here)
        assert read_state(out).describe() == (
            f"{out}: finished, step 20 of 20, newest checkpoint of step 20"
        )
        assert not (RunFolder(out).path / "owner.json").exists()
        there = evaluate(EvaluateArguments(run=out, k=(10,)))
        same = evaluate(EvaluateArguments(run=str(here), k=(10,)))
        assert there["recall@10"] == same["recall@10"]
        assert "validation" in json.loads((storage_path(out) / "evaluation.json").read_text())
        recommend(RecommendArguments(run=out, user="1003", k=5))
        page = report(ReportArguments((out,)))
        assert str(page) == f"{out}/report.html"
        assert page.read_text().rstrip().endswith("</html>")
        norms = norms_by_popularity(storage_path(out), storage_path(data))
        assert isinstance(norms, dict) and norms["count"]
        assert norms == norms_by_popularity(here, Path(data))
        shown = shown_by_dashboard(out)
        assert (shown["name"], shown["now"]["phase"]) == ("a", "finished")
        assert dict(zip(shown["metrics"]["step"], shown["metrics"]["loss"], strict=True)) == curve


def shown_by_dashboard(run: str) -> dict[str, Any]:
    """What the live page draws of a run."""
    stop, port = threading.Event(), free_port()
    arguments = DashboardArguments(run, port=port, prometheus=False)
    serving = threading.Thread(target=dashboard, args=(arguments, stop))
    serving.start()
    try:
        return json.loads(read_when_there(f"http://127.0.0.1:{port}/data.json"))["runs"][0]
    finally:
        stop.set()
        serving.join()
