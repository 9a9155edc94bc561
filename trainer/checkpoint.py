"""Sharded checkpoints: each rank writes its shards in the background; any world size reads them.

    RUN/checkpoints/step-00000120/
        __RANK_N.distcp, .metadata    torch.distributed.checkpoint's files
        checkpoint.json               names and SHA-256 of all of them, and facts; written last, by
                                      rank 0, once every rank has told that its files are there

RUN may be a folder or a URI. A rank that cannot write tells the others in the same breath, so no
rank waits for files that will not come. A folder without checkpoint.json was not finished and is
never read. Files are checked against their digests before a load; a checkpoint that fails is passed
over, loudly, for the one before. Nothing is unpickled but an allow-list of torch's own metadata
classes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from trainer.agreement import gather_objects
from trainer.mistake import Mistake
from trainer.ranks import Ranks
from trainer.run_files import COMMIT_FILE, STEP_FOLDER, committed, leftovers, write_json
from trainer.shard_files import DigestedFiles
from trainer.storage import RemotePath, StoragePath, file_digest, remove_tree

logger = logging.getLogger(__name__)
DCP = "torch.distributed.checkpoint"
ALLOWED_NAMES = {
    *((f"{DCP}.metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((f"{DCP}.metadata", f"{kind}StorageMetadata") for kind in ("Tensor", "Bytes", "Chunk")),
    *((f"{DCP}.metadata", name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    (f"{DCP}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
}


class CheckpointWriteError(RuntimeError):
    """A checkpoint could not be written (a full disk, say). Training may go on without it."""


class CheckpointWriter:
    """Writes checkpoints of one run without holding up the steps.

    `save` returns once tensors are copied; a thread writes, digests and commits. The next `save`
    or `wait` first waits for the one under way.

    Args:
        on_written: told the seconds that each took, in the writing thread: on rank 0 once the
            checkpoint is whole, elsewhere once this rank's share is.
    """

    def __init__(
        self, folder: StoragePath, ranks: Ranks, keep: int, on_written: Callable[[float], None]
    ) -> None:
        self.folder = folder
        self.ranks = ranks
        self.keep = keep
        self.on_written = on_written
        self._commit: threading.Thread | None = None
        self._error: BaseException | None = None
        # Collectives of the writing thread must not mix with the training's own.
        self._group = dist.new_group(backend="gloo")  # collective

    def save(self, step: int, state: dict[str, Any], facts: dict[str, Any]) -> None:
        """Copy `state` and write it in the background. Collective: every rank calls it.

        Args:
            state: nested dict of tensors and ShardedTensors.
            facts: JSON-able; stored in checkpoint.json. The step facts["validation"]["best_step"]
                is kept beside the newest.
        """
        self.wait()
        path = self.folder / STEP_FOLDER.format(step)
        try:
            self._make_folder(path)  # collective
        except CheckpointWriteError as error:
            self._error = error
            return
        started = time.monotonic()
        writer = ShardWriter(path)
        writing = dcp.async_save(state, storage_writer=writer, process_group=self._group)
        assert isinstance(writing, Future)
        self._commit = threading.Thread(
            target=self._finish, args=(writing, writer, {**facts, "step": step}, started)
        )
        self._commit.start()

    def _make_folder(self, path: StoragePath) -> None:
        """Rank 0 makes an empty folder; all raise where it cannot. Collective: all-gather."""
        error = None
        if self.ranks.is_first:
            try:
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
            self._commit.join()
            self._commit = None
        error, self._error = self._error, None
        if error is not None:
            raise CheckpointWriteError(_told(error)) from error

    def close(self) -> None:
        """Wait for the last one and let go of the process group. Collective."""
        try:
            self.wait()
        finally:
            dist.destroy_process_group(self._group)

    def _finish(
        self, writing: Future[Any], writer: ShardWriter, facts: dict[str, Any], started: float
    ) -> None:
        """In the writing thread: make the checkpoint count once all ranks have written.

        Collective of the writing threads: two all-gathers.
        """
        try:
            self._commit_together(writing, writer, facts)
        except BaseException as error:  # noqa: BLE001 - carried to the training thread by wait()
            self._error = error
            if self.ranks.is_first:
                remove_tree(writer.folder)  # where the disk is full, its bytes are needed
            return
        self.on_written(time.monotonic() - started)
        if self.ranks.is_first:
            self._drop_old(facts["validation"]["best_step"])

    def _commit_together(
        self, writing: Future[Any], writer: ShardWriter, facts: dict[str, Any]
    ) -> None:
        # A rank that cannot write makes this raise on all ranks.
        writing.result()
        everyones = gather_objects(writer.digests, self._group)  # collective
        error = None
        if self.ranks.is_first:
            digests = {name: digest for part in everyones for name, digest in part.items()}
            whole = {**facts, "world_size": len(everyones), "files": digests}
            try:
                write_json(writer.folder / COMMIT_FILE, whole)
            except OSError as problem:
                error = str(problem)
        self._raise_any(error)  # collective

    def _drop_old(self, best_step: int | None) -> None:
        """All but the newest, and what a kill left of others while they were written or dropped."""
        try:
            there = committed(self.folder)
            for path in leftovers(self.folder, before=there[-1]):
                remove_tree(path)
            for path in there[: -self.keep]:
                if best_step is not None and path.name == STEP_FOLDER.format(best_step):
                    continue
                (path / COMMIT_FILE).unlink()
                remove_tree(path)
        except OSError as error:
            logger.warning("an old checkpoint is still there: %s", error)


class ShardWriter(dcp.FileSystemWriter):
    """DCP's writer, onto any storage; digests what it writes as it writes."""

    def __init__(self, path: StoragePath) -> None:
        on_disk = not isinstance(path, RemotePath)  # what is uploaded needs no sync
        super().__init__(str(path), thread_count=1, overwrite=True, sync_files=on_disk)
        self.fs = self._files = DigestedFiles()
        self.folder = path
        self.path = path  # type: ignore[assignment] # DCP only hands it on to `fs`

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file that this rank wrote, by name."""
        return self._files.digests

    @property
    def checkpoint_id(self) -> str:
        return str(self.folder)


def _told(error: BaseException) -> str:
    """One line: DCP's own exceptions hold a traceback of each rank that failed."""
    if isinstance(error, CheckpointWriteError):
        return str(error)
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        return f"checkpoint not written: rank {rank}: {cause}"
    return f"checkpoint not written: {error}"


