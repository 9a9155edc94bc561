"""One int64 key per scored item: comparing keys compares (score, then lower item row first).

    bit 63 ........ 32 | 31 ......... 0
    score, in an order | ~item row (the lower row has the larger key)
    preserving integer |

So `torch.topk` over keys is deterministic whatever the chunks, the blocks or the world size, and
one tensor carries a ranking between ranks. Item rows go up to 2**32 - 2.

Tensor shapes: Q queries, K ranks of the list.
"""

import torch
from torch import Tensor

EMPTY = torch.iinfo(torch.int64).min
"""Key of a slot that holds no item: below every real key."""

MAX_ITEM_ROW = 2**32 - 2


def encode_keys(score: Tensor, item: Tensor) -> Tensor:
    """Keys int64 of scores (rounded to float32, none NaN) and int64 item rows of the same shape."""
    bits = (score.float() + 0.0).view(torch.int32)  # + 0.0: -0.0 ties with 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (MAX_ITEM_ROW + 1 - item)


def decode_keys(key: Tensor) -> tuple[Tensor, Tensor]:
    """(scores float32, item rows int64) of keys; an empty slot gives (-inf, -1)."""
    ordered = (key >> 32).int()
    score = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    item = MAX_ITEM_ROW + 1 - (key & 0xFFFFFFFF)
    empty = key == EMPTY
    return score.masked_fill(empty, -torch.inf), item.masked_fill(empty, -1)


def scores_of(key: Tensor) -> Tensor:
    """Scores float32 of keys alone (-inf for empty slots)."""
    return decode_keys(key)[0]


def merge_keys(key_QK: Tensor, other_QK: Tensor, k: int) -> Tensor:
    """The k best keys of two rankings of the same queries, best first."""
    return torch.cat([key_QK, other_QK], dim=1).topk(k, dim=1).values
