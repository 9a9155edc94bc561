"""From a config and a dataset to a sharded model, its optimizer and its loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from embeddings.fused_optimizer import fuse_table_optimizer, sharder_arguments
from embeddings.sharding import Layout, initialise, shard
from losses import CandidateQueue, RetrievalLoss, build_loss
from trainer.base.machine import usable_memory_bytes
from trainer.base.mistake import Mistake, mistakes
from trainer.config.loss_section import LossConfig
from trainer.config.model_section import ModelConfig
from trainer.config.negatives_section import NegativesConfig
from trainer.config.sections import Config
from trainer.data.candidates import Distribution
from trainer.data.feature_bags import rows_of
from trainer.data.met_pairs import store_pairs
from trainer.data.schema import Dataset
from trainer.data.trained_rows import trained_items, trained_rows
from trainer.distributed.agreement import together
from trainer.distributed.ranks import Ranks
from trainer.loader.epoch_rows import WindowSchedule
from trainer.loader.loader import Loader
from trainer.loader.mined import MinedItems
from trainer.loader.sequence_batches import SequenceReading
from trainer.model.inputs import Inputs, build_inputs
from trainer.model.log_q import FrequencyCorrection
from trainer.model.spectral import rules, start_at_spectrum
from trainer.model.task import RetrievalTask
from trainer.model.two_tower import TwoTower
from trainer.model.vector_start import start_at_vectors


def build_model(
    config: Config, dataset: Dataset, ranks: Ranks, known_rows: Mapping[str, int] | None = None
) -> DistributedModelParallel:
    """The sharded model, tables at their seeded first values. Collective.

    The `TwoTower` inside is `result.module`. Tables have the dataset's sizes, or `known_rows`,
    those of a checkpoint whose values follow.
    """
    inputs = build_inputs(config.model, dataset)
    trained, num_trained_items = None, dataset.num_items
    if known_rows is not None:
        inputs = inputs.sized(known_rows)
    else:
        trained = trained_of_tables(config, dataset, inputs)
        num_trained_items = drawn_items(config, dataset)
    if config.model.spectral_start and known_rows is None:
        together(  # collective: one rank of a machine makes the arrays, the others read them
            lambda: [
                store_pairs(dataset, rule)
                for rule in rules(dataset, config.data.train_splits)
                if ranks.local_rank == 0
            ]
        )
    torch.manual_seed(config.training.seed)
    model = TwoTower(
        config.model,
        inputs,
        build_task(config, dataset, num_trained_items),
        averaging=config.optimizer.tower_averaging,
        penalty=config.loss.embedding_penalty,
    )
    with mistakes():
        fuse_table_optimizer(
            model.embeddings,
            config.optimizer.tables,
            config.optimizer.table_learning_rate,
            config.optimizer.table_weight_decay,
            ranks.device.type,
        )
    model.head.to(ranks.device)
    local_batch_size = -(-config.training.global_batch_size // ranks.world_size)
    with mistakes():
        sharded = shard(
            model,
            inputs.tables,
            build_layout(ranks),
            ranks.device,
            local_batch_size,  # evaluation takes any number
            config.training.seed,
            config.model.sharding,
            config.model.placement,
            sharder_arguments(config.optimizer.tables, config.optimizer.table_weight_decay),
            trained,
        )
    if config.model.spectral_start and known_rows is None:
        start_at_spectrum(  # collective
            sharded,
            dataset,
            config.data.train_splits,
            config.model.dim,
            config.model.spectral_start,
            config.training.seed,
            ranks,
            equal=config.model.similarity == "cosine",
        )
    if config.model.item_vectors is not None and known_rows is None:
        _start_at_vectors(sharded, config, dataset)
    return sharded


def start_new_rows(
    model: DistributedModelParallel,
    config: Config,
    dataset: Dataset,
    known_rows: Mapping[str, int],
) -> None:
    """First values for the rows from `known_rows` on, of tables that have grown. No collective.

    Rows before them that were never trained, and are now, are such too.
    """
    inputs: Inputs = model.module.inputs
    trained = trained_of_tables(config, dataset, inputs)
    initialise(model, inputs.tables, config.training.seed, trained, known_rows)
    if config.model.item_vectors is not None:
        _start_at_vectors(model, config, dataset, known_rows["item"])


def _start_at_vectors(
    model: DistributedModelParallel, config: Config, dataset: Dataset, from_row: int = 0
) -> None:
    assert config.model.item_vectors is not None
    start_at_vectors(
        model,
        dataset,
        config.model.item_vectors,
        config.model.init_std,
        config.training.seed,
        from_row,
    )


def trained_of_tables(config: Config, dataset: Dataset, inputs: Inputs) -> dict[str, torch.Tensor]:
    """By table: rows that training on this dataset looks up, bool [known rows]; none where windows
    admit theirs one after the other. No collective."""
    if config.data.windows:
        sizes = {table.name: table.known_rows for table in inputs.tables}
        return {name: torch.zeros(rows, dtype=torch.bool) for name, rows in sizes.items()}
    found = trained_rows(
        dataset,
        inputs.keys,
        config.data.train_splits,
        config.loss.uses_dislikes or inputs.reads_disliked,
    )
    return {
        table.name: torch.from_numpy(found[rows_of(table.features[0])]) for table in inputs.tables
    }


def drawn_items(config: Config, dataset: Dataset) -> int:
    """Items that uniform negatives are drawn from; all where windows bring them one after the
    other."""
    if config.data.windows:
        return dataset.num_items
    return int(trained_items(dataset, config.data.train_splits).sum())


def build_layout(ranks: Ranks) -> Layout:
    """The machines of this process group, as TorchRec's planner wants them."""
    on_gpu = ranks.device.type == "cuda"
    device_bytes = torch.cuda.get_device_properties(ranks.device).total_memory if on_gpu else None
    return Layout(
        world_size=ranks.world_size,
        local_world_size=ranks.local_world_size,
        device_type=ranks.device.type,
        device_bytes=device_bytes,
        host_bytes=usable_memory_bytes() // ranks.local_world_size,
    )


