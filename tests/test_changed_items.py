"""What `train --export-to` writes after a window: the same from any ranks, block by block."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.retrieval.ranks import run_on_ranks
from trainer.base.mistake import Mistake
from trainer.distributed.ranks import Ranks, process_group
from trainer.watch import changed_items
from trainer.watch.changed_items import export_changed

pytestmark = pytest.mark.xdist_group("ranks")

WIDTH, BLOCK = 8, 64


def catalog(file: Path, num_items: int) -> tuple[str, int]:
    """items.parquet, as much of it as is asked for."""
    ids = pa.array([f"i{row}" for row in range(num_items)])
    pq.write_table(pa.table({"raw_id": ids}), file, row_group_size=50)
    return str(file), num_items


def vectors_of(item_n: np.ndarray, window: int, width: int = WIDTH) -> np.ndarray:
    """Every third item is new in window 1, each fifth is another one in each window; zeros: -1."""
    version_n = np.where(item_n % 5 == 0, window, 0)
    vector_nD = np.sin(item_n[:, None] + 0.1 * np.arange(width) + version_n[:, None])
    there_n = (item_n >= 0) & ((item_n % 3 != 0) | (window > 0))
    return np.where(there_n[:, None], vector_nD, 0).astype(np.float32)


def exported(ranks: Ranks, folder: Path, sizes: tuple[int, ...]) -> list[int]:
    """A window after the other, of a catalog that grows; how many items each wrote."""
    changed_items.BLOCK_ITEMS = BLOCK
    counts = []
    out = str(folder / f"of{ranks.world_size}")
    for number, items in enumerate(sizes):
        given = catalog(folder / f"{ranks.world_size}-{ranks.rank}-{number}.parquet", items)
        asked: list[int] = []

        def candidates(item_n: np.ndarray, window: int = number) -> torch.Tensor:
            asked.append(len(item_n))  # noqa: B023 - called in this turn
            return torch.from_numpy(vectors_of(item_n, window))

        counts.append(export_changed(out, number, ranks, *given, candidates))
        assert max(asked) <= -(-BLOCK // ranks.world_size)
    return counts


def table_of(path: Path) -> dict[int, tuple[str, np.ndarray]]:
    table = pq.read_table(path)
    columns = (table[name].to_pylist() for name in ("item", "raw_id", "embedding"))
    return {
        item: (raw, np.array(vector, np.float32))
        for item, raw, vector in zip(*columns, strict=True)
    }


def test_ranks_write_together_what_one_writes(tmp_path: Path) -> None:
    """Three blocks, the last of them short; sizes that ranks do not divide; rows that come."""
    sizes = (150, 171, 171)
    counts = run_on_ranks(exported, (1, 2, 3), (tmp_path, sizes), tmp_path)
    assert all(each == counts[1][0] for of_ranks in counts.values() for each in of_ranks)
    names = [f"window-{number:05d}.parquet" for number in range(3)]
    for world_size in (2, 3):
        for name in names:
            one, other = (tmp_path / f"of{size}" / name for size in (1, world_size))
            assert other.read_bytes() == one.read_bytes(), (world_size, name)
    index: dict[int, np.ndarray] = {}
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        now = vectors_of(np.arange(size), number)
        written = table_of(tmp_path / "of1" / name)
        expected = {
            item
            for item in range(size)
            if now[item].any() and not (item in index and np.array_equal(index[item], now[item]))
        }
        assert set(written) == expected and list(written) == sorted(expected)
        assert counts[1][0][number] == len(expected) < size
        assert all(raw == f"i{item}" for item, (raw, _) in written.items())
        index |= {item: vector for item, (_, vector) in written.items()}
        assert all(np.array_equal(vector, now[item]) for item, vector in index.items())


@pytest.fixture
def one_rank(tmp_path: Path) -> tuple[str, int]:
    return catalog(tmp_path / "items.parquet", 100)


def export(given: tuple[str, int], out: Path, number: int, width: int = WIDTH) -> int:
    with process_group() as ranks:
        return export_changed(
            str(out),
            number,
            ranks,
            *given,
            lambda item_n: torch.from_numpy(vectors_of(item_n, number, width)),
        )


def test_a_window_is_written_again_as_it_was(one_rank: tuple[str, int], tmp_path: Path) -> None:
    """A run that is killed after it goes on from the checkpoint before."""
    out = tmp_path / "out"
    for number in range(3):
        export(one_rank, out, number)
        before = (out / f"window-{number:05d}.parquet").read_bytes()
        assert export(one_rank, out, number)
        assert (out / f"window-{number:05d}.parquet").read_bytes() == before
    assert len(list((out / ".digests").iterdir())) == 2
    assert not list(out.rglob("*.partial"))


def test_what_was_taken_away_is_not_written_again(
    one_rank: tuple[str, int], tmp_path: Path
) -> None:
    """Files are handed on and removed; without digests there is nothing to compare with."""
    out = tmp_path / "out"
    all_of_it = export(one_rank, out, 0)
    (out / "window-00000.parquet").unlink()
    changed = export(one_rank, out, 1)
    assert changed < all_of_it
    for digests, wanted in ((b"no array", 100), (None, 100)):
        file = out / ".digests/window-00001.npy"
        file.unlink() if digests is None else file.write_bytes(digests)
        assert export(one_rank, out, 2) == wanted
    with pytest.raises(
        Mistake, match=r"window-00002.parquet holds vectors of 8 columns.* 4: choos"
    ):
        export(one_rank, out, 3, width=4)
    assert not list(out.rglob("*.partial"))


def test_memory_follows_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, width = 20_000, 256
    monkeypatch.setattr(changed_items, "BLOCK_ITEMS", 1000)
    given = catalog(tmp_path / "items.parquet", items)
    export(given, tmp_path / "warm", 0, width)
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    export(given, tmp_path / "out", 0, width)
    peak = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert peak < items * width * 4 / 2, f"{peak:,} bytes"
