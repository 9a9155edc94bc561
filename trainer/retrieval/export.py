"""`tandem export RUN OUT`: a bundle, from which answers are given (trainer/bundle/).

    items/, users/       vectors as flat arrays, ids as Arrow, what users have seen
    vocabularies.parquet, tables/   what the query tower reads
    {item,query}_{tower,encoder}.pt2     see programs.py
    beside/              tables and programs of a second model, where there is one
    items.faiss          with --index; what a search returns are item rows
    bundle.json          what made it, how programs and index are called, digests

docs/serving.md tells how they are used. OUT appears whole or not at all (whole_folder.py).

Where the model knows nothing of an item or user, `known` is false and the vector is the mean of
others; such an item is in no ranking, and such a user is shown what is most popular.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from trainer.base.mistake import require
from trainer.base.screen import say
from trainer.bundle.flat_arrays import mapped
from trainer.bundle.manifest import BESIDE, Manifest, ModelFacts, describe
from trainer.bundle.query_program import FEATURES
from trainer.config.model_section import ModelConfig
from trainer.distributed.agreement import first_decides, gather_objects, together
from trainer.files.filesystems import is_uri, local_path
from trainer.files.whole_folder import whole_folder
from trainer.launch.here import is_first_process
from trainer.launch.launcher import Launcher, Worker
from trainer.launch.processes import on_this_machine
from trainer.model.trained import TrainedRun
from trainer.retrieval.arguments import ExportArguments
from trainer.retrieval.encode import Encoder
from trainer.retrieval.index import write_index_of
from trainer.retrieval.opened import OpenedRun
from trainer.retrieval.programs import program_facts, program_features
from trainer.retrieval.written.bundle_programs import write_programs
from trainer.retrieval.written.bundle_tables import (
    write_attributes,
    write_counts,
    write_features,
    write_ids,
    write_vocabularies,
)
from trainer.retrieval.written.bundle_vectors import write_items, write_lists_alone, write_users
from trainer.retrieval.written.stored_recall import StoredRecall
from trainer.run.asked.newest import asked_checkpoint
from trainer.run.folder import RunFolder

OnBlock = Callable[[], None]


def export(arguments: ExportArguments, launcher: Launcher | None = None) -> dict[str, Any]:
    """Write OUT and print what is in it; returns the contents of bundle.json.

    OUT is held by the process that starts the ranks, which may be killed: what they wrote goes.
    Under torchrun the processes that do not speak return {}.

    Args:
        launcher: of the ranks that do it; None: on this machine.
    """
    manifest = export_quietly(arguments, launcher or on_this_machine(arguments.workers))
    if manifest is None:
        return {}
    _tell(manifest, arguments.out)
    return asdict(manifest)


def export_quietly(arguments: ExportArguments, launcher: Launcher) -> Manifest | None:
    """Write OUT; what bundle.json says, in the process that speaks for all."""
    with ExitStack() as stack:
        folder = stack.enter_context(new_bundle(arguments.out)) if is_first_process() else None
        facts: dict[str, Any] = launcher.run(export_on_rank, (arguments, folder))
        return None if folder is None else describe(folder, facts)


def _tell(said: Manifest, out: str) -> None:
    users = f"{said.users:,} users" if said.user_vectors else "no users"
    say(f"exported {said.items:,} items and {users}, {said.width} wide, {said.precision}, to {out}")
    for side, unknown in (("items", said.unknown_items), ("users", said.unknown_users)):
        if unknown:
            say(
                f"nothing is known of {unknown:,} {side} (`known` is false): "
                "they have the mean embedding"
            )
    say(f"programs: {', '.join(said.programs)}")
    if said.recall is not None:
        say(
            f"stored as {said.precision}: recall@{said.recall['k']} against float32 "
            f"{said.recall['recall']:.4f} over {said.recall['queries']:,} users"
        )
    if said.index is not None:
        say(
            f"index {said.index['kind']}: recall@{said.index['k']} against exact search "
            f"{said.index['recall']:.4f} over {said.index['queries']:,} users"
        )


@contextmanager
def new_bundle(out: str | Path) -> Iterator[Path]:
    """The folder that becomes OUT; of a URI one of this machine, whose files are sent to it."""
    with whole_folder(out) as folder:
        for name in ("items", FEATURES, "tables"):
            (folder / name).mkdir(parents=True)
        yield folder


def export_on_rank(given: tuple[ExportArguments, Path | None], worker: Worker) -> dict[str, Any]:
    """Write everything but bundle.json, whose contents are whole on rank 0 alone. Collective.

    Args:
        given: rank 0's folder counts, which every rank sees.
    """
    arguments, folder, ranks = given[0], gather_objects(given[1])[0], worker.ranks  # collective
    assert folder is not None
    together(lambda: _check_seen(folder, arguments.out))  # collective
    blocks = itertools.count(1)

    def sign() -> None:
        worker.hooks.on_phase("evaluating", next(blocks), None)

    def asked() -> str:
        run = RunFolder(arguments.run)
        run.read_config()
        return asked_checkpoint(run)

    checkpoint = first_decides(asked)  # collective
    opened = OpenedRun(arguments.run, ranks, arguments.data)  # collective
    trained = opened.trained
    if arguments.width is not None:
        require(
            opened.second is None,
            f"--width {arguments.width}: a second model stands beside this run, and a part of the "
            "columns of both is no model: leave --width out",
        )
        trained.model.use_columns(trained_width(trained.config.model, arguments.width))
    facts = write_bundle(opened, arguments, folder, sign)  # collective
    return {**facts, "checkpoint": checkpoint}


def trained_width(model: ModelConfig, width: int) -> int:
    """The width, where the first so many columns are embeddings. Raises Mistake."""
    trained = model.widths or (model.width,)
    require(
        width in trained,
        f"--width {width}: the run was trained for {', '.join(map(str, trained))}; --model.widths "
        "trains others",
    )
    return width


def write_bundle(
    opened: OpenedRun, arguments: ExportArguments, folder: Path, sign: OnBlock
) -> dict[str, Any]:
    """Write everything but bundle.json; returns its facts but for `checkpoint`. Collective."""
    encoder, trained, ranks = opened.encoder, opened.trained, opened.ranks
    dataset, precision = trained.dataset, arguments.precision
    recall = None
    if precision != "float32":
        k = min(arguments.index_k, dataset.num_items)
        recall = StoredRecall.of_users(encoder, dataset, k, precision)  # collective
    watch = None if recall is None else recall.add
    items = write_items(encoder, folder / "items", precision, sign, watch)  # collective
    unknown_users = 0
    if arguments.users:
        users = write_users(encoder, dataset, folder / "users", precision, sign)  # collective
        unknown_users = users.unknown
    unknown = torch.tensor([items.unknown, unknown_users], device=ranks.device)
    dist.all_reduce(unknown)  # collective
    limit, width = arguments.encoder_limit, items.width
    beside = None
    if encoder.beside is not None and opened.second is not None:
        width, second = trained.config.model.width, opened.second
        if ranks.is_first:
            (folder / BESIDE / "tables").mkdir(parents=True)
        beside = ModelFacts(
            **_written_model(  # collective
                second,
                encoder.beside.encoder,
                folder,
                limit,
                second.config.model.width,
                BESIDE,
                encoder.beside.scale,
            )
        )
    model = _written_model(trained, encoder, folder, limit, width)  # collective
    if ranks.is_first:
        if not arguments.users:
            write_lists_alone(dataset, folder / "users", sign, encoder.marks)
        _write_tables(opened, folder)
    recalled = None if recall is None else recall.result()  # collective
    dist.barrier()  # collective: all parts are written
    largest_norm = 0.0
    if ranks.is_first:
        largest_norm = float(np.max(mapped(folder / "items/norms.npy"), initial=0))
    facts: dict[str, Any] = {
        "run": arguments.run,
        "step": trained.step,
        "dataset_digest": dataset.digest,
        "similarity": trained.config.model.similarity if beside is None else "dot",
        "items": dataset.num_items,
        "users": dataset.num_users,
        "unknown_items": int(unknown[0]),
        "unknown_users": int(unknown[1]),
        "width": items.width,
        "precision": precision,
        "largest_norm": largest_norm,
        "user_vectors": arguments.users,
        **model,
        "beside": beside,
        **{f"{side}_attributes": getattr(dataset, f"{side}_attributes")
           for side in ("user", "item", "context")},
        "recall": recalled,
    }  # fmt: skip
    if ranks.is_first and arguments.index is not None:
        known = facts["items"] - facts["unknown_items"]
        facts["index"] = write_index_of(folder, facts, arguments, known, sign)
    return facts


def _written_model(
    trained: TrainedRun,
    encoder: Encoder,
    folder: Path,
    limit: int,
    width: int,
    place: str = "",
    scale: float = 1.0,
) -> dict[str, Any]:
    """Write a model's programs and tables; the fields of its ModelFacts. Collective.

    Args:
        width: of its own vectors.
        place, scale: see `write_programs`.
    """
    inputs = trained.model.inputs
    programs, tables = write_programs(  # collective
        trained, encoder, folder, limit, place, scale
    )
    return {
        "query_keys": inputs.query_keys,
        "query_features": tuple(program_features(inputs.query_keys, inputs)),
        "dim": inputs.tables[0].dim,
        "candidate_keys": inputs.candidate_keys,
        "mean_keys": tuple(sorted(inputs.mean_keys)),
        "query_dense": inputs.query_dense,
        "history_length": encoder.history_length,
        "history_marks": encoder.marks.keys if encoder.marks is not None else (),
        "tables": tables,
        "programs": {name: program_facts(name, inputs, width) for name in programs},
    }


def _write_tables(opened: OpenedRun, folder: Path) -> None:
    """Rank 0: what the dataset says."""
    encoder, dataset = opened.encoder, opened.trained.dataset
    write_ids(dataset, folder / "items", "item")
    write_ids(dataset, folder / "users", "user")
    write_counts(dataset, folder / "items", "item", encoder.counts)
    write_counts(dataset, folder / "users", "user", encoder.counts)
    write_attributes(dataset, folder, encoder.counts)
    write_vocabularies(dataset, folder / "vocabularies.parquet")
    reads = set(encoder.model.inputs.query_reads)
    write_features(dataset, folder, encoder.store, reads)
    if encoder.beside is not None:
        second = encoder.beside.encoder
        write_features(dataset, folder, second.store, set(second.model.inputs.query_reads) - reads)


def _check_seen(folder: Path, out: str) -> None:
    where = f"the files that are sent to {out}" if is_uri(out) else str(local_path(out).parent)
    require(
        folder.is_dir(),
        f"{socket.gethostname()} does not see {where}: with --address, OUT must lie in a folder "
        "that all machines share",
    )
