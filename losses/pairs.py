"""Explicit (row, column) pairs: disliked items that one user alone sees, several positives of one
user.

A few pairs a row are scored one by one, in plain autograd, instead of as dense columns of every
row.

Shapes: B rows, C columns, P pairs.
"""

import math

import torch
from torch import Tensor

from losses.hits import MaskRule, RowValues, SortedColumns


def matching_pairs(key_C: Tensor, value_B: Tensor) -> tuple[Tensor, Tensor]:
    """(row_P, column_P) of all pairs with key_C[column] == value_B[row], values below 0 aside."""
    width = max(1, key_C.shape[0])
    found = SortedColumns(MaskRule(key_C, RowValues.one_a_row(value_B)), width).find(
        slice(0, value_B.shape[0])
    )
    place_P = found.places(0) if found.total_N else key_C.new_zeros(0)
    row_P = torch.div(place_P, width, rounding_mode="floor")
    return row_P, place_P - row_P * width


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
