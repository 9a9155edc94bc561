"""A rank's share of a checkpoint: one safetensors file, for torch's distributed checkpoint to use.

    8 bytes, little-endian: length of the header
    header, JSON: {"NAME": {"dtype": "F32", "shape": [31, 16], "data_offsets": [0, 1984]}, ...}
    the tensors' bytes, one after the other

Any safetensors library opens it. Tandem reads it by checkpoint.json, which says where each piece of
each tensor lies: only the rows that a rank needs leave the storage, on disk or behind a URI. They
are numbers alone: nothing in these files can run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from trainer.base.typed import read_as
from trainer.files.storage import RemotePath, StoragePath, file_size, read_range
from trainer.run.checkpoint_facts import DTYPE_NAMES, DTYPES, Piece, SavedTensor, rank_file

BLOCK_BYTES = 16 << 20
ALIGNMENT = 64
OnBytes = Callable[[int], None]


class ShardWriter(StorageWriter):
    """Writes this rank's pieces to one file, digesting them in passing.

    After the write `tensors` says, on the coordinating rank, where all ranks' pieces are.

    Args:
        on_bytes: told of the bytes written, block by block, in the writing thread.
    """

    def __init__(self, path: StoragePath, rank: int, on_bytes: OnBytes) -> None:
        self.path = path
        self.tensors: dict[str, SavedTensor] = {}
        self._file = path / rank_file(rank)
        self._on_bytes = on_bytes

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The folder is there already."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write all of `plan`. Raises OSError where it cannot."""
        # The widest numbers first: each tensor's bytes begin at a multiple of its numbers' width.
        items = sorted(plan.items, key=lambda item: -_dtype(item).itemsize)
        header, begins = _header(items)
        results = []
        with self._file.open("wb") as stream:
            stream.write(header)
            for item, begin in zip(items, begins, strict=True):
                value = planner.resolve_data(item)
                assert isinstance(value, Tensor)
                digest, end = hashlib.sha256(), begin
                for block in _blocks(value):
                    stream.write(block)
                    digest.update(block)
                    end += len(block)
                    self._on_bytes(len(block))
                place = (self._file.name, begin, end, digest.hexdigest())
                results.append(WriteResult(item.index, end - begin, place))
            if not isinstance(self.path, RemotePath):  # what is uploaded needs no sync
                stream.flush()
                os.fsync(stream.fileno())
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: bring together where everyone's pieces are."""
        places = {result.index: result.storage_data for each in results for result in each}
        pieces: dict[str, list[Piece]] = {}
        for index, (file, begin, end, sha256) in places.items():
            saved = metadata.state_dict_metadata[index.fqn]
            assert isinstance(saved, TensorStorageMetadata)
            offset = tuple(index.offset or [0] * len(saved.size))
            chunk = next(each for each in saved.chunks if tuple(each.offsets) == offset)
            piece = Piece(file, begin, end, offset, tuple(chunk.sizes), sha256)
            pieces.setdefault(index.fqn, []).append(piece)
        for name, saved in metadata.state_dict_metadata.items():
            assert isinstance(saved, TensorStorageMetadata)
            described = {"dtype": DTYPE_NAMES[saved.properties.dtype], "shape": tuple(saved.size)}
            self.tensors[name] = read_as(SavedTensor, {**described, "pieces": pieces[name]}, name)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class ShardReader(StorageReader):
    """Reads pieces of tensors where `tensors` says that they are.

    Args:
        sizes: of the tensors to fill; those with more rows than saved are read as far as saved.
        on_bytes: told of the bytes read, block by block.
    """

    def __init__(
        self,
        path: StoragePath,
        tensors: Mapping[str, SavedTensor],
        sizes: Mapping[str, torch.Size],
        on_bytes: OnBytes,
    ) -> None:
        self.path = path
        self._tensors = tensors
        self._sizes = sizes
        self._on_bytes = on_bytes

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What DCP plans by: tensors alone. Sizes are those of the tensors to fill, if larger."""
        return Metadata({name: self._metadata(name) for name in self._tensors})

    def _metadata(self, name: str) -> TensorStorageMetadata:
        saved = self._tensors[name]
        chunks = [
            ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape))
            for piece in saved.pieces
        ]
        size = self._sizes.get(name, torch.Size(saved.shape))
        return TensorStorageMetadata(TensorProperties(dtype=DTYPES[saved.dtype]), size, chunks)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to open."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the plan's tensors. Raises OSError where the storage fails."""
        for item in plan.items:
            saved = self._tensors[item.storage_index.fqn]
            offset = tuple(item.storage_index.offset or [0] * len(saved.shape))
            piece = next(each for each in saved.pieces if each.offset == offset)
            target = planner.resolve_tensor(item).detach()
            self._fill(target, piece, DTYPES[saved.dtype], item)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _fill(self, target: Tensor, piece: Piece, dtype: torch.dtype, item: ReadItem) -> None:
        """Copy a block of a piece, whose rows lie together, some rows at a time."""
        offsets, lengths, shape = tuple(item.storage_offsets), tuple(item.lengths), piece.shape
        if not shape:  # one number, as a row of one
            offsets, lengths, shape, target = (0,), (1,), (1,), target.reshape(1)
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        rows_at_once = max(BLOCK_BYTES // max(row_bytes, 1), 1)
        within = tuple(slice(o, o + n) for o, n in zip(offsets[1:], lengths[1:], strict=True))
        for first in range(0, lengths[0], rows_at_once):
            rows = min(rows_at_once, lengths[0] - first)
            begin = piece.begin + (offsets[0] + first) * row_bytes
            data = read_range(self.path / piece.file, begin, begin + rows * row_bytes)
            if len(data) != rows * row_bytes:
                raise OSError(f"{self.path / piece.file} has become shorter while it was read")
            if data:
                block = torch.frombuffer(data, dtype=dtype).view(rows, *shape[1:])
                target[first : first + rows].copy_(block[(slice(None), *within)])
            self._on_bytes(len(data))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def sound(path: StoragePath, piece: Piece, on_bytes: OnBytes) -> bool:
    """Whether a piece is in its file as it was written.

    Raises:
        OSError: where the storage fails: nothing is said about the piece then.
    """
    file = path / piece.file
    if file_size(file) < piece.end:
        return False
    digest = hashlib.sha256()
    for begin in range(piece.begin, piece.end, BLOCK_BYTES):
        wanted = min(BLOCK_BYTES, piece.end - begin)
        data = read_range(file, begin, begin + wanted)
        if len(data) != wanted:
            return False
        digest.update(data)
        on_bytes(wanted)
    return digest.hexdigest() == piece.sha256


def _header(items: list[WriteItem]) -> tuple[bytes, list[int]]:
    """The file's beginning, and where each item's bytes begin in the file."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ends = [0]
    for item in items:
        assert item.tensor_data is not None
        assert item.index.fqn not in described, f"two pieces of {item.index.fqn} on one rank"
        chunk, dtype = item.tensor_data.chunk, _dtype(item)
        ends.append(ends[-1] + math.prod(chunk.sizes) * dtype.itemsize)
        described[item.index.fqn] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(chunk.sizes),
            "data_offsets": ends[-2:],
        }
    header = safetensors_header(described)
    return header, [len(header) + end for end in ends[:-1]]


def safetensors_header(described: Mapping[str, Any]) -> bytes:
    """A file's beginning: what its tensors are, by name; filled up to a multiple of ALIGNMENT."""
    text = json.dumps(described).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _dtype(item: WriteItem) -> torch.dtype:
    assert item.type != WriteItemType.BYTE_IO and item.tensor_data is not None, f"no tensor: {item}"
    return item.tensor_data.properties.dtype


def _blocks(value: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, some megabytes at a time."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    data: np.ndarray = flat.view(torch.uint8).numpy()
    for begin in range(0, len(data), BLOCK_BYTES):
        yield memoryview(data[begin : begin + BLOCK_BYTES])  # type: ignore[arg-type]
