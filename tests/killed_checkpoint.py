"""A training process that ends abruptly, or meets a full disk, in its second checkpoint.

python -m tests.killed_checkpoint STAGE DATA OUT
"""

import os
import resource
import sys
from typing import Any

from torch.distributed import checkpoint as dcp

import trainer.checkpoint
import trainer.shard_files
from tests.test_training import small_config
from trainer.progress import TerminalProgress
from trainer.run import RunSpec
from trainer.train import run_worker

STAGES = ("before data", "after data", "before metadata", "before commit", "in commit", "dropping")
DISK_FULL = "disk full"
STATUS = 9
EVERY_STEPS = 4
SMALL_FILE_BYTES = 4096


def die_at(stage: str) -> None:
    """Patch the writer so that the second checkpoint kills the process at `stage`."""
    module = trainer.checkpoint
    match stage:
        case "before data":
            replace(dcp.FileSystemWriter, "write_data", before=True)
        case "after data":
            replace(dcp.FileSystemWriter, "finish", before=True)
        case "before metadata":
            replace(trainer.shard_files.DigestedFiles, "rename", before=True)
        case "before commit":
            replace(module, "write_json", before=True, only=module.COMMIT_FILE)
        case "in commit":
            replace(module, "write_json", before=True, only=module.COMMIT_FILE, half=True)
        case "dropping":
            replace(module, "remove_tree", before=True, only="step-00000004")
        case _:
            raise ValueError(stage)


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
