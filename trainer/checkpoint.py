"""Sharded checkpoints: each rank writes its shards in the background; any world size reads them.

    RUN/checkpoints/step-00000120/
        __RANK_N.distcp, .metadata    torch.distributed.checkpoint's files
        rank-R.json                   names and SHA-256 of what rank R wrote
        checkpoint.json               written last, by rank 0, once every rank-R.json is there

A folder without checkpoint.json was not finished and is never read. Files are checked against
their digests before a load; a checkpoint that fails is passed over, loudly, for the one before.
Nothing is unpickled but an allow-list of torch's own metadata classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from trainer.agreement import gather_objects
from trainer.ranks import Ranks
from trainer.run_files import COMMIT_FILE, STEP_FOLDER, committed, write_json

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
        self, folder: Path, ranks: Ranks, keep: int, on_written: Callable[[float], None]
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
        if self.ranks.is_first:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        dist.barrier(group=self._group)  # collective
        started = time.monotonic()
        writing = dcp.async_save(
            state,
            storage_writer=dcp.FileSystemWriter(str(path), thread_count=1, overwrite=True),
            process_group=self._group,
        )
        assert isinstance(writing, Future)
        self._commit = threading.Thread(
            target=self._finish, args=(writing, path, {**facts, "step": step}, started)
        )
        self._commit.start()

    def wait(self) -> None:
        """Wait for the checkpoint under way. Raises CheckpointWriteError if it failed."""
        if self._commit is not None:
            self._commit.join()
            self._commit = None
        error, self._error = self._error, None
        if error is not None:
            raise CheckpointWriteError(f"checkpoint not written: {error}") from error

    def close(self) -> None:
        """Wait for the last one and let go of the process group. Collective."""
        try:
            self.wait()
        finally:
            dist.destroy_process_group(self._group)

    def _finish(
        self, writing: Future[Any], path: Path, facts: dict[str, Any], started: float
    ) -> None:
        try:
            writing.result()
            rank = self.ranks.rank
            mine = [p for p in path.iterdir() if p.name.startswith(f"__{rank}_")]
            mine += [path / ".metadata"] if self.ranks.is_first else []
            digests = {p.name: file_digest(p) for p in sorted(mine)}
            write_json(path / f"rank-{rank}.json", digests)
            if self.ranks.is_first:
                self._commit_when_whole(path, facts)
                self._drop_old(facts["validation"]["best_step"])
            self.on_written(time.monotonic() - started)
        except BaseException as error:  # noqa: BLE001 - carried to the training thread by wait()
            self._error = error

    def _commit_when_whole(self, path: Path, facts: dict[str, Any]) -> None:
        """Rank 0: once every rank's digests are there, make the checkpoint count."""
        files = [path / f"rank-{rank}.json" for rank in range(self.ranks.world_size)]
        deadline = time.monotonic() + 600
        while not all(file.exists() for file in files):
            if time.monotonic() > deadline:
                missing = [file.name for file in files if not file.exists()]
                raise TimeoutError(f"{missing} did not appear in {path} within 600 s")
            time.sleep(0.02)
        digests: dict[str, str] = {}
        for file in files:
            digests |= json.loads(file.read_text())
        write_json(path / COMMIT_FILE, {**facts, "world_size": len(files), "files": digests})

    def _drop_old(self, best_step: int | None) -> None:
        for path in committed(self.folder)[: -self.keep]:
            if best_step is not None and path.name == STEP_FOLDER.format(best_step):
                continue
            (path / COMMIT_FILE).unlink()
            shutil.rmtree(path, ignore_errors=True)


def newest_sound(
    folder: Path, ranks: Ranks, best: bool = False
) -> tuple[Path, dict[str, Any]] | None:
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


def load(path: Path, state: dict[str, Any]) -> None:
    """Fill `state`'s tensors in place from a checkpoint of any world size. Collective.

    A tensor with more rows than were saved (a table that has grown) keeps its own values there.
    """
    flat, _ = flatten_state_dict(state)
    sizes = {name: value.size() for name, value in flat.items() if hasattr(value, "size")}
    dcp.load(state, storage_reader=SafeReader(str(path), sizes))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sound(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


class SafeReader(dcp.FileSystemReader):
    """DCP's reader, with its pickled metadata read through an allow-list.

    Args:
        sizes: of the tensors to fill; those with more rows than saved are read as far as saved.
    """

    def __init__(self, path: str, sizes: dict[str, torch.Size]) -> None:
        super().__init__(path)
        self._sizes = sizes

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        text = Path(self.path, ".metadata").read_bytes()
        metadata = _AllowListUnpickler(io.BytesIO(text)).load()
        if not isinstance(metadata, Metadata):
            raise ValueError(f"{self.path}/.metadata is not a checkpoint's metadata")
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
        raise ValueError(
            f"the checkpoint's metadata names {module}.{name}, which no checkpoint of Tandem "
            "does: it is damaged or was made by someone else, and is not loaded"
        )
