"""Scores in closed form over the training pairs; what a trained model has to beat.

Shapes: U users, I items, Q queries, N = A'A's side, I.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.jagged import Jagged
from trainer.data.met_pairs import MetPairs, PairRule
from trainer.data.schema import Dataset

MOST_SQUARE = 15_000
"""Items up to which a matrix of items by items is inverted: 0.9 GB and a minute."""
PENALTIES = (50.0, 250.0, 1000.0)
FACTORS = 64


@dataclass(frozen=True)
class Pairs:
    """Who took what in train."""

    user_items: Tensor
    """R, sparse CSR [U, I] of ones; a pair that comes again has several."""
    item_users: Tensor
    """Its transpose."""

    @property
    def degree_U(self) -> Tensor:
        return self.user_items.crow_indices().diff().float()

    @property
    def degree_I(self) -> Tensor:
        return self.item_users.crow_indices().diff().float()

    def rows(self, user_Q: Tensor) -> Tensor:
        """What users took, dense [Q, I]."""
        offsets, columns = self.user_items.crow_indices(), self.user_items.col_indices()
        lengths = offsets.diff()[user_Q]
        row = torch.repeat_interleave(torch.arange(len(user_Q)), lengths)
        place = torch.arange(len(row)) - torch.repeat_interleave(
            lengths.cumsum(0) - lengths, lengths
        )
        taken = columns[offsets[user_Q][row] + place]
        dense_QI = torch.zeros(len(user_Q), self.user_items.shape[1])
        dense_QI.index_put_((row, taken), torch.ones(len(row)), accumulate=True)
        return dense_QI


Scorer = Callable[[Tensor], Tensor]
"""Scores [Q, I] of users by their rows int64 [Q]."""


def read_pairs(dataset: Dataset) -> Pairs:
    """The liked pairs of train."""
    pairs = MetPairs(dataset, PairRule())
    shape = (dataset.num_users, dataset.num_items)
    of_users, of_items = pairs.of("user", 0, shape[0]), pairs.of("item", 0, shape[1])
    return Pairs(_ones(of_users, shape), _ones(of_items, shape[::-1]))


def _ones(lists: Jagged, shape: tuple[int, ...]) -> Tensor:
    offsets, columns_P = (torch.from_numpy(np.asarray(each, dtype=np.int64))
                          for each in (lists.offsets, lists.values))  # fmt: skip
    values = torch.ones(len(columns_P))
    return torch.sparse_csr_tensor(offsets, columns_P, values, size=shape, check_invariants=False)


def item_neighbours(pairs: Pairs) -> Scorer:
    """Items taken by the same users, summed over what the user took.

    A user who took d items counts d ** -.5, an item of theirs taken by n counts n ** -.5, the one
    looked for n ** -.25: of the exponents tried the best on average over three data sets.
    """
    user_U = pairs.degree_U.clamp(min=1).rsqrt().unsqueeze(1)
    root_I = pairs.degree_I.clamp(min=1).rsqrt()

    def scores(user_Q: Tensor) -> Tensor:
        met_UQ = (pairs.user_items @ (pairs.rows(user_Q) * root_I).T) * user_U
        return (pairs.item_users @ met_UQ).T * root_I.sqrt()

    return scores


def turbo_cf(pairs: Pairs) -> Scorer:
    """Turbo-CF's second-order filter, 2 P - P P, of the normalised item graph P.

    Park, Shin, Shin, Turbo-CF: Matrix Decomposition-Free Graph Filtering for Fast Recommendation
    (SIGIR 2024), with alpha = .5 and without its power of P's entries.
    """
    root_U, root_I = (degree.clamp(min=1).rsqrt() for degree in (pairs.degree_U, pairs.degree_I))

    def filtered(row_QI: Tensor) -> Tensor:
        met_UQ = (pairs.user_items @ (row_QI * root_I).T) * (root_U**2).unsqueeze(1)
        return (pairs.item_users @ met_UQ).T * root_I

    def scores(user_Q: Tensor) -> Tensor:
        once_QI = filtered(pairs.rows(user_Q))
        return 2 * once_QI - filtered(once_QI)

    return scores


def ease(pairs: Pairs, penalty: float) -> Scorer:
    """EASE: item weights of the ridge that predicts an item from all others (Steck 2019)."""
    weight_II = (pairs.item_users @ pairs.user_items).to_dense()
    weight_II.diagonal().add_(penalty)
    weight_II = torch.cholesky_inverse(torch.linalg.cholesky(weight_II))
    weight_II.div_(-weight_II.diagonal().clone())
    weight_II.fill_diagonal_(0.0)
    return lambda user_Q: pairs.rows(user_Q) @ weight_II


def als(pairs: Pairs) -> Scorer | None:
    """implicit's alternating least squares, 64 wide; None where it is not installed."""
    try:
        import implicit.als  # type: ignore[import-not-found]
        import scipy.sparse  # type: ignore[import-untyped]
    except ImportError:
        return None
    matrix = pairs.user_items
    parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    sparse = scipy.sparse.csr_matrix(tuple(each.numpy() for each in parts), shape=matrix.shape)
    model = implicit.als.AlternatingLeastSquares(factors=FACTORS, random_state=1)
    model.fit(sparse, show_progress=False)
    user_UD, item_ID = map(torch.as_tensor, (model.user_factors, model.item_factors))
    return lambda user_Q: user_UD[user_Q] @ item_ID.T
