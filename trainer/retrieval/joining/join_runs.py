"""`tandem join RUN OTHER`: a copy of OTHER's model beside RUN's own, their scores added."""

from __future__ import annotations

from pathlib import Path

from trainer.base.mistake import require
from trainer.base.run_files import BESIDE_FILE, BESIDE_FOLDER, CONFIG_FILE
from trainer.base.screen import say
from trainer.files.json_files import committed
from trainer.files.storage import StoragePath, copy_tree, remove_tree
from trainer.observe.waiting import waits_on_terminal
from trainer.retrieval.arguments import JoinArguments
from trainer.run.asked.beside import (
    Beside,
    beside_folder,
    check_pair,
    forget_beside,
    read_beside,
    write_beside,
)
from trainer.run.asked.newest import asked_checkpoint
from trainer.run.folder import RunFolder
from trainer.run.lock import RunLock
from trainer.run.run_facts import RunFacts


def join_runs(arguments: JoinArguments) -> None:
    """Join, and say what became of it."""
    join_quietly(arguments)
    say(f"answers of {arguments.run} are of two models now: its own and that of {arguments.other}")
    say(f"its own alone again: remove {arguments.run}/{BESIDE_FILE}")
    say("next:", command=["tandem", "evaluate", arguments.run])


def join_quietly(arguments: JoinArguments) -> None:
    """Copy OTHER's checkpoints and settings into RUN/beside; the last file says that it is whole.

    Raises:
        Mistake: where one of them is no run or has no checkpoint; where they were trained on other
            data, or read histories in other ways; while RUN is trained.
    """
    run, other = RunFolder(arguments.run), RunFolder(arguments.other)
    second, target = _checked(run, other), beside_folder(run.path)
    run.lock.take("join")
    try:
        with waits_on_terminal(f"copying {other.path}"):
            _copy(other, target)
        beside = Beside(other.path.name, second.config, True, arguments.weight)
        write_beside(run.path, beside)
    finally:
        run.lock.release()


def _copy(other: RunFolder, target: StoragePath) -> None:
    """Settings and checkpoints; what lay there before goes once they are whole."""
    made = target.with_name(f"{target.name}.partial") if isinstance(target, Path) else target
    if made is target:
        forget_beside(target.parent)
    remove_tree(made)
    made.mkdir(parents=True)
    copy_tree(other.config_file, made / CONFIG_FILE)
    for checkpoint in committed(other.checkpoints):
        copy_tree(checkpoint, made / "checkpoints" / checkpoint.name)
    if isinstance(target, Path) and isinstance(made, Path):
        forget_beside(target.parent)
        remove_tree(target)
        require(not target.exists(), f"{target} cannot be removed: move it away")
        made.rename(target)


def _checked(run: RunFolder, other: RunFolder) -> RunFacts:
    """What OTHER says of itself. Raises Mistake."""
    first, second = run.read_config(), other.read_config()
    places = [_place(folder) for folder in (run, other)]
    require(places[0] != places[1], f"{other.path} is the run itself: name another")
    require(
        not f"{places[1]}/".startswith(f"{places[0]}/{BESIDE_FOLDER}/"),
        f"{other.path} stands beside {run.path} already: name another run",
    )
    for folder in (run, other):
        asked_checkpoint(folder)
    require(
        read_beside(other.path) is None,
        f"{other.path} has a second model of its own beside it: name a run of one model",
    )
    require(
        first.dataset_digest == second.dataset_digest,
        f"{run.path} and {other.path} were trained on other data (digests "
        f"{first.dataset_digest[:12]}, {second.dataset_digest[:12]}): train both on the same",
    )
    check_pair(first.config, second.config)
    _check_is_free(beside_folder(run.path))
    return second


def _place(folder: RunFolder) -> str:
    """Its path without links, or its URI."""
    path = folder.path
    return str(path.resolve()) if isinstance(path, Path) else str(path)


def _check_is_free(target: StoragePath) -> None:
    """What lies there is taken away: it must be an earlier model's, which nobody trains."""
    there = target.exists() and any(True for _ in target.iterdir())
    require(
        not there or (target / CONFIG_FILE).is_file(),
        f"{target} is no run's: move it away, a copy of the other model is put there",
    )
    if there:
        lock = RunLock(target)
        lock.take("join")
        lock.release()
