"""Explicit (row, column) pairs: disliked items that one user alone sees, several positives of one
user.

A few pairs a row are scored one by one, in plain autograd, instead of as dense columns of every
row.

Shapes: B rows, R rows of a stripe, C columns, P pairs of a stripe.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from losses.kernels.hits import MaskRule, RowValues, SortedColumns

_PAIRS_AT_ONCE = 1 << 18  # of 64 floats: 64 MiB for the queries of a stripe's pairs, and columns'

PairReduction = Callable[[slice, Tensor, Tensor], tuple[Tensor, ...]]
"""(rows R, row_P from the first of them, column_P) -> tensors [R]."""


def reduce_pairs(key_C: Tensor, value_B: Tensor, reduce: PairReduction) -> tuple[Tensor, ...]:
    """[B] each: `reduce` over all pairs with key_C[column] == value_B[row], values below 0 aside.

    Stripe of rows by stripe, _PAIRS_AT_ONCE pairs or a row at a time: a user with R rows and as
    many columns makes R^2 pairs, of which a stripe's are kept, and walked once more in backward.
    Device-to-host syncs on CUDA.
    """
    columns = SortedColumns(MaskRule(key_C, RowValues.one_a_row(value_B)), max(1, key_C.shape[0]))
    stripes = _stripes(columns, value_B)
    if len(stripes) == 1:
        return _reduce_stripe(reduce, columns, stripes[0])
    parts = [
        checkpoint(
            _reduce_stripe, reduce, columns, rows, use_reentrant=False, preserve_rng_state=False
        )
        for rows in stripes
    ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _stripes(columns: SortedColumns, value_B: Tensor) -> list[slice]:
    if len(columns.key_NW) == 0:
        return [slice(0, value_B.shape[0])]
    _, count_1B = columns.ranges(columns.rule.values.value_L)
    ends = count_1B[0].cumsum(0)
    stripe_B = torch.div(ends - 1, _PAIRS_AT_ONCE, rounding_mode="floor").clamp(min=0)
    _, sizes = torch.unique_consecutive(stripe_B, return_counts=True)
    stops = [0, *sizes.cumsum(0).tolist()]  # sync
    return [slice(first, last) for first, last in pairwise(stops)]


def _reduce_stripe(
    reduce: PairReduction, columns: SortedColumns, rows: slice
) -> tuple[Tensor, ...]:
    found = columns.find(rows)
    width = columns.block_columns
    place_P = found.places(0) if found.total_N else columns.rule.key_C.new_zeros(0)
    row_P = torch.div(place_P, width, rounding_mode="floor")
    return reduce(rows, row_P, place_P - row_P * width)


def log_sum_exp_by_row(score_P: Tensor, row_P: Tensor, num_rows: int) -> Tensor:
    """[B] log-sum-exp of the pairs of every row; -inf where a row has none."""
    top_B = score_P.new_full((num_rows,), -math.inf).scatter_reduce(
        0, row_P, score_P.detach(), "amax"
    )
    sum_B = score_P.new_zeros(num_rows).index_add(0, row_P, torch.exp(score_P - top_B[row_P]))
    has_pairs_B = sum_B > 0
    log_sum_B = torch.log(torch.where(has_pairs_B, sum_B, 1.0)) + torch.where(
        has_pairs_B, top_B, 0.0
    )
    return torch.where(has_pairs_B, log_sum_B, -math.inf)


def sum_by_row(value_P: Tensor, row_P: Tensor, num_rows: int) -> Tensor:
    """[B] plain sum of the pairs of every row."""
    return value_P.new_zeros(num_rows).index_add(0, row_P, value_P)


def log_add_exp(first: Tensor, second: Tensor) -> Tensor:
    """torch.logaddexp whose gradient is 0, not NaN, where both are -inf."""
    top = torch.maximum(first, second).detach()
    top = torch.where(top == -math.inf, 0.0, top)
    total = torch.exp(first - top) + torch.exp(second - top)
    empty = total == 0
    return torch.where(empty, -math.inf, torch.log(torch.where(empty, 1.0, total)) + top)
