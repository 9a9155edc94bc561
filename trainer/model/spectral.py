"""Spectral start: user and item tables begin at the leading singular vectors of the training graph.

The matrix is LightGCN's normalised adjacency, A_ui = 1 / sqrt(d_u * d_i) for each positive pair.
Its `dim` leading singular vectors (randomised subspace iteration, seconds on Gowalla) place users
and items well before the first step, so training spends its epochs on what the loss adds.

A disliked pair was met all the same, which tells of the user: it counts `MET` of a liked one, in
the matrix and in the degrees d. Items' lengths, which cosines do not see, are those of the
smoothed graph under an inner product: scores then are GF-CF's, and popular items the longer ones.

Shapes: U users, u users of this rank, I items, D columns of a table, K = D + OVERSAMPLE vectors,
P pairs of this rank's users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from embeddings.sharding import sharded_weights
from trainer.data.features import read_table_rows
from trainer.data.met_pairs import MetPairs, PairRule, Side
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks

OVERSAMPLE = 16
ITERATIONS = 4
MET = 0.5
"""What a disliked pair weighs beside a liked one."""


@torch.no_grad()
def start_at_spectrum(
    model: nn.Module,
    dataset: Dataset,
    splits: tuple[str, ...],
    dim: int,
    norm: float,
    seed: int,
    ranks: Ranks,
    equal: bool,
) -> None:
    """Add to each row of the tables "user" and "item" its spectral vector, scaled to `norm`.

    equal: items all have that length, as for cosines; else it is what liked pairs have on average.

    Collective, over host tensors: the group must have gloo for them, beside NCCL on GPUs. Users
    without a training pair and items without a liked one keep what they have. For the moment of it
    every rank holds U + 3 I vectors of `dim` + OVERSAMPLE float32 on the host, and its pairs twice:
    where that is more than its memory, start from noise alone.
    """
    graph = training_graph(dataset, splits, ranks)
    user_uD, item_ID = singular_vectors(graph, dim, seed)
    user_UD = _gather_users(F.normalize(user_uD, dim=1), dataset.num_users, ranks)  # collective
    item_ID = F.normalize(item_ID, dim=1) if equal else item_ID * _lengthening(graph, item_ID)
    starts = {
        "user": _of_table(user_UD, dataset, "user"),
        "item": _of_table(item_ID, dataset, "item"),
    }
    for name, weight in sharded_weights(model).items():
        table = name.split(".")[-2]
        if table not in starts:
            continue
        for piece in weight.local_shards():
            first = int(piece.metadata.shard_offsets[0])
            rows_ND = starts[table][first : first + piece.tensor.shape[0]]
            # A table may end in rows of no user or item: they keep their noise.
            piece.tensor[: len(rows_ND)] += norm * rows_ND.to(piece.tensor)


def _of_table(vector_ND: Tensor, dataset: Dataset, side: Side) -> Tensor:
    """Vectors of users or items as those of their table's rows; a shared row has their mean."""
    if side not in dataset.table_rows:
        return vector_ND
    row_N = torch.from_numpy(read_table_rows(dataset, side).astype(np.int64))
    rows = dataset.rows_of_table(side)
    total_RD = vector_ND.new_zeros(rows, vector_ND.shape[1]).index_add_(0, row_N, vector_ND)
    count_R = torch.bincount(row_N, minlength=rows).clamp(min=1)
    return total_RD / count_R.unsqueeze(1)


@dataclass(frozen=True)
class Graph:
    """This rank's rows of the matrix, and what belongs to it."""

    forth: Tensor
    """A, sparse [u, I]."""
    back: Tensor
    """Its transpose, sparse [I, u]."""
    likes_I: Tensor
    """Liked pairs of each item, of all ranks."""
    degree_I: Tensor
    """d of each item, of all ranks."""


def rules(dataset: Dataset, splits: tuple[str, ...]) -> list[PairRule]:
    """The pairs that a spectral start reads: liked ones and, where others are known, all."""
    disliked = any(dataset.splits[split].disliked for split in splits)
    liked = PairRule(splits)
    return [liked, replace(liked, with_disliked=True)] if disliked else [liked]


def _lengthening(graph: Graph, item_ID: Tensor) -> Tensor:
    """Factors [I, 1] that make GF-CF's scores of inner products: likes / root of d, normed."""
    factor_I = graph.likes_I / graph.degree_I.clamp(min=1e-12).sqrt()
    length_I = item_ID.norm(dim=1) * factor_I
    mean = (graph.likes_I @ length_I) / graph.likes_I.sum().clamp(min=1)
    return (factor_I / mean.clamp(min=1e-12)).unsqueeze(1)


def singular_vectors(graph: Graph, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """(this rank's users [u, D], all items [I, D]), each vector times the root of its value.

    Collective: `ITERATIONS` + 2 all-reduces of at most I x K numbers on the host. Signs and order
    do not depend on the number of ranks.
    """
    forth, back = graph.forth, graph.back
    num_items = forth.shape[1]
    generator = torch.Generator().manual_seed(seed)
    vectors = min(dim + OVERSAMPLE, num_items)
    basis_IK = torch.randn(num_items, vectors, generator=generator)
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
    item_ID = basis_IK @ (rotation_KD * root_D).float() * (graph.likes_I > 0).unsqueeze(1)
    user_uD = user_uK @ (rotation_KD / root_D).float()
    padding = (0, dim - item_ID.shape[1])
    return F.pad(user_uD, padding), F.pad(item_ID, padding)


def training_graph(dataset: Dataset, splits: tuple[str, ...], ranks: Ranks) -> Graph:
    """The matrix over this rank's users. No collective: degrees are read with the pairs."""
    first, stop = _user_range(dataset.num_users, ranks)
    pairs = [MetPairs(dataset, rule) for rule in rules(dataset, splits)]
    user_P, item_P = _of_users(pairs[-1], first, stop)
    weight_P = np.ones(len(user_P), dtype=np.float32)
    if len(pairs) > 1:
        liked_user_P, liked_item_P = _of_users(pairs[0], first, stop)
        key_P = user_P * dataset.num_items + item_P
        liked_P = np.isin(key_P, liked_user_P * dataset.num_items + liked_item_P)
        weight_P = np.where(liked_P, 1, MET).astype(np.float32)
    degree_u = _degree(pairs, "user")[first:stop]
    degree_I = _degree(pairs, "item")
    weight_P /= np.sqrt(degree_u[user_P] * degree_I[item_P])
    order_P = np.lexsort((user_P, item_P))
    shape = (stop - first, dataset.num_items)
    return Graph(
        _sparse(np.bincount(user_P, minlength=shape[0]), item_P, weight_P, shape),
        _sparse(
            np.bincount(item_P, minlength=shape[1]), user_P[order_P], weight_P[order_P], shape[::-1]
        ),
        torch.from_numpy(pairs[0].degree("item")).float(),
        torch.from_numpy(degree_I).float(),
    )


def _degree(pairs: Sequence[MetPairs], side: Side) -> np.ndarray:
    """Of liked pairs 1 and of disliked MET. pairs: liked ones and, where there are others, all."""
    return (1 - MET) * pairs[0].degree(side) + MET * pairs[-1].degree(side)


def _of_users(pairs: MetPairs, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """(users from 0, items) of the pairs of users `first` to `stop`, by user."""
    lists = pairs.of("user", first, stop)
    return np.repeat(np.arange(stop - first), np.diff(lists.offsets)), lists.values.astype(np.int64)


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
