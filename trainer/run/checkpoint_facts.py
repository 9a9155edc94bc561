"""checkpoint.json: what a checkpoint holds and where, as plain JSON with a digest of itself.

    {"step": 120, "world_size": 2, "position": ..., "validation": ..., ...,
     "tensors": {"model.embeddings.embedding_bags.item.weight":
                    {"dtype": "F32", "shape": [61, 16],
                     "pieces": [{"file": "rank-00000.safetensors", "begin": 4096, "end": 6080,
                                 "offset": [0, 0], "shape": [31, 16], "sha256": "..."}, ...]}, ...},
     "digest": SHA-256 of all the rest}

A piece is a block of a tensor in the bytes [begin, end) of a rank's file. A stranger may have
written the file: types, names and sizes are checked, and a tensor's pieces hold each element once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch

from trainer.base.mistake import Mistake
from trainer.base.typed import Range, check, read_as
from trainer.files.json_files import COMMIT_FILE, read_json, step_of, write_json
from trainer.files.storage import StoragePath

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Safetensors' names of types."""
DtypeName = Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
Count = Annotated[int, Range(least=0, below=2**63)]
Buckets = Annotated[int, Range(least=1, most=2**33)]
Shape = Annotated[tuple[Count, ...], Range(most=8)]
Interval = Annotated[tuple[Count, ...], Range(least=2, most=2)]
_FILE_NAME = re.compile(r"rank-\d{5,9}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def rank_file(rank: int) -> str:
    """Name of a rank's file in a checkpoint."""
    return f"rank-{rank:05d}.safetensors"


@dataclass(frozen=True)
class Piece:
    """A block of a tensor, and the bytes it lies in."""

    file: str
    begin: Count
    end: Count
    offset: Shape
    shape: Shape
    sha256: str

    def __post_init__(self) -> None:
        check(self, "piece")
        if not _FILE_NAME.fullmatch(self.file):
            raise Mistake(f"piece.file={self.file!r}: must be named as {rank_file(0)}")
        if not _SHA256.fullmatch(self.sha256):
            raise Mistake(f"piece.sha256={self.sha256!r}: must be 64 hexadecimal digits")


@dataclass(frozen=True)
class SavedTensor:
    """A tensor and its pieces."""

    dtype: DtypeName
    shape: Shape
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        check(self, "tensor")
        item_bytes = DTYPES[self.dtype].itemsize
        for piece in self.pieces:
            blocks = zip(piece.offset, piece.shape, self.shape, strict=False)
            inside = len(piece.offset) == len(piece.shape) == len(self.shape) and all(
                offset + length <= size for offset, length, size in blocks
            )
            if not inside or piece.end - piece.begin != math.prod(piece.shape) * item_bytes:
                raise Mistake(f"piece {piece} is no part of a {self.dtype} tensor {self.shape}")
        if sum(math.prod(piece.shape) for piece in self.pieces) != math.prod(self.shape):
            raise Mistake(f"the pieces of a tensor {self.shape} do not make it up")

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class ValidationState:
    """How evaluation while training stands; a resumed run goes on with the same best."""

    best: float | None = None
    best_step: Count | None = None
    since_best: Count = 0
    evaluated: bool = False
    """Whether the checkpoint's own step has been evaluated, if it is due there."""


@dataclass(frozen=True)
class WindowsTrained:
    """Which windows of the data a run has met, by number."""

    after: Count | None = None
    """The newest of those that it began with, whole or from an earlier run; None: none."""
    begun: tuple[Count, ...] = ()
    """Those trained one after the other since then; the last may not be through."""

    @property
    def newest(self) -> int:
        """-1: none."""
        return self.begun[-1] if self.begun else -1 if self.after is None else self.after


@dataclass(frozen=True)
class DataPosition:
    """Where the data stands: Loader's `Batch.position`."""

    epoch: Count
    step: Count
    streams: tuple[tuple[Interval, ...], ...]
    order: dict[str, Any]
    """What the order of rows depends on: the loader compares it with its own."""


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says of itself, its tensors aside."""

    step: Count
    dataset_digest: str
    known_rows: dict[str, Count]
    """Rows of each table that stand for an id, by table."""
    config: dict[str, Any]
    plan: dict[str, Any]
    """How tables were dealt to ranks."""
    position: DataPosition | None
    """None: before the first step."""
    windows: WindowsTrained | None = None
    """None: written before windows were counted."""
    validation: ValidationState = ValidationState()
    streaming_buckets: Buckets | None = None
    """Of the streaming estimate of log Q, where there is one."""
    world_size: Count = 1
    tensors: dict[str, SavedTensor] = field(default_factory=dict)


class NotWholeError(Exception):
    """A checkpoint is torn or damaged: the one before it is taken."""


def write_facts(folder: StoragePath, facts: Facts) -> None:
    """Make the checkpoint in `folder` count."""
    contents = json.loads(json.dumps(dataclasses.asdict(facts)))
    write_json(folder / COMMIT_FILE, {**contents, "digest": _digest(contents)})


def read_facts(folder: StoragePath) -> Facts:
    """What checkpoint.json says, checked.

    Raises:
        NotWholeError: where it is torn, or not as it was written.
        Mistake: where it is of an earlier form.
        OSError: where it cannot be read.
    """
    try:
        contents = read_json(folder / COMMIT_FILE)
    except Mistake as mistake:
        raise NotWholeError(str(mistake)) from mistake
    if isinstance(contents, dict) and "files" in contents and "tensors" not in contents:
        raise Mistake(
            f"{folder} was written by an earlier Tandem in a form that can run code when it is "
            "read, so it is not read any more: use the release that wrote it, or train anew"
        )
    try:
        digest = contents.pop("digest")
        if digest != _digest(contents):
            raise NotWholeError(f"{COMMIT_FILE} does not match its digest")
        facts = read_as(Facts, contents, COMMIT_FILE)
    except (AttributeError, KeyError, TypeError) as error:
        raise NotWholeError(f"{COMMIT_FILE} is no checkpoint's") from error
    except Mistake as mistake:
        raise NotWholeError(str(mistake)) from mistake
    if facts.step != step_of(folder):
        raise NotWholeError(f"{COMMIT_FILE} is of step {facts.step}")
    return facts


def _digest(contents: Any) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
