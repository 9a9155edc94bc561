"""log Q of candidates: how often an item is among the columns that a step draws.

Columns are drawn by one of two laws: popularity (in-batch rows, popularity samples, and a queue of
either) or uniformly. How many of each a step has is counted, not assumed: last batches are short,
disliked rows are no columns, a queue fills up. Then, for every item and any mixture of sources,
the sum over a step's columns of 1 / (C * Q) is 1 on average.

Shapes: X items, C columns of a step.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from losses import StreamingFrequency, log_q_from_counts, log_q_mixture, log_q_uniform
from trainer.config.negatives_section import LogQ

MOST_BUCKETS = 1 << 24
"""At most so many buckets a hash row of the streaming estimator (12 bytes each)."""
POPULAR, UNIFORM = 0, 1
"""Places of the two laws in `draws`: float64 [2] on the device, columns of a step by law."""


class FrequencyCorrection(nn.Module):
    """log Q of candidates, for the mixture of sources that a step draws from.

    Q(j) = (n_p * count(j) / total + n_u / I) / (n_p + n_u) for n_p columns that follow popularity
    and n_u uniform ones (Yang et al. 2020), in log space and never clipped.

    Args:
        mode: "counts" uses the exact train counts; "streaming" estimates the popular part from the
            positives of the steps so far (Yi et al. 2019), alike on every rank; "none" is zeros.
        total_count: sum of the counts: training rows.
        popular, uniform: whether any source follows the law.
        per: "draw" gives the chance that one column is the item. "step" gives the expected number
            of the step's columns that are (C times as much): a log-sum-exp of negatives corrected
            by that estimates the whole catalog's, which a score that is not corrected needs.
    """

    def __init__(
        self,
        mode: LogQ,
        total_count: int,
        num_items: int,
        popular: bool,
        uniform: bool,
        per: Literal["draw", "step"] = "draw",
    ) -> None:
        super().__init__()
        assert popular or uniform
        self.mode = mode
        self.total_count = total_count
        self.popular, self.uniform = popular, uniform
        self.per = per
        self.log_q_uniform = log_q_uniform(num_items)
        self.estimator = (
            StreamingFrequency(buckets_for(num_items)) if mode == "streaming" and popular else None
        )

    def enter(self, total_count: int, num_items: int) -> None:
        """Draw from other rows from now on: so many, and so many items that uniform draws take."""
        self.total_count, self.log_q_uniform = total_count, log_q_uniform(num_items)

    @property
    def num_buckets(self) -> int | None:
        """Buckets of the streaming estimator: fixed at a run's first start, its buffers' shape."""
        return None if self.estimator is None else self.estimator.num_buckets

    def restore_buckets(self, num_buckets: int | None) -> None:
        """Take a checkpoint's number of buckets, made for the items of then; before loading it."""
        if self.estimator is not None and num_buckets not in (None, self.estimator.num_buckets):
            device = self.estimator.step.device
            self.estimator = StreamingFrequency(num_buckets).to(device)

    def forward(self, ids_X: Tensor, counts_X: Tensor, draws: Tensor) -> Tensor:
        """ids and train counts [X] -> log Q [X], float32. No collective."""
        if self.mode == "none":
            return torch.zeros(ids_X.shape, device=ids_X.device)
        log_q_X = self._per_draw(self._popular(ids_X, counts_X), draws)
        return log_q_X if self.per == "draw" else log_q_X + log_number(draws)

    def certain(self, draws: Tensor) -> Tensor:
        """log Q, 0-d, of a column that is there once by construction, not by drawing."""
        if self.mode == "none" or self.per == "step":
            return torch.zeros((), device=draws.device)
        return -log_number(draws)

    def surplus(self, counts_X: Tensor, draws: Tensor, live: Tensor) -> Tensor:
        """Expected columns of an item, all over the `live` ones among them [X]; by exact counts."""
        popular_X = self._exact(counts_X)
        all_X = self._per_draw(popular_X, draws) + log_number(draws)
        return torch.exp(all_X - self._per_draw(popular_X, live) - log_number(live))

    def statistics(self, log_q_X: Tensor, counts_X: Tensor, draws: Tensor) -> dict[str, Tensor]:
        """How far the estimate is from exact counts, in nats, where it is one. No collective."""
        if self.estimator is None:
            return {}
        exact_X = self._per_draw(self._exact(counts_X.clamp(min=1)), draws)
        if self.per == "step":
            exact_X = exact_X + log_number(draws)
        known_X = (counts_X > 0).float()
        error_X = (log_q_X - exact_X).abs()
        return {"estimator_error": (error_X * known_X).sum() / known_X.sum().clamp(min=1)}

    def _popular(self, ids_X: Tensor, counts_X: Tensor) -> Tensor:
        return self._exact(counts_X) if self.estimator is None else self.estimator.log_q(ids_X)

    def _exact(self, counts_X: Tensor) -> Tensor:
        popular_X = log_q_from_counts(counts_X, self.total_count)
        if self.uniform:
            return popular_X.masked_fill(counts_X == 0, -math.inf)  # can only be a uniform draw
        return popular_X

    def _per_draw(self, popular_X: Tensor, draws: Tensor) -> Tensor:
        uniform_X = torch.full_like(popular_X, self.log_q_uniform)
        if not self.popular:
            return uniform_X
        if not self.uniform:
            return popular_X
        return log_q_mixture(torch.stack([popular_X, uniform_X]), draws)


def log_number(draws: Tensor) -> Tensor:
    """log of the number of columns, float32, 0-d; 0 where there is none."""
    return draws.sum().clamp(min=1.0).log().float()


def buckets_for(num_items: int) -> int:
    """Four buckets an item, up to MOST_BUCKETS."""
    return min(4 * num_items, MOST_BUCKETS)
