"""From a config and a dataset to a sharded model, its optimizer and its loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from embeddings.optimizer import fuse_table_optimizer
from embeddings.sharding import Layout, shard
from losses import CandidateQueue, build_loss
from trainer.config import Config, LossConfig
from trainer.data.loader import Loader
from trainer.data.schema import Dataset
from trainer.inputs import Inputs, build_inputs
from trainer.machine import usable_memory_bytes
from trainer.mistake import Mistake, mistakes
from trainer.model import TwoTower
from trainer.ranks import Ranks
from trainer.spectral import start_at_spectrum
from trainer.task import FrequencyCorrection, RetrievalTask


def build_model(
    config: Config, dataset: Dataset, ranks: Ranks, known_rows: Mapping[str, int] | None = None
) -> DistributedModelParallel:
    """The sharded model, tables at their seeded first values. Collective.

    The `TwoTower` inside is `result.module`. Tables have the dataset's sizes, or `known_rows`,
    those of a checkpoint whose values follow.
    """
    inputs = build_inputs(config.model, dataset, config.data.train_splits)
    if known_rows is not None:
        inputs = inputs.sized(known_rows)
    torch.manual_seed(config.training.seed)
    model = TwoTower(
        config.model,
        inputs,
        build_task(config, dataset),
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
        )
    return sharded


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


def build_task(config: Config, dataset: Dataset) -> RetrievalTask:
    """Loss, frequency correction and negatives as the config states them."""
    negatives = config.negatives
    in_batch = config.training.global_batch_size if negatives.in_batch else 0
    trained = sum(dataset.splits[name].positives for name in config.data.train_splits)
    with mistakes():
        loss = _build_loss(config.loss)
    return RetrievalTask(
        loss=loss,
        correction=FrequencyCorrection(
            mode=negatives.log_q,
            total_count=trained,
            num_items=dataset.num_items,
            num_popular=in_batch + negatives.popularity,
            num_uniform=negatives.uniform,
        ),
        in_batch=negatives.in_batch,
        history_mask=config.loss.mask_history,
        dislikes=config.loss.uses_dislikes,
        disliked_negatives=config.loss.disliked_negatives,
        ring=config.loss.ring,
        queue=CandidateQueue(negatives.queue, config.model.width, negatives.queue_warmup_steps)
        if negatives.queue
        else None,
    )


def _build_loss(loss: LossConfig) -> torch.nn.Module:
    return build_loss(
        loss.name,
        temperature=loss.temperature,
        negative_temperature=loss.negative_temperature,
        negative_weight=loss.negative_weight,
        margin=loss.margin,
        disliked_weight=loss.disliked_weight,
        alpha=loss.alpha,
        several_positives=loss.several_positives,
        correction=loss.correction,
        mask_same_user=loss.mask_same_user,
        mask_history=loss.mask_history,
        precision=loss.precision,
        learn_temperature=loss.learn_temperature,
        ring=loss.ring,
        backend=loss.backend,
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


def build_loader(
    config: Config,
    dataset: Dataset,
    inputs: Inputs,
    ranks: Ranks,
    position: dict[str, Any] | None,
    on_opening: Callable[[int, int], None] = lambda done, total: None,
) -> Loader:
    """The training loader of this rank, from `position` on. No collective."""
    negatives = config.negatives
    sampled = negatives.uniform + negatives.popularity
    return Loader(
        dataset,
        splits=config.data.train_splits,
        query_keys=inputs.query_keys,
        candidate_keys=inputs.candidate_keys,
        local_batch_size=local_batch_size(config, ranks),
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.training.seed,
        streams=config.data.streams or None,
        shuffle_window_rows=config.data.shuffle_window_rows,
        extra_candidates=-(-sampled // ranks.world_size),
        extra_distribution="popularity" if negatives.popularity else "uniform",
        feedback="all" if config.loss.uses_dislikes else "positive",
        history_length=config.data.history_length,
        position=position,
        neighbours=inputs.neighbours,
        skip_corrupt=config.data.skip_corrupt,
        pin_memory=ranks.device.type == "cuda",
        on_opening=on_opening,
    )
