"""A training process that ends abruptly, or meets a full disk, in its second checkpoint.

python -m tests.killed_checkpoint STAGE DATA OUT
"""

import os
import resource
import sys
from typing import Any

import trainer.run.checkpoint_facts
import trainer.run.checkpoint_write
import trainer.run.shard_files
from tests.test_training import small_config
from trainer.observe.progress import TerminalProgress
from trainer.run.folder import RunSpec
from trainer.train import run_worker

STAGES = ("before data", "in data", "after data", "before commit", "in commit", "dropping")
DISK_FULL = "disk full"
STATUS = 9
EVERY_STEPS = 4
SMALL_FILE_BYTES = 4096


def die_at(stage: str) -> None:
    """Patch the writer so that the second checkpoint kills the process at `stage`."""
    facts, writer = trainer.run.checkpoint_facts, trainer.run.shard_files.ShardWriter
    match stage:
        case "before data":
            replace(writer, "write_data", before=True)
        case "in data":
            die_in_data()
        case "after data":
            replace(writer, "finish", before=True)
        case "before commit":
            replace(facts, "write_json", before=True, only=facts.COMMIT_FILE)
        case "in commit":
            replace(facts, "write_json", before=True, only=facts.COMMIT_FILE, half=True)
        case "dropping":
            replace(trainer.run.checkpoint_write, "remove_tree", before=True, only="step-00000004")
        case _:
            raise ValueError(stage)


def die_in_data() -> None:
    """Some bytes of the second checkpoint's file are on the disk by then."""
    files, real, begun = trainer.run.shard_files, trainer.run.shard_files._header, []

    def header(items: Any) -> Any:
        begun.append(1)
        return real(items)

    def blocks(value: Any) -> Any:
        for number, block in enumerate(real_blocks(value)):
            if len(begun) == 2 and number + len(block) > 512:
                os._exit(STATUS)
            yield block

    real_blocks = files._blocks
    files._header, files._blocks = header, blocks


def replace(owner: Any, name: str, before: bool, only: str = "", half: bool = False) -> None:
    """Wrap `owner.name`: its second call whose arguments name `only` ends the process."""
    real, calls = getattr(owner, name), []
    deadly = 1 if only.startswith("step-") else 2

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if only in " ".join(str(argument) for argument in arguments[:1]) or not only:
            calls.append(1)
            if len(calls) == deadly + (only.startswith("step-")):  # rmtree clears the folder first
                if half:
                    path = arguments[0]
                    path.with_name(path.name + ".partial").write_text('{"half":')
                os._exit(STATUS)
        return real(*arguments, **named)

    setattr(owner, name, wrapped)


class FullDisk(TerminalProgress):
    """From the first progress on, no file may grow beyond a few kilobytes, for a while."""

    def update(self, name: str, done: int, total: int | None = None, **values: float) -> None:
        super().update(name, done, total, **values)
        if name == "training":
            full = EVERY_STEPS < done <= 2 * EVERY_STEPS
            limit = SMALL_FILE_BYTES if full else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def main(stage: str, data: str, out: str) -> None:
    config = small_config(
        checkpoint={"every_steps": EVERY_STEPS, "keep": 1}, training={"epochs": 1}
    )
    spec = RunSpec("ml-100k", config, data, out, resume=stage == "resume")
    if stage in STAGES:
        die_at(stage)
    progress = FullDisk() if stage == DISK_FULL else TerminalProgress(every_seconds=0)
    run_worker(spec, progress)


if __name__ == "__main__":
    main(*sys.argv[1:])