def newest_sound(
    folder: StoragePath, ranks: Ranks, best: bool = False
) -> tuple[StoragePath, dict[str, Any]] | None:
    """The newest checkpoint whose files match their digests, with its facts; None: there is none.

    Collective: the ranks share the reading and agree on the verdict.

    Args:
        best: take the one that was best on the validation split before all others, if there is one.
    """
    paths = committed(folder)[::-1]
    if best and paths:
        best_step = json.loads((paths[0] / COMMIT_FILE).read_text())["validation"]["best_step"]
        paths.sort(key=lambda path: path.name != STEP_FOLDER.format(best_step or 0))
    for path in paths:
        facts = json.loads((path / COMMIT_FILE).read_text())
        names = sorted(facts["files"])[ranks.rank :: ranks.world_size]
        bad = [name for name in names if not _sound(path / name, facts["files"][name])]
        bad = [name for part in gather_objects(bad) for name in part]  # collective
        if not bad:
            return path, facts
        if ranks.is_first:
            logger.error(
                "checkpoint %s is damaged (%s): the one before it is used", path, ", ".join(bad)
            )
    return None


def load(path: StoragePath, state: dict[str, Any]) -> None:
    """Fill `state`'s tensors in place from a checkpoint of any world size. Collective.

    A tensor with more rows than were saved (a table that has grown) keeps its own values there.
    """
    flat, _ = flatten_state_dict(state)
    sizes = {name: value.size() for name, value in flat.items() if hasattr(value, "size")}
    dcp.load(state, storage_reader=SafeReader(path, sizes))


def _sound(path: StoragePath, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


class SafeReader(dcp.FileSystemReader):
    """DCP's reader, with its pickled metadata read through an allow-list.

    Args:
        sizes: of the tensors to fill; those with more rows than saved are read as far as saved.
    """

    def __init__(self, path: StoragePath, sizes: dict[str, torch.Size]) -> None:
        super().__init__(str(path))
        self.fs = DigestedFiles()
        self.folder = path
        self.path = path  # type: ignore[assignment] # DCP only hands it on to `fs`
        self._sizes = sizes

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        text = (self.folder / ".metadata").read_bytes()
        metadata = _AllowListUnpickler(io.BytesIO(text)).load()
        if not isinstance(metadata, Metadata):
            raise Mistake(f"{self.folder}/.metadata is not a checkpoint's metadata")
        for name, saved in metadata.state_dict_metadata.items():
            size = self._sizes.get(name)
            if size is None or not isinstance(saved, TensorStorageMetadata) or not size:
                continue
            if size[0] > saved.size[0] and size[1:] == saved.size[1:]:
                metadata.state_dict_metadata[name] = dataclasses.replace(saved, size=size)
        return metadata


class _AllowListUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        if is_dtype or (module, name) in ALLOWED_NAMES:
            return super().find_class(module, name)
        raise Mistake(
            f"the checkpoint's metadata names {module}.{name}, which no checkpoint of Tandem "
            "does: it is damaged or was made by someone else, and is not loaded"
        )
