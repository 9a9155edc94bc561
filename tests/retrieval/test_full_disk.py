"""Export's files where the disk is full: an OSError that names the file, and a living process."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from trainer.distributed.ranks import Ranks
from trainer.retrieval.embedding_file import EmbeddingFile
from trainer.retrieval.index import write_index
from trainer.retrieval.programs import save_program
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


def write_part(folder: Path) -> Path:
    ids = pa.table({"item": np.arange(500), "raw_id": np.arange(500)})
    pq.write_table(ids, folder / "items.parquet")
    ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
    part = EmbeddingFile(folder, ranks, str(folder / "items.parquet"), "item", "count")
    part.mean_D = torch.zeros(8)  # no other ranks to ask for it
    with files_of_at_most(9_000), part:
        part.write(np.arange(500), torch.rand(500, 8))
    return part.path


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


@pytest.mark.parametrize("write", [write_part, write_faiss, write_program])
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
