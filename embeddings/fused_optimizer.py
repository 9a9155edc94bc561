"""Fused table optimizers: FBGEMM updates the touched rows inside the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.optim import Adagrad, Adam, RowWiseAdagrad
from torchrec.optim.optimizers import SGD

from embeddings.choices import TableOptimizer


def fuse_table_optimizer(
    tables: nn.Module,
    name: TableOptimizer,
    learning_rate: float,
    weight_decay: float,
    device_type: str,
    eps: float = 1e-8,
) -> None:
    """Attach a fused optimizer to every parameter of `tables`. Call it before sharding.

    Args:
        tables: the unsharded EmbeddingBagCollection (on meta).
        learning_rate: may be changed later, each step, through the sharded model's
            `fused_optimizer.param_groups`.
        weight_decay: of the rows that a step touches, never of the whole table: L2 with
            rowwise_adagrad (if the sharder is given `sharder_arguments`), decoupled with adam.
        device_type: "cpu" or "cuda"; FBGEMM has Adam on CUDA alone.

    Raises:
        ValueError: of `check_table_optimizer`.
    """
    check_table_optimizer(name, weight_decay, device_type)
    optimizer_class: type[torch.optim.Optimizer]
    arguments: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    match name:
        case "rowwise_adagrad":
            optimizer_class, arguments = RowWiseAdagrad, {**arguments, "eps": eps}
        case "adagrad":
            optimizer_class, arguments = Adagrad, {**arguments, "eps": eps}
        case "adam":
            optimizer_class, arguments = Adam, {**arguments, "eps": eps}
        case "sgd":
            optimizer_class = SGD
    _apply_optimizer_in_backward(optimizer_class, tables.parameters(), arguments)


def check_table_optimizer(name: TableOptimizer, weight_decay: float, device_type: str) -> None:
    """What FBGEMM cannot do on this device, or would leave out without a word.

    Raises:
        ValueError: for Adam, or weight decay, on a CPU; for weight decay with sgd or adagrad.
    """
    if weight_decay and name in ("sgd", "adagrad"):
        raise ValueError(
            f"optimizer.table_weight_decay={weight_decay}: FBGEMM's {name} leaves weight decay out "
            "without a word; use loss.embedding_penalty, or optimizer.tables 'rowwise_adagrad'"
        )
    if weight_decay and device_type == "cpu":
        raise ValueError(
            f"optimizer.table_weight_decay={weight_decay}: FBGEMM's CPU kernels leave weight decay "
            "out without a word; on CPUs use loss.embedding_penalty"
        )
    if name == "adam" and device_type == "cpu":
        raise ValueError(
            "optimizer.tables='adam' runs on GPUs only (FBGEMM has no CPU kernel for it); "
            "use 'rowwise_adagrad', 'adagrad' or 'sgd'"
        )


def sharder_arguments(name: TableOptimizer, weight_decay: float) -> dict[str, Any]:
    """What the tables' sharder must hand to FBGEMM beside the fused optimizer's own arguments.

    RowWiseAdagrad's weight decay acts in a mode that TorchRec never sets.
    """
    if name == "rowwise_adagrad" and weight_decay:
        return {"weight_decay_mode": WeightDecayMode.L2}
    return {}
