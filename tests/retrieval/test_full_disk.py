"""Export's files where the disk is full: an OSError that names the file, and a living process."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from trainer.bundle.flat_arrays import GrowingArray
from trainer.bundle.names_file import write_names
from trainer.bundle.vectors.stored_vectors import VectorWriter
from trainer.retrieval.index import write_index
from trainer.retrieval.programs import save_program
from trainer.retrieval.written.bundle_programs import save_table
from trainer.sources import sql


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A write beyond it fails with EFBIG, as one on a full disk does with ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_vectors(folder: Path) -> Path:
    writer = VectorWriter(folder, "float32")
    writer.create(100, 8)
    with files_of_at_most(2_000):
        writer.write(0, np.ones((100, 8), np.float32))
    return folder / "vectors.npy"


def write_lists(folder: Path) -> Path:
    with files_of_at_most(2_000), GrowingArray(folder / "values.npy", np.int32) as array:
        array.append(np.arange(5000))
    return folder / "values.npy"


def write_names_of(folder: Path) -> Path:
    batch = pa.record_batch([pa.array([f"item {n}" for n in range(5000)])], names=["raw_id"])
    with files_of_at_most(2_000):
        write_names(folder, [batch], batch.schema)
    return folder / "ids.arrow"


def write_table(folder: Path) -> Path:
    with files_of_at_most(2_000):
        save_table(folder / "item.safetensors", "item", torch.zeros(500, 8))
    return folder / "item.safetensors"


def write_faiss(folder: Path) -> Path:
    index = faiss.IndexFlatIP(8)
    index.add(np.zeros((500, 8), np.float32))
    with files_of_at_most(9_000):
        write_index(index, folder / "items.faiss")
    return folder / "items.faiss"


def write_program(folder: Path) -> Path:
    program = torch.export.export(nn.Linear(64, 64), (torch.zeros(2, 64),))
    with files_of_at_most(9_000):
        save_program(program, folder / "item_tower.pt2")
    return folder / "item_tower.pt2"


WRITERS = [
    *(write_vectors, write_lists, write_names_of, write_table, write_faiss, write_program),
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_an_error_that_names_the_file(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(OSError, match=r"File too large|Errno 27") as caught:
        write(tmp_path)
    assert Path(caught.value.filename).parent == tmp_path and caught.value.errno == 27


def test_histories_are_read_within_a_ranks_share() -> None:
    """Eight ranks took 80 % of the memory and all cores each, and spilled where they stood."""
    settings = "SELECT name, value FROM duckdb_settings()"
    with sql.in_memory(1) as connection:
        found = dict(connection.execute(settings).fetchall())
        spill = Path(found["temp_directory"])
        assert spill.is_dir() and spill.is_absolute()
        assert int(found["threads"]) == 1
        number, unit = found["memory_limit"].split()
        assert float(number) * {"MiB": 2**20, "GiB": 2**30}[unit] <= 2e9
    assert not spill.exists()