def build_task(config: Config, dataset: Dataset, num_trained_items: int) -> RetrievalTask:
    """Loss, frequency correction and negatives as the config states them.

    Args:
        num_trained_items: items with a positive in train, which uniform negatives are drawn from.
    """
    negatives = config.negatives
    trained = sum(dataset.splits[name].positives for name in config.data.train_splits)
    with mistakes():
        loss = retrieval_loss(config.loss, config.model)
    return RetrievalTask(
        loss=loss,
        correction=FrequencyCorrection(
            mode=negatives.log_q,
            total_count=trained,
            num_items=num_trained_items,
            popular=negatives.in_batch or negatives.popularity > 0,
            uniform=negatives.uniform > 0,
            per=loss.log_q_per,
        ),
        in_batch=negatives.in_batch,
        sampled_by=sampled_by(negatives),
        history_mask=config.loss.mask_history,
        dislikes=config.loss.uses_dislikes,
        disliked_negatives=config.loss.disliked_negatives,
        mined=negatives.mined is not None,
        ring=config.loss.ring,
        distinct=negatives.distinct,
        queue=CandidateQueue(negatives.queue, config.model.width, negatives.queue_warmup_steps)
        if negatives.queue
        else None,
    )


def sampled_by(negatives: NegativesConfig) -> Distribution:
    """What the candidates beside the rows' own are drawn by."""
    return "popularity" if negatives.popularity else "uniform"


def retrieval_loss(loss: LossConfig, model: ModelConfig) -> RetrievalLoss:
    return build_loss(
        loss.name,
        temperature=loss.temperature,
        correction=loss.correction,
        mask_same_user=loss.mask_same_user,
        mask_history=loss.mask_history,
        hardness=loss.hardness,
        precision=loss.precision,
        learn_temperature=loss.learn_temperature,
        ring=loss.ring,
        backend=loss.backend,
        widths=model.widths,
        renormalise=model.similarity == "cosine",
        **loss.parameters,
    )


def local_batch_size(config: Config, ranks: Ranks) -> int:
    """Rows a rank trains a step. Raises Mistake if the global batch does not divide."""
    batch = config.training.global_batch_size
    if batch % ranks.world_size:
        raise Mistake(
            f"training.global_batch_size={batch} does not divide by {ranks.world_size} workers; "
            f"use {batch - batch % ranks.world_size or ranks.world_size}"
        )
    return batch // ranks.world_size


def sequence_reading(config: Config, inputs: Inputs) -> SequenceReading | None:
    """How rows are read as sequences; None: one by one."""
    if not inputs.sequence_length:
        return None
    length = min(inputs.sequence_length, config.data.history_length or inputs.sequence_length)
    return SequenceReading(
        length, config.loss.mask_history, inputs.marks, inputs.event_keys, inputs.event_dense
    )


def build_loader(
    config: Config,
    dataset: Dataset,
    inputs: Inputs,
    ranks: Ranks,
    position: dict[str, Any] | None,
    schedule: WindowSchedule | None = None,
) -> Loader:
    """The training loader of this rank, from `position` on. No collective."""
    negatives, mined = config.negatives, None
    if negatives.mined is not None:
        each, seed = negatives.mined_each, config.training.seed
        mined = MinedItems(negatives.mined, dataset, each, seed)
    return Loader(
        dataset,
        splits=config.data.train_splits,
        query_keys=inputs.query_keys,
        candidate_keys=inputs.candidate_keys,
        dense_keys=tuple(inputs.dense),
        local_batch_size=local_batch_size(config, ranks),
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.training.seed,
        streams=config.data.streams or None,
        shuffle_window_rows=config.data.shuffle_window_rows,
        extra_candidates=negatives.uniform + negatives.popularity,
        extra_distribution=sampled_by(negatives),
        feedback="all" if config.loss.uses_dislikes else "positive",
        history_length=config.data.history_length,
        sequences=sequence_reading(config, inputs),
        position=position,
        skip_corrupt=config.data.skip_corrupt,
        pin_memory=ranks.device.type == "cuda",
        schedule=schedule,
        mined=mined,
    )
