"""`tandem bench eval`: exact top-k over a large catalog beside the bare GEMM of its scores.

The bare GEMM is the floor of any exact search that scores every item: the same chunks of items
against the same blocks of queries into the same reused buffer, in float32, with nothing done to the
scores. Search and GEMMs take turns every few chunks, so that what else the machine does weighs on
all of them alike.

Tensor shapes: I items, Q queries of a block, D embedding width, N items of a chunk.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.base.mistake import Mistake
from trainer.base.ranges import MOST, MOST_ROWS, MOST_THREADS, check_range, check_ranges
from trainer.base.screen import Sheet
from trainer.retrieval.search.filter import Filter
from trainer.retrieval.search.item_lists import ItemLists
from trainer.retrieval.search.item_rows import ItemRows
from trainer.retrieval.search.topk import Search

CHUNKS_A_TURN = 64
CLUSTERS = 1000


@dataclass(frozen=True)
class EvalBenchArguments:
    """Exact top-k with seen items removed, beside the bare GEMM."""

    users: int = 100_000
    """Users whose evaluation is asked about."""
    sampled_users: int = 4096
    """Users measured; the time for all is this time scaled."""
    items: int = 10_000_000
    """Catalog."""
    dim: int = 64
    """Width of the embeddings."""
    k: int = 50
    """Length of the lists."""
    seen: int = 50
    """Items removed for each user."""
    block: int = 1024
    """Users searched at once."""
    chunk_items: int = 4096
    """Items scored at once."""
    precision: Literal["best", "float32", "bfloat16"] = "best"
    """Precision of the filter; the result is the same. best: the faster one here, as evaluation
    chooses it."""
    threads: int | None = None
    """CPU threads; left out: torch's choice."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: this process's processor time, for a machine shared with others; give --threads 1."""
    seed: int = 0
    """Seeds embeddings and seen items."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            users=(1, MOST_ROWS),
            sampled_users=(1, MOST_ROWS),
            items=(1, MOST_ROWS),
            dim=(1, MOST_ROWS),
            block=(1, MOST_ROWS),
            chunk_items=(1, MOST_ROWS),
            seed=(0, MOST),
        )
        check_range("--k", self.k, 1, self.items, f"of --items {self.items}")
        check_range("--seen", self.seen, 0, self.items - self.k, f"of --items {self.items}")
        if self.threads is not None:
            check_range("--threads", self.threads, 1, MOST_THREADS)
        if self.clock == "cpu" and self.threads != 1:
            raise Mistake("--clock cpu counts what threads wait: give --threads 1 with it")


def main(arguments: EvalBenchArguments) -> dict[str, Any]:
    """Measure and print."""
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result))
        return result
    sheet = Sheet("measure", "value", title="exact top-k beside the bare GEMM")
    for name, value in result.items():
        if name != "arguments":
            sheet.add(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
    sheet.print()
    return result


def measure(arguments: EvalBenchArguments) -> dict[str, Any]:
    """`ratio`: our seconds over the bare float32 GEMM's; also over the GEMM of the filter's own
    precision."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    center_CD = torch.randn(CLUSTERS, arguments.dim)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    items = ItemRows(_embeddings(arguments.items, center_CD))
    resident_before = _peak_bytes()
    how = Filter.best_for(torch.device("cpu"))
    precision = how.precision if arguments.precision == "best" else arguments.precision
    how = Filter(precision, arguments.chunk_items)
    blocks = []
    for start in range(0, arguments.sampled_users, arguments.block):
        users = min(arguments.block, arguments.sampled_users - start)
        seen = _random_seen(users, arguments)
        query_QD = _embeddings(users, center_CD)
        blocks.append(_one_block(items, query_QD, seen, arguments.k, how, clock))
    total = {name: sum(block[name] for block in blocks) for name in blocks[0]}
    per_user = total["ours"] / arguments.sampled_users
    return {
        "ratio": total["ours"] / total["float32"],
        "ratio_by_block": [block["ours"] / block["float32"] for block in blocks],
        "ratio_median": statistics.median(b["ours"] / b["float32"] for b in blocks),
        "ratio_to_own_gemm": total["ours"] / total[how.precision],
        "filter_precision": how.precision,
        "seconds_ours": total["ours"],
        "seconds_gemm_float32": total["float32"],
        "seconds_gemm_bfloat16": total["bfloat16"],
        "sampled_users": arguments.sampled_users,
        "seconds_all_users": per_user * arguments.users,
        "items_bytes": items.embedding_ID.nbytes,
        "peak_bytes": _peak_bytes(),
        "peak_extra_bytes": _peak_bytes() - resident_before,
        "threads": torch.get_num_threads(),
        "arguments": asdict(arguments),
    }


def _one_block(
    items: ItemRows,
    query_QD: Tensor,
    seen: ItemLists,
    k: int,
    how: Filter,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Seconds of the search and of the bare GEMMs for one block of queries."""
    gemms = {
        "float32": _BareGemm(items, query_QD, how.chunk_items, torch.float32),
        "bfloat16": _BareGemm(items, query_QD, how.chunk_items, torch.bfloat16),
    }
    seconds = dict.fromkeys((*gemms, "ours"), 0.0)
    started = clock()
    search = Search(items, query_QD, seen, k, how)
    seconds["ours"] += clock() - started
    work = {name: gemm.walk for name, gemm in gemms.items()} | {"ours": search.walk}
    order = list(work)
    for first in range(0, search.num_chunks, CHUNKS_A_TURN):
        order.append(order.pop(0))
        for name in order:
            started = clock()
            for chunk in range(first, min(first + CHUNKS_A_TURN, search.num_chunks)):
                work[name](chunk)
            seconds[name] += clock() - started
    started = clock()
    search.keys()
    seconds["ours"] += clock() - started
    return seconds


class _BareGemm:
    """Scores of each chunk into one reused buffer, and nothing else."""

    def __init__(self, items: ItemRows, query_QD: Tensor, rows: int, dtype: torch.dtype) -> None:
        self.items, self.rows = items, rows
        self.query_DQ = query_QD.to(dtype).T
        self.item_ND = query_QD.new_empty((rows, query_QD.size(1)), dtype=dtype)
        self.score_NQ = query_QD.new_empty((rows, len(query_QD)), dtype=dtype)

    def walk(self, chunk: int) -> None:
        item_ND = self.items.embedding_ID[chunk * self.rows : (chunk + 1) * self.rows]
        if item_ND.dtype != self.item_ND.dtype:
            item_ND = self.item_ND[: len(item_ND)].copy_(item_ND)
        torch.mm(item_ND, self.query_DQ, out=self.score_NQ[: len(item_ND)])


def _embeddings(rows: int, center_CD: Tensor) -> Tensor:
    """Unit vectors around the centers, [rows, D], made in small blocks."""
    embedding_ID = center_CD.new_empty((rows, center_CD.size(1)))
    for block in embedding_ID.split(1 << 16):
        cluster = torch.randint(len(center_CD), (len(block),))
        block.copy_(normalize(torch.randn_like(block) + center_CD[cluster], dim=1))
    return embedding_ID


def _random_seen(users: int, arguments: EvalBenchArguments) -> ItemLists:
    values = torch.randint(arguments.items, (users * arguments.seen,))
    return ItemLists(values, torch.arange(users + 1) * arguments.seen)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
