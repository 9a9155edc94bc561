"""Sharded checkpoints: each rank writes its shards in the background; any world size reads them.

    RUN/checkpoints/step-00000120/
        rank-00000.safetensors ...    one a rank, see shard_files.py
        checkpoint.json               where each tensor lies, with digests, and facts; written last,
                                      by rank 0, once every rank has told that its file is there

RUN may be a folder or a URI. A rank that cannot write tells the others in the same breath, so no
rank waits for files that will not come. A folder without checkpoint.json was not finished and is
never read. What is to be read is checked against its digests before; a checkpoint that fails is
passed over, loudly, for the one before. No file of a checkpoint can run code.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from trainer.distributed.agreement import gather_objects
from trainer.distributed.ranks import Ranks
from trainer.files.json_files import (
    COMMIT_FILE,
    STEP_FOLDER,
    committed,
    leftovers,
    note_newest,
    step_of,
)
from trainer.files.storage import StoragePath, remove_tree
from trainer.run.checkpoint_facts import Facts, ValidationState, write_facts
from trainer.run.shard_files import ShardWriter

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0


class CheckpointWriteError(RuntimeError):
    """A checkpoint could not be written (a full disk, say). Training may go on without it."""


class CheckpointWriter:
    """Writes checkpoints of one run without holding up the steps.

    `save` returns once tensors are copied; a thread writes, digests and commits. The next `save`
    or `wait` first waits for the one under way.

    Args:
        on_written: told the seconds that each took, in the writing thread: on rank 0 once the
            checkpoint is whole, elsewhere once this rank's share is.
        before_commit: called on rank 0 in the writing thread before the checkpoint counts; raises
            OSError where it must not.
        on_waiting: told the bytes written, and of how many, while the training thread waits.
    """

    def __init__(
        self,
        folder: StoragePath,
        ranks: Ranks,
        keep: int,
        on_written: Callable[[float], None],
        before_commit: Callable[[], None] = lambda: None,
        on_waiting: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.folder = folder
        self.ranks = ranks
        self.keep = keep
        self.damaged: set[int] = set()
        """Steps whose checkpoints were found damaged: they count for nothing."""
        self._on_written, self._before_commit = on_written, before_commit
        self._on_waiting = on_waiting
        self._bytes_written = self._bytes = 0
        self._commit: threading.Thread | None = None
        self._error: BaseException | None = None
        self._newest_error: CheckpointWriteError | None = None
        self._facts: Facts | None = None
        # Pinned memory is kept from one to the next: copies from a GPU are several times faster
        # into it, and pinning takes longer than they do. A CPU's copy is let go when it is written.
        self._stager = BlockingAsyncStager(cache_staged_state_dict=ranks.device.type == "cuda")
        # Collectives of the writing thread must not mix with the training's own.
        self._group = dist.new_group(backend="gloo")  # collective

    def save(self, state: dict[str, Any], facts: Facts) -> None:
        """Copy `state` and write it in the background. Collective: every rank calls it.

        Args:
            state: nested dict of tensors and ShardedTensors.
            facts: of the step; its best step so far is kept beside the newest.
        """
        self.wait()
        self._facts = self._newest_error = None
        path = self.folder / STEP_FOLDER.format(facts.step)
        try:
            self._make_folder(path)  # collective
        except CheckpointWriteError as error:
            self._error = error
            return
        started = time.monotonic()
        self._bytes_written, self._bytes = 0, _local_bytes(state)
        writer = ShardWriter(path, self.ranks.rank, self._count_bytes)
        writing = dcp.async_save(
            state, storage_writer=writer, process_group=self._group, async_stager=self._stager
        )
        assert isinstance(writing, Future)
        self._commit = threading.Thread(
            target=self._finish, args=(writing, writer, facts, started), name="tandem-checkpoint"
        )
        self._commit.start()

    def amend(self, validation: ValidationState) -> None:
        """Write what an evaluation found into the newest checkpoint. Collective: all-gather.

        Raises:
            CheckpointWriteError: where that checkpoint, or this, could not be written.
        """
        self.wait()
        error = None
        if self.ranks.is_first and self._facts is not None:
            self._facts = dataclasses.replace(self._facts, validation=validation)
            try:
                self._before_commit()
                write_facts(self.folder / STEP_FOLDER.format(self._facts.step), self._facts)
                self._drop_old(self._facts)
            except OSError as problem:
                error = str(problem)
        self._raise_any(error)  # collective

    def _make_folder(self, path: StoragePath) -> None:
        """Rank 0 makes an empty folder; all raise where it cannot. Collective: all-gather."""
        error = None
        if self.ranks.is_first:
            try:
                self._before_commit()
                remove_tree(path)
                path.mkdir(parents=True)
            except OSError as problem:
                error = str(problem)
        self._raise_any(error)

    def _raise_any(self, error: str | None) -> None:
        """Raise the first error of any rank on every rank. Collective: all-gather."""
        for rank, told in enumerate(gather_objects(error, self._group)):
            if told is not None:
                raise CheckpointWriteError(f"checkpoint not written: rank {rank}: {told}")

    def wait(self) -> None:
        """Wait for the checkpoint under way. Raises CheckpointWriteError if it failed."""
        if self._commit is not None:
            while self._commit.is_alive():
                self._commit.join(LOOK_SECONDS)
                if self._commit.is_alive():
                    self._on_waiting(self._bytes_written, self._bytes)
            self._commit = None
        error, self._error = self._error, None
        if error is not None:
            self._newest_error = CheckpointWriteError(_told(error))
            raise self._newest_error from error

    def ensure(self) -> None:
        """Wait, and raise CheckpointWriteError where the newest checkpoint could not be written,
        also if that was told before."""
        self.wait()
        if self._newest_error is not None:
            raise self._newest_error

    def close(self) -> None:
        """Wait for the last one and let go of the process group. Collective."""
        try:
            self.wait()
        finally:
            self._stager.close()
            dist.destroy_process_group(self._group)

    def _count_bytes(self, count: int) -> None:
        self._bytes_written += count

    def _finish(
        self, writing: Future[Any], writer: ShardWriter, facts: Facts, started: float
    ) -> None:
        """In the writing thread: make the checkpoint count once all ranks have written.

        Collective of the writing threads: two all-gathers.
        """
        try:
            facts = self._commit_together(writing, writer, facts)
        except BaseException as error:  # noqa: BLE001 - carried to the training thread by wait()
            self._error = error
            if self.ranks.is_first:
                remove_tree(writer.path)  # where the disk is full, its bytes are needed
            return
        self._facts = facts
        self.damaged.discard(facts.step)
        self._on_written(time.monotonic() - started)
        if self.ranks.is_first:
            self._drop_old(facts)

    def _commit_together(self, writing: Future[Any], writer: ShardWriter, facts: Facts) -> Facts:
        # A rank that cannot write makes this raise on all ranks.
        writing.result()
        error = None
        if self.ranks.is_first:
            facts = dataclasses.replace(
                facts, world_size=self.ranks.world_size, tensors=writer.tensors
            )
            try:
                self._before_commit()
                note_newest(self.folder, facts.step)
                write_facts(writer.path, facts)
            except OSError as problem:
                error = str(problem)
        self._raise_any(error)  # collective
        return facts

    def _drop_old(self, newest: Facts) -> None:
        """All but the newest sound ones and the best, and what a kill left of others.

        One that was found damaged keeps none from staying. Those of later steps are such, or
        another start's: they are overwritten when their step comes.
        """
        try:
            there = [path for path in committed(self.folder) if step_of(path) <= newest.step]
            for path in leftovers(self.folder, before=there[-1]):
                remove_tree(path)
            sound = [path for path in there if step_of(path) not in self.damaged]
            kept = {*map(step_of, sound[-self.keep :]), newest.validation.best_step}
            for path in there:
                if step_of(path) not in kept:
                    (path / COMMIT_FILE).unlink()
                    remove_tree(path)
        except OSError as error:
            logger.warning("an old checkpoint is still there: %s", error)


def _local_bytes(state: Any) -> int:
    """Bytes of a nested dict's tensors that lie on this rank."""
    if isinstance(state, dict):
        return sum(_local_bytes(value) for value in state.values())
    if isinstance(state, ShardedTensor):
        return sum(piece.tensor.nbytes for piece in state.local_shards())
    assert isinstance(state, torch.Tensor), type(state)
    return state.nbytes


def _told(error: BaseException) -> str:
    """One line: DCP's own exceptions hold a traceback of each rank that failed."""
    if isinstance(error, CheckpointWriteError):
        return str(error)
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        return f"checkpoint not written: rank {rank}: {cause}"
    return f"checkpoint not written: {error}"
