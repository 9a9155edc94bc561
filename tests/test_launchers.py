"""Work on ranks, whoever starts them: one answer, the first cause in one line, and nobody left."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.cluster.nodes import descendants, kill_quietly
from trainer.base.ending import error_line
from trainer.base.machine import usable_cpus
from trainer.base.mistake import Mistake
from trainer.base.stopping import Terminated
from trainer.launch import processes
from trainer.launch.causes import WorkFailedError
from trainer.launch.here import Here, is_first_process
from trainer.launch.launcher import Resumable, Worker
from trainer.launch.processes import Processes, on_this_machine

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(autouse=True)
def several_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "most_workers", lambda: 3)


def much(size: int, worker: Worker) -> str:
    dist.barrier()
    return "x" * size if worker.ranks.is_first else "not asked for"


def refuse(words: str, worker: Worker) -> None:
    if worker.ranks.rank == 1:
        raise Mistake(words)
    dist.barrier()


def break_down(how: str, worker: Worker) -> None:
    """The last rank ends by itself; the others wait for it in a collective, or asleep."""
    if worker.ranks.rank == worker.ranks.world_size - 1:
        match how:
            case "bug":
                raise KeyError("files")
            case "disk":
                raise OSError(28, "No space left on device", "/out/part")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "gone":
                os._exit(0)
            case "late":
                time.sleep(0.5)
                raise OSError(28, "No space left on device", "/out/part")
    if how == "late":
        raise RuntimeError("Connection closed by peer [127.0.0.1]:4711")
    if how == "killed" and worker.ranks.rank == 1:
        time.sleep(600)
    dist.barrier()


def wait_to_be_stopped(steps: int, worker: Worker) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while not worker.hooks.stop_requested() and time.monotonic() < deadline:
        time.sleep(0.01)
    return {"phase": "stopped" if worker.hooks.stop_requested() else "finished", "steps": steps}


def sleep_for_ever(folder: str, worker: Worker) -> None:
    (Path(folder) / str(worker.ranks.rank)).write_text(str(os.getpid()))
    time.sleep(600)


def double(number: int, worker: Worker) -> int:
    if number < 0:
        raise Mistake(f"--number {number}: at least 0")
    assert worker.ranks.world_size == 1
    return 2 * number


def running() -> list[Any]:
    return processes.multiprocessing.active_children()


def test_results_larger_than_a_pipe_come_through() -> None:
    assert Processes(2).run(much, 1 << 20) == Here().run(much, 1 << 20) == "x" * (1 << 20)


def test_a_mistake_of_any_rank_is_the_users() -> None:
    with pytest.raises(Mistake, match=r"^--k 0: at least 1$"):
        Processes(2).run(refuse, "--k 0: at least 1")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("bug", r"^rank 2: unexpected KeyError: 'files' \(\w+.py:\d+\); this is a bug"),
        ("disk", r"^rank 2: No space left on device: /out/part; free some space"),
        ("killed", r"^rank 2 was ended by SIGKILL.*memory"),
        ("gone", r"^rank 2 ended without a result \(exit status 0\)"),
        ("late", r"^rank 2: No space left on device"),  # what it caused was told before
    ],
)
def test_a_rank_that_ends_ends_the_others(how: str, words: str) -> None:
    with pytest.raises(WorkFailedError, match=words) as caught:
        Processes(3).run(break_down, how)
    line = error_line(caught.value, "tandem evaluate RUN")
    assert line.startswith("rank 2") and "\n" not in line
    if how == "bug":
        assert "Traceback" in caught.value.__notes__[0]
    assert not running()


def told_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGTERM]).start()


def test_work_that_keeps_checkpoints_is_stopped_at_one() -> None:
    resumable = Resumable("RUN", 64, lambda: 0)
    for launcher in (Here(), Processes(2)):
        told_after(0.5)
        with pytest.raises(Terminated, match="after step 1,234, with a checkpoint; go on with --r"):
            launcher.run(wait_to_be_stopped, 1234, resumable)


def test_any_other_work_ends_at_once(tmp_path: Path) -> None:
    told_after(0.5)
    with pytest.raises(Terminated, match=r"^stopped on SIGTERM$") as caught:
        Processes(2).run(sleep_for_ever, str(tmp_path))
    assert caught.value.status == 143 and not running()


def test_works_of_one_rank_go_side_by_side() -> None:
    many = {f"case {number}": number for number in range(5)}
    wanted = {name: 2 * number for name, number in many.items()}
    assert dict(Processes(3).each(double, many)) == dict(Here().each(double, many)) == wanted
    with pytest.raises(Mistake, match=r"^--number -1: at least 0$"):
        list(Processes(2).each(double, {"good": 1, "bad": -1}))
    with pytest.raises(WorkFailedError, match=r"^case 7 was ended by SIGKILL.*memory"):
        list(Processes(2).each(break_down, {"case 7": "killed"}))
    assert not running()


SCRIPT = """
import sys
from tests.test_launchers import sleep_for_ever
from trainer.launch.processes import Processes
Processes(2).run(sleep_for_ever, sys.argv[1])
"""


@pytest.mark.timeout(300)
def test_ranks_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Killed, it could end nobody: they went on, and wrote for nobody."""
    starter = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)])
    try:
        wait_until(lambda: sum(bool(file.read_text()) for file in tmp_path.iterdir()) == 2)
        pids = [int(file.read_text()) for file in tmp_path.iterdir()]
    finally:
        below = descendants(starter.pid)
        starter.kill()
        starter.wait()
    try:
        wait_until(lambda: not any(map(is_there, pids)))
    finally:
        for pid in below:
            kill_quietly(pid)


PLAIN = """
print("this script runs")
from tests.test_launchers import much
from trainer.launch.processes import Processes
print(len(Processes(2).run(much, 10)))
"""


def test_a_script_of_the_users_is_not_run_in_each_rank(tmp_path: Path) -> None:
    """Without `if __name__ == "__main__"` each rank ran it, and started ranks in turn."""
    (tmp_path / "mine.py").write_text(PLAIN)
    ended = subprocess.run(
        [sys.executable, tmp_path / "mine.py"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("this script runs\n10\n", 0), ended.stderr


def wait_until(is_true: Any) -> None:
    deadline = time.monotonic() + 130
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_more_processes_than_processors_are_refused() -> None:
    for wanted in (4, 1000, 1 << 80):
        with pytest.raises(Mistake, match=f"--workers {wanted}: .* at most 3"):
            on_this_machine(wanted)
    for wanted in (0, -1):
        with pytest.raises(Mistake, match=f"--workers {wanted}: at least 1"):
            on_this_machine(wanted)


def test_under_torchrun_the_flag_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert on_this_machine(2).run(much, 3) == "xxx"
    assert is_first_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_first_process()


def test_the_limit_is_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert processes.most_workers() == usable_cpus()
