"""`tandem export RUN OUT`: embeddings as Parquet, tower programs, and a FAISS index.

    OUT/items/part-R.parquet   item, raw_id, title, count, known, embedding   of rank R's range
    OUT/users/part-R.parquet   user, raw_id, count, known, embedding  histories up to the present
    OUT/{item,query}_tower.pt2, OUT/{item,query}_encoder.pt2     see programs.py
    OUT/items.faiss            with --index; what a search returns are item rows
    OUT/export.json            what made it, and how programs and index are called

docs/serving.md tells how they are used.

`count` are training interactions. Where the model knows nothing of an item or user, `known` is
false and the embedding is the mean of others: it stands in the middle of every ranking, and such a
user is shown what most are shown. The index leaves such items out.

OUT appears whole or not at all (whole_folder.py).
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from trainer.base.mistake import require
from trainer.base.screen import say
from trainer.data.schema import Dataset
from trainer.distributed.agreement import gather_objects, together
from trainer.distributed.ranks import Ranks
from trainer.files.filesystems import is_uri, local_path
from trainer.files.json_files import write_json
from trainer.files.whole_folder import whole_folder
from trainer.launch.here import is_first_process
from trainer.launch.launcher import Launcher, Worker
from trainer.launch.processes import on_this_machine
from trainer.model.trained import TrainedRun, load_run
from trainer.retrieval.arguments import ExportArguments
from trainer.retrieval.embedding_file import EmbeddingFile
from trainer.retrieval.encode import (
    ROWS_AT_ONCE,
    Encoder,
    blocks_of_range,
    rank_range,
)
from trainer.retrieval.index import (
    build_index,
    index_recall,
    read_embeddings,
    write_index,
)
from trainer.retrieval.known import known_users
from trainer.retrieval.programs import (
    export_encoders,
    export_towers,
    gather_tables,
    program_facts,
    save_program,
    table_bytes,
)
from trainer.retrieval.search.item_lists import ItemLists

QUERIES_OF_RECALL = 1000


def export(arguments: ExportArguments, launcher: Launcher | None = None) -> dict[str, Any]:
    """Write OUT and print what is in it; returns the contents of export.json.

    OUT is held by the process that starts the ranks, which may be killed: what they wrote goes.

    Args:
        launcher: of the ranks that do it; None: on this machine.
    """
    launcher = launcher or on_this_machine(arguments.workers)
    with ExitStack() as stack:
        folder = stack.enter_context(_new_folder(arguments.out)) if is_first_process() else None
        facts: dict[str, Any] = launcher.run(export_on_rank, (arguments, folder))
        if folder is not None:
            write_json(folder / "export.json", facts)
    if is_first_process():
        _tell(facts, arguments.out)
    return facts


def _tell(facts: dict[str, Any], out: str) -> None:
    say(
        f"exported {facts['items']:,} items and {facts['users']:,} users, "
        f"{facts['width']} wide, to {out}"
    )
    for side in ("items", "users"):
        if facts[f"unknown_{side}"]:
            say(
                f"nothing is known of {facts[f'unknown_{side}']:,} {side} (`known` is false): "
                "they have the mean embedding"
            )
    say(f"programs: {', '.join(facts['programs'])}")
    if "index" in facts:
        found = facts["index"]
        say(
            f"index {found['kind']}: recall@{found['k']} against exact search "
            f"{found['recall']:.4f} over {found['queries']:,} users"
        )


@contextmanager
def _new_folder(out: str) -> Iterator[Path]:
    """The folder that becomes OUT; of a URI one of this machine, whose files are sent to it."""
    with whole_folder(out) as folder:
        for name in ("items", "users"):
            (folder / name).mkdir()
        yield folder


def export_on_rank(given: tuple[ExportArguments, Path | None], worker: Worker) -> dict[str, Any]:
    """Write everything but export.json, whose contents are whole on rank 0 alone. Collective.

    Args:
        given: rank 0's folder counts, which every rank sees.
    """
    arguments, folder, ranks = given[0], gather_objects(given[1])[0], worker.ranks  # collective
    assert folder is not None
    together(lambda: _check_seen(folder, arguments.out))  # collective
    blocks = itertools.count(1)

    def sign() -> None:
        worker.hooks.on_phase("evaluating", next(blocks), None)

    trained = load_run(arguments.run, ranks, arguments.data)  # collective
    encoder, dataset = Encoder.of_run(trained, ranks), trained.dataset
    width, unknown_items = write_items(encoder, dataset, folder / "items", sign)  # collective
    unknown_users = 0
    if arguments.users:
        unknown_users = write_users(encoder, dataset, folder / "users", sign)  # collective
    unknown = torch.tensor([unknown_items, unknown_users], device=ranks.device)
    dist.all_reduce(unknown)  # collective
    programs = write_programs(  # collective
        trained, ranks, folder, arguments.encoder_limit, encoder.store.row_of
    )
    dist.barrier()  # collective: all parts are written
    inputs = trained.model.inputs
    facts: dict[str, Any] = {
        "run": arguments.run,
        "step": trained.step,
        "dataset_digest": dataset.digest,
        "similarity": trained.config.model.similarity,
        "items": dataset.num_items,
        "users": dataset.num_users if arguments.users else 0,
        "unknown_items": int(unknown[0]),
        "unknown_users": int(unknown[1]),
        "width": width,
        "query_keys": list(inputs.query_keys),
        "candidate_keys": list(inputs.candidate_keys),
        "mean_keys": sorted(inputs.mean_keys),
        "programs": {name: program_facts(name, inputs, width) for name in programs},
    }
    if ranks.is_first and arguments.index is not None:
        facts["index"] = _write_index(arguments, folder, facts, sign)
    return facts


def _check_seen(folder: Path, out: str) -> None:
    where = f"the files that are sent to {out}" if is_uri(out) else str(local_path(out).parent)
    require(
        folder.is_dir(),
        f"{socket.gethostname()} does not see {where}: with --address, OUT must lie in a folder "
        "that all machines share",
    )


def write_items(
    encoder: Encoder, dataset: Dataset, folder: Path, on_block: Callable[[], None] = lambda: None
) -> tuple[int, int]:
    """This rank's part of the item embeddings; their width, those unknown. Collective."""
    width = 0
    with EmbeddingFile(
        folder, encoder.ranks, dataset.file("items.parquet"), "item", encoder.counts
    ) as part:
        for row_n, block_nD in encoder.item_blocks():  # collective
            width = block_nD.size(1)
            part.write(row_n, block_nD)  # collective
            on_block()
    return width, part.unknown


