"""State of model, data and machine, read together with the loss every `log_every_steps` steps.

Each is a sample of the last step, so that between readings nothing is computed: norms of
gradients, of table rows (a few thousand of each), rows that the last batch touched, memory.

Names are "metric/label", as "learning_rate/towers": tandem_learning_rate{group="towers"}.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter

from embeddings.sharding import sharded_weights
from trainer.loader.batch import Batch
from trainer.model.inputs import Inputs
from trainer.observe.nvml import GpuUtilization

ROWS_SAMPLED = 4096
MARKS = 1 << 24
HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio
HASH_SHIFT = np.uint64(64 - 24)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
Bags = dict[str, tuple[np.ndarray, np.ndarray]]
"""Of a batch, by key: values, and lengths [S]."""


class Vitals:
    """Reads what the loss's statistics do not say. No collective; local to this rank.

    Args:
        step: steps trained before.
        every_steps: a reading follows each step that is a multiple of it.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        inputs: Inputs,
        optimizer: CombinedOptimizer,
        device: torch.device,
        step: int,
        every_steps: int,
    ) -> None:
        self._device = device
        self._optimizer = optimizer
        self._dense = [p for _, p in in_backward_optimizer_filter(model.named_parameters())]
        self._shards = {
            name.split(".")[-2]: [piece.tensor for piece in weights.local_shards()]
            for name, weights in sharded_weights(model).items()
        }
        self._inputs = inputs
        self._gpu = GpuUtilization(device)
        self._step, self._every_steps = step, every_steps
        self._pooled_norm: Tensor | None = None
        model.module.head.register_forward_pre_hook(self._before_head)

    def read(self, batch: Batch, is_whole: bool = True) -> dict[str, float]:
        """All values. On a GPU one device-to-host sync for each few; `batch` is on the host.

        is_whole: the last step had as many rows as others, so that its gradients compare.
        """
        bags = bags_by_key(batch)
        return {
            **self._learning_rates(),
            **(self._gradient_norms() if is_whole else {}),
            **self._table_norms(),
            **self._look_ups(bags),
            **self._unknown(batch, bags),
            **self._memory(),
        }

    def _learning_rates(self) -> dict[str, float]:
        return {
            f"learning_rate/{name}": float(part.param_groups[0]["lr"])
            for name, part in self._optimizer.optimizers
        }

    def _gradient_norms(self) -> dict[str, float]:
        gradients = [p.grad for p in self._dense if p.grad is not None]
        norms = {}
        if gradients:
            norms["gradient_norm/towers"] = float(torch.nn.utils.get_total_norm(gradients))  # sync
        if self._pooled_norm is not None:
            norms["gradient_norm/pooled"] = float(self._pooled_norm)  # sync
            self._pooled_norm = None  # said once
        return norms

    def _table_norms(self) -> dict[str, float]:
        """Sum of the sampled rows' norms and their number, so that ranks can be averaged."""
        values = {}
        for table, shards in self._shards.items():
            norms = [_sample(shard).float().norm(dim=1) for shard in shards if shard.numel()]
            values[f"norm_sum/{table}"] = float(sum(norm.sum() for norm in norms))  # sync
            values[f"norm_rows/{table}"] = float(sum(len(norm) for norm in norms))
        return values

    def _look_ups(self, bags: Bags) -> dict[str, float]:
        values = {}
        for table in self._inputs.tables:
            ids = np.concatenate([bags[key][0] for key in table.features])
            touched = count_different(ids, table.num_rows)
            values[f"table_rows_touched/{table.name}"] = float(touched)
            values[f"unique_id_share/{table.name}"] = touched / max(len(ids), 1)
        return values

    def _unknown(self, batch: Batch, bags: Bags) -> dict[str, float]:
        """Share of the bags of real rows that are empty, or hold an unknown value alone."""
        real_B = batch.user_B.numpy() >= 0
        shares = {}
        for key in self._inputs.keys:
            if key == "history" and batch.sequences is not None:
                seen_B = ~torch.isin(batch.sequences.query_B, batch.sequences.start_M).numpy()
                known = int((seen_B & real_B).sum())
                shares[f"unknown_value_share/{key}"] = 1.0 - known / max(batch.local_rows, 1)
                continue
            values, lengths_S = bags[key]
            lengths_B = lengths_S[: len(real_B)]
            known_B = (lengths_B > 0) & real_B
            first_n = (lengths_B.cumsum() - lengths_B)[known_B]
            known = int((values[first_n] != self._inputs.unknown_row(key)).sum())
            shares[f"unknown_value_share/{key}"] = 1.0 - known / max(batch.local_rows, 1)
        return shares

    def _memory(self) -> dict[str, float]:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
        allocated = reserved = total = 0
        if self._device.type == "cuda":
            allocated = torch.cuda.memory_allocated(self._device)
            reserved = torch.cuda.memory_reserved(self._device)
            total = torch.cuda.get_device_properties(self._device).total_memory
        return {
            "host_memory_bytes": float(resident),
            "device_memory_bytes/allocated": float(allocated),
            "device_memory_bytes/reserved": float(reserved),
            "device_memory_bytes/total": float(total),
            "gpu_utilization": self._gpu.read(),
        }

    def _before_head(self, head: torch.nn.Module, arguments: tuple) -> None:
        """In the step before a reading, have the pooled embeddings' gradient measured."""
        if not head.training:
            return
        self._step += 1
        if self._step % self._every_steps == 0:
            values = arguments[0].values()
            if values.requires_grad:
                values.register_hook(self._keep_pooled_norm)

    def _keep_pooled_norm(self, gradient: Tensor) -> None:
        self._pooled_norm = gradient.detach().float().norm()


def bags_by_key(batch: Batch) -> Bags:
    """Values and lengths [S] of each key of a batch on the host, as views: a tenth of the time
    that its jagged tensors take."""
    features = batch.features
    keys, ends = features.keys(), features.offset_per_key()
    values, lengths = features.values().numpy(), features.lengths().numpy()
    return {
        key: (values[ends[n] : ends[n + 1]], lengths_S)
        for n, (key, lengths_S) in enumerate(zip(keys, lengths.reshape(len(keys), -1), strict=True))
    }


def count_different(ids: np.ndarray, num_rows: int) -> int:
    """Different values in `ids`, all below `num_rows`, without sorting: a mark a row.

    Tables of more than MARKS rows share marks by hash, and the number is estimated from the marks
    left free (linear counting): within 0.1 % for a million ids.
    """
    if num_rows <= MARKS:
        marked = np.zeros(num_rows, dtype=bool)
        marked[ids] = True
        return int(np.count_nonzero(marked))
    marked = np.zeros(MARKS, dtype=bool)
    marked[(ids.astype(np.uint64) * HASH_MULTIPLIER) >> HASH_SHIFT] = True
    return round(-MARKS * np.log1p(-np.count_nonzero(marked) / MARKS))


def with_table_norms(values: dict[str, float]) -> dict[str, float]:
    """Put each table's mean row norm in place of its sum and number of rows."""
    rest = {k: v for k, v in values.items() if not k.startswith(("norm_sum/", "norm_rows/"))}
    for key, rows in values.items():
        kind, _, table = key.partition("/")
        if kind == "norm_rows" and rows > 0:
            rest[f"embedding_norm/{table}"] = values[f"norm_sum/{table}"] / rows
    return rest


def _sample(shard_ND: Tensor) -> Tensor:
    """At most ROWS_SAMPLED rows, evenly spread: a view."""
    return shard_ND.detach()[:: -(-len(shard_ND) // ROWS_SAMPLED)]
