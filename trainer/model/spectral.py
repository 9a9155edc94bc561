"""Spectral start: user and item tables begin at the leading singular vectors of the training graph.

The matrix is LightGCN's normalised adjacency, A_ui = 1 / sqrt(d_u * d_i) for each positive pair.
Its `dim` leading singular vectors (randomised subspace iteration, seconds on Gowalla) place users
and items well before the first step, so training spends its epochs on what the loss adds.

Shapes: U users, u users of this rank, I items, D columns of a table, K = D + OVERSAMPLE vectors,
P pairs of this rank's users.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from embeddings.sharding import sharded_weights
from trainer.data.neighbours import NeighbourRule, Neighbours
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks

OVERSAMPLE = 16
ITERATIONS = 4


@torch.no_grad()
def start_at_spectrum(
    model: nn.Module,
    dataset: Dataset,
    splits: tuple[str, ...],
    dim: int,
    norm: float,
    seed: int,
    ranks: Ranks,
) -> None:
    """Add to each row of the tables "user" and "item" its spectral vector, scaled to `norm`.

    Collective, over host tensors: the group must have gloo for them, beside NCCL on GPUs. Rows
    without a training pair keep their noise. For the moment of it every rank holds U + 3 I vectors
    of `dim` + OVERSAMPLE float32 on the host, and its pairs twice: where that is more than its
    memory, start from noise alone.
    """
    user_uD, item_ID = singular_vectors(dataset, splits, dim, seed, ranks)
    user_UD = _gather_users(user_uD, dataset.num_users, ranks)  # collective
    starts = {"user": user_UD, "item": item_ID}
    for name, weight in sharded_weights(model).items():
        table = name.split(".")[-2]
        if table not in starts:
            continue
        for piece in weight.local_shards():
            first = int(piece.metadata.shard_offsets[0])
            rows_ND = starts[table][first : first + piece.tensor.shape[0]]
            # A table may end in rows of no user or item: they keep their noise.
            piece.tensor[: len(rows_ND)] += norm * F.normalize(rows_ND, dim=1).to(piece.tensor)


def singular_vectors(
    dataset: Dataset, splits: tuple[str, ...], dim: int, seed: int, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """(this rank's users [u, D], all items [I, D]), each vector times the root of its value.

    Collective: `ITERATIONS` + 2 all-reduces of at most I x K numbers on the host. Signs and order
    do not depend on the number of ranks.
    """
    forth, back, paired_I = _adjacency(dataset, splits, ranks)
    generator = torch.Generator().manual_seed(seed)
    vectors = min(dim + OVERSAMPLE, dataset.num_items)
    basis_IK = torch.randn(dataset.num_items, vectors, generator=generator)
    for _ in range(ITERATIONS):
        image_IK = back @ (forth @ basis_IK)
        dist.all_reduce(image_IK)  # collective: I x K
        basis_IK = torch.linalg.qr(image_IK).Q
    user_uK = forth @ basis_IK
    gram_KK = (user_uK.T @ user_uK).double()
    dist.all_reduce(gram_KK)  # collective: K x K
    squares_K, rotation_KK = torch.linalg.eigh(gram_KK)
    rotation_KD = rotation_KK.flip(1)[:, :dim]
    largest_D = rotation_KD.abs().argmax(0, keepdim=True)
    rotation_KD = rotation_KD * rotation_KD.gather(0, largest_D).sign()
    root_D = squares_K.flip(0)[:dim].clamp(min=1e-12) ** 0.25  # root of the singular value
    # Without a pair a row of the basis is zero but for rounding, which a length would magnify.
    item_ID = basis_IK @ (rotation_KD * root_D).float() * paired_I.unsqueeze(1)
    user_uD = user_uK @ (rotation_KD / root_D).float()
    padding = (0, dim - item_ID.shape[1])
    return F.pad(user_uD, padding), F.pad(item_ID, padding)


def _adjacency(
    dataset: Dataset, splits: tuple[str, ...], ranks: Ranks
) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's rows of A [u, I] and their transpose [I, u], sparse; items with a pair, [I]."""
    first, stop = _user_range(dataset.num_users, ranks)
    graph = Neighbours(dataset, NeighbourRule(splits))
    item_P, lengths_u, weight_P = graph.bags("user", np.arange(first, stop))
    user_P = np.repeat(np.arange(stop - first), lengths_u)
    order_P = np.lexsort((user_P, item_P))
    counts_I = np.bincount(item_P, minlength=dataset.num_items)
    shape = (stop - first, dataset.num_items)
    forth = _sparse(lengths_u, item_P, weight_P, shape)
    back = _sparse(counts_I, user_P[order_P], weight_P[order_P], shape[::-1])
    return forth, back, torch.from_numpy(graph.degree("item") > 0)


def _sparse(
    lengths: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, ...]
) -> Tensor:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return torch.sparse_csr_tensor(
        torch.from_numpy(offsets),
        torch.from_numpy(columns),
        torch.from_numpy(values),
        size=shape,
        check_invariants=False,
    )


def _user_range(num_users: int, ranks: Ranks) -> tuple[int, int]:
    each = -(-num_users // ranks.world_size)
    return min(ranks.rank * each, num_users), min((ranks.rank + 1) * each, num_users)


def _gather_users(user_uD: Tensor, num_users: int, ranks: Ranks) -> Tensor:
    """[u, D] of every rank -> [U, D] on every rank. Collective."""
    each = -(-num_users // ranks.world_size)
    padded_uD = F.pad(user_uD, (0, 0, 0, each - user_uD.shape[0])).contiguous()
    user_UD = padded_uD.new_empty(each * ranks.world_size, padded_uD.shape[1])
    dist.all_gather_into_tensor(user_UD, padded_uD)  # collective: U x D
    return user_UD[:num_users]