def write_users(
    encoder: Encoder, dataset: Dataset, folder: Path, on_block: Callable[[], None] = lambda: None
) -> int:
    """This rank's part of the user embeddings; those unknown. Collective."""
    first, stop = rank_range(dataset.num_users, encoder.ranks)
    known = known_users(dataset, first, stop, ROWS_AT_ONCE)
    longest = min(ROWS_AT_ONCE, -(-dataset.num_users // encoder.ranks.world_size))
    with EmbeddingFile(
        folder, encoder.ranks, dataset.file("users.parquet"), "user", encoder.counts
    ) as part:
        for row_n in blocks_of_range(dataset.num_users, encoder.ranks):
            user_q = torch.full((longest,), -1)
            user_q[: len(row_n)] = torch.from_numpy(row_n)
            history = disliked = ItemLists.from_lists([[]])
            if len(row_n) and encoder.uses_history:
                block = next(known)
                history, disliked = block.history, block.disliked
            query_qD = encoder.queries(  # collective
                user_q, history.padded(longest), disliked.padded(longest)
            )
            part.write(row_n, query_qD[: len(row_n)])  # collective
            on_block()
    return part.unknown


def write_programs(
    trained: TrainedRun,
    ranks: Ranks,
    folder: Path,
    limit: int,
    row_of: Mapping[str, np.ndarray],
) -> list[str]:
    """Rank 0 writes the tower programs, with tables too where they fit. Collective.

    row_of: as `FeatureStore` has it.
    """
    programs = export_towers(trained.model) if ranks.is_first else {}
    inputs = trained.model.inputs
    if table_bytes(inputs) <= limit and inputs.neighbours is None:
        tables = gather_tables(trained.model, ranks)  # collective
        programs |= export_encoders(trained.model, tables, row_of) if ranks.is_first else {}
    for name, program in programs.items():
        save_program(program, folder / f"{name}.pt2")
    return sorted(programs)


def _write_index(
    arguments: ExportArguments, folder: Path, facts: dict[str, Any], on_block: Callable[[], None]
) -> dict[str, Any]:
    """Rank 0: build, compare with exact search, write."""
    assert arguments.index is not None
    known = facts["items"] - facts["unknown_items"]
    index = build_index(arguments.index, folder / "items", known, facts["width"], on_block)
    block = next(read_embeddings(folder / "users"))
    rows = np.random.default_rng(0).permutation(len(block))[:QUERIES_OF_RECALL]
    k = min(arguments.index_k, known)
    recall = index_recall(index, folder / "items", torch.from_numpy(block[rows]), k)
    write_index(index, folder / "items.faiss")
    return {
        "kind": arguments.index,
        "file": "items.faiss",
        "metric": "inner product",
        "position": "item row, the column `item` of items/",
        "none_found": -1,
        "seen_items_removed": False,
        "k": k,
        "recall": recall,
        "queries": len(rows),
    }
