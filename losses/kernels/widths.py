"""The first columns alone (Matryoshka representations, Kusupati et al. 2022, arXiv:2205.13147).

A loss that is summed over several widths trains embeddings whose first columns are embeddings, so
that one model is served at whichever width pays. Cosines need a length of 1 at each width: what is
cut is normalised anew. Cutting a normalised vector or the one before comes to the same.

Shapes: B rows, C columns of the score matrix, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.rows import Candidates, Rows

Valued = tuple[Tensor, dict[str, Tensor]]
"""A loss and its statistics."""


def first_columns(embedding_ND: Tensor, width: int | None, normalise: bool) -> Tensor:
    """[N, width], of length 1 with `normalise`; None: all columns."""
    if width is not None and width < embedding_ND.shape[1]:
        embedding_ND = embedding_ND[:, :width]
    return F.normalize(embedding_ND, dim=1) if normalise else embedding_ND


def narrowed(
    rows: Rows, candidates: Candidates, width: int, normalise: bool
) -> tuple[Rows, Candidates]:
    """What a loss at that width is given. Embeddings as wide as that stay as they are.

    Padding may hold NaN, whose gradient a length would pass on: it is taken for zeros.

    Raises:
        ValueError: for embeddings that are narrower.
    """
    whole = rows.query_BD.shape[1]
    if width > whole:
        raise ValueError(f"width {width} of embeddings that have {whole} columns: leave it out")
    if width == whole:
        return rows, candidates
    padding_B1 = (rows.weight_B == 0)[:, None]
    padding_C1 = (candidates.id_C < 0)[:, None]

    def cut(embedding_ND: Tensor, padding_N1: Tensor) -> Tensor:
        return first_columns(embedding_ND[:, :width].masked_fill(padding_N1, 0.0), width, normalise)

    return (
        replace(
            rows,
            query_BD=cut(rows.query_BD, padding_B1),
            positive_BD=cut(rows.positive_BD, padding_B1),
        ),
        replace(candidates, embedding_CD=cut(candidates.embedding_CD, padding_C1)),
    )


def mean_over_widths(
    forward: Callable[[Rows, Candidates, bool], Valued],
    rows: Rows,
    candidates: Candidates,
    widths: Sequence[int],
    renormalise: bool,
    watched: bool,
) -> Valued:
    """The mean of a loss over the widths, and its statistics at the last. Memory: what the loss
    keeps for its backward, at each width."""
    values, statistics = list[Tensor](), dict[str, Tensor]()
    for width in widths:
        narrow = narrowed(rows, candidates, width, renormalise)
        value, statistics = forward(*narrow, watched and width == widths[-1])
        values.append(value)
    return torch.stack(values).mean(), statistics
