"""Work on several processes: the first cause ends all of them, in one line."""

import os
import signal
import time

import pytest
import torch.distributed as dist

from trainer.base.ending import error_line
from trainer.base.machine import usable_cpus
from trainer.base.mistake import Mistake
from trainer.distributed.ranks import Ranks
from trainer.retrieval import on_workers as workers
from trainer.retrieval.on_workers import RankFailedError, on_workers

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(autouse=True)
def several_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "most_workers", lambda: 3)


def much(size: int, ranks: Ranks) -> str:
    dist.barrier()
    return "x" * size if ranks.is_first else "not asked for"


def refuse(words: str, ranks: Ranks) -> None:
    if ranks.rank == 1:
        raise Mistake(words)
    dist.barrier()


def break_down(how: str, ranks: Ranks) -> None:
    """Rank 1 ends by itself; the others wait for it in a collective, or asleep."""
    if ranks.rank == 1:
        match how:
            case "bug":
                raise KeyError("files")
            case "disk":
                raise OSError(28, "No space left on device", "/out/part")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "gone":
                os._exit(0)
    if how == "killed" and ranks.rank == 2:
        time.sleep(600)
    dist.barrier()


def test_results_larger_than_a_pipe_come_through() -> None:
    assert on_workers(much, 1 << 20, 2) == "x" * (1 << 20)


def test_a_mistake_of_any_rank_is_the_users() -> None:
    with pytest.raises(Mistake, match=r"^--k 0: at least 1$"):
        on_workers(refuse, "--k 0: at least 1", 2)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("bug", r"^rank 1: unexpected KeyError: 'files' \(\w+.py:\d+\); this is a bug"),
        ("disk", r"^rank 1: No space left on device: /out/part; free some space"),
        ("killed", r"^rank 1 was ended by SIGKILL.*memory"),
        ("gone", r"^rank 1 ended without a result \(exit status 0\)"),
    ],
)
def test_a_rank_that_ends_ends_the_others(how: str, words: str) -> None:
    with pytest.raises(RankFailedError, match=words) as caught:
        on_workers(break_down, how, 3)
    line = error_line(caught.value, "tandem evaluate RUN")
    assert line.startswith("rank 1") and "\n" not in line
    if how == "bug":
        assert "Traceback" in caught.value.__notes__[0]
    assert not workers.still_running()


def test_more_processes_than_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in (4, 1000, 1 << 80):
        with pytest.raises(Mistake, match=f"--workers {wanted}: .* at most 3"):
            on_workers(much, 1, wanted)
    for wanted in (0, -1):
        with pytest.raises(Mistake, match=f"--workers {wanted}: at least 1"):
            on_workers(much, 1, wanted)


def test_under_torchrun_the_flag_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert on_workers(much, 3, 2) == "xxx"
    assert workers.is_first_process()
    monkeypatch.setenv("RANK", "1")
    assert not workers.is_first_process()


def test_the_limit_is_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert workers.most_workers() == usable_cpus()
