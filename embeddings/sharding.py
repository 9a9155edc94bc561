"""Sharding: tables dealt to ranks row-wise, on CPUs as on GPUs, by TorchRec's planner.

Row-wise and table-wise are the shardings whose checkpoints load on any number of ranks (column-wise
fails on the optimizer's shape, data-parallel loses its state), so they alone are offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import (
    ModuleSharder,
    ShardingEnv,
    ShardingPlan,
    ShardingType,
)

from embeddings.choices import Placement, Sharding
from embeddings.tables import Table, fill_rows

STORAGE_RESERVED = 0.1
"""Share of each device kept free of tables: dense parameters, activations, buffers."""


class RowWiseEmbeddingBagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, with row-wise on CPU as well: the kernels have it, its list does not."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        offered = super().sharding_types(compute_device_type)
        return sorted({*offered, ShardingType.ROW_WISE.value})


@dataclass(frozen=True)
class Layout:
    """The machines that tables are dealt to."""

    world_size: int
    local_world_size: int
    device_type: str
    """"cpu" or "cuda"."""
    device_bytes: int | None = None
    """Memory of one GPU in bytes; None takes TorchRec's assumption."""
    host_bytes: int | None = None
    """Host memory for one rank in bytes; None takes TorchRec's assumption."""


def sharders(fused: dict[str, Any] | None = None) -> list[ModuleSharder[nn.Module]]:
    """`fused`: further arguments of FBGEMM's kernels (`optimizer.sharder_arguments`)."""
    return [cast(ModuleSharder[nn.Module], RowWiseEmbeddingBagSharder(fused_params=fused))]


def make_planner(
    tables: Sequence[Table],
    layout: Layout,
    local_batch_size: int,
    sharding: Sharding = "row_wise",
    placement: Placement = "device",
) -> EmbeddingShardingPlanner:
    """TorchRec's planner, held to one sharding type and kernel; no collective, no device needed.

    Raises:
        ValueError: for UVM caching where there is no GPU.
    """
    if placement == "uvm_caching" and layout.device_type == "cpu":
        raise ValueError(
            "model.placement='uvm_caching' keeps tables in host memory beside a GPU; on CPUs they "
            "are there already: use 'device'"
        )
    kernel = (
        EmbeddingComputeKernel.FUSED
        if placement == "device"
        else EmbeddingComputeKernel.FUSED_UVM_CACHING
    )
    topology = TopologyFactory.create_topology(
        trainer_config=TrainerConfig(
            world_size=layout.world_size, local_world_size=layout.local_world_size
        ),
        hardware_config=HardwareConfig(
            hbm_cap_bytes=layout.device_bytes if layout.device_type == "cuda" else None,
            ddr_cap_bytes=layout.host_bytes,
        ),
        kernel_config=KernelConfig(compute_device=layout.device_type),
    )
    constraints = {
        table.name: ParameterConstraints(sharding_types=[sharding], compute_kernels=[kernel.value])
        for table in tables
    }
    return EmbeddingShardingPlanner(
        topology=topology,
        batch_size=local_batch_size,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(STORAGE_RESERVED),
        debug=False,
    )


def shard(
    model: nn.Module,
    tables: Sequence[Table],
    layout: Layout,
    device: torch.device,
    local_batch_size: int,
    seed: int,
    sharding: Sharding = "row_wise",
    placement: Placement = "device",
    fused: dict[str, Any] | None = None,
    trained: Mapping[str, Tensor] | None = None,
) -> DistributedModelParallel:
    """Deal the model's tables to the ranks and put the rest under data parallelism.

    Collective: every rank of the default process group calls it with the same arguments. Rows are
    initialised from `seed` (see `initialise`), alike for every number of ranks; dense parameters
    are broadcast from rank 0.
    """
    planner = make_planner(tables, layout, local_batch_size, sharding, placement)
    process_group = dist.group.WORLD
    assert process_group is not None
    plan = planner.collective_plan(model, sharders(fused), process_group)  # collective: broadcast
    sharded = DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(process_group),
        device=device,
        plan=plan,
        sharders=sharders(fused),
    )
    initialise(sharded, tables, seed, trained)
    return sharded


@torch.no_grad()
def initialise(
    sharded: DistributedModelParallel,
    tables: Sequence[Table],
    seed: int,
    trained: Mapping[str, Tensor] | None = None,
    from_row: Mapping[str, int] | None = None,
) -> None:
    """Fill this rank's shards with each table's seeded noise. No collective.

    Args:
        trained: by table, the rows that training looks up, bool [known rows]; the others become
            zeros, as the row for unknown ids is: noise would speak for what nobody has seen.
            None: all are.
        from_row: first row to fill, by table: a table that has grown keeps the rows before it, but
            for those that were zeros and are trained now.
    """
    weights = {name.split(".")[-2]: w for name, w in sharded_weights(sharded).items()}
    for index, table in enumerate(tables):
        begin = 0 if from_row is None else from_row[table.name]
        for piece in weights[table.name].local_shards():
            first_row, rows = int(piece.metadata.shard_offsets[0]), piece.tensor.shape[0]
            old = min(max(begin - first_row, 0), rows)
            fill_rows(piece.tensor[old:], first_row + old, table, index, seed)
            if trained is None:
                continue
            trained_N = trained[table.name][first_row : first_row + rows].to(piece.tensor.device)
            known_ND = piece.tensor[: len(trained_N)]  # without the row for unknown ids
            known_ND[old:][~trained_N[old:]] = 0
            woken_N = trained_N[:old] & (known_ND[:old] == 0).all(dim=1)
            fill_rows(known_ND[:old], first_row, table, index, seed, woken_N)


def sharded_weights(sharded: nn.Module) -> dict[str, ShardedTensor]:
    """The model's sharded tables by name in the state dict."""
    return {k: v for k, v in sharded.state_dict().items() if isinstance(v, ShardedTensor)}


def describe(plan: ShardingPlan) -> dict[str, dict[str, object]]:
    """The plan as plain data: table -> sharding type, kernel, and the rows each rank holds."""
    described: dict[str, dict[str, object]] = {}
    for module_plan in plan.plan.values():
        for table, parameter in cast(dict, module_plan).items():
            described[table] = {
                "sharding_type": parameter.sharding_type,
                "compute_kernel": parameter.compute_kernel,
                "rows_by_rank": [
                    (piece.placement.rank(), piece.shard_sizes[0])
                    for piece in parameter.sharding_spec.shards
                ],
            }
    return described
