"""log Q of candidates: from counts, of mixtures of sources, and estimated from the stream.

Every function returns log Q *per draw*: the chance that one drawn column is this item. A batch
draws many columns; that constant cancels in the softmax where every column is corrected alike. No
clipping: all of it stays in log space, so catalogs of any size keep their exact log.
"""

import math

import torch
from torch import Tensor, nn


def log_q_from_counts(count_X: Tensor, total: int | float | Tensor) -> Tensor:
    """log(count / total) in float32, per draw: the chance of an item among `total` interactions.

    An item without a count (padding, or never seen in train) cannot be drawn from the interactions;
    it gets the log of one count so that the value stays finite.
    """
    log_count_X = count_X.clamp(min=1).to(torch.float64).log()
    log_total = torch.log(torch.as_tensor(total, dtype=torch.float64, device=count_X.device))
    return (log_count_X - log_total).to(torch.float32)


def log_q_uniform(num_items: int) -> float:
    """log(1 / num_items), per draw, of uniform sampling over the catalog."""
    if num_items < 1:
        raise ValueError(f"num_items is {num_items}; a catalog has at least 1 item")
    return -math.log(num_items)


def log_q_mixture(log_q_SX: Tensor, draws_S: Tensor) -> Tensor:
    """log Q per draw of S sources mixed into one set of columns.

    Source s gives `draws_S[s]` columns and would draw item x with chance `exp(log_q_SX[s, x])`:
    `Q(x) = sum_s draws_s Q_s(x) / sum_s draws_s` (Yang et al. 2020 for in-batch plus uniform). A
    source that cannot draw x at all has log_q -inf there.
    """
    share_S = draws_S.to(torch.float64)
    share_S = share_S / share_S.sum()
    log_q_X = torch.logsumexp(log_q_SX.to(torch.float64) + share_S.log()[:, None], dim=0)
    return log_q_X.to(torch.float32)


class StreamingFrequency(nn.Module):
    """Streaming estimate of an item's frequency (Yi et al. 2019), several hash rows, kept in
    buffers.

    For each of H hash rows, `last_step[h]` is the step an item of that bucket was last seen and
    `gap[h]` the moving average of the steps between. An item's gap is the *maximum* over the hash
    rows, for a collision can only shorten gaps. `update` takes the gathered ids of the global
    batch, so every rank keeps an equal copy with no communication of its own; the buffers go into
    the checkpoint.
    """

    def __init__(
        self, num_buckets: int, num_hashes: int = 3, rate: float = 0.05, seed: int = 0
    ) -> None:
        super().__init__()
        if num_buckets < 1 or num_hashes < 1:
            raise ValueError(
                f"num_buckets is {num_buckets}, num_hashes {num_hashes}; both must be at least 1"
            )
        if not 0.0 < rate <= 1.0:
            raise ValueError(f"rate is {rate}; the moving average needs 0 < rate <= 1")
        self.num_buckets = num_buckets
        self.rate = rate
        generator = torch.Generator().manual_seed(seed)
        odd_H = torch.randint(1, 2**62, (num_hashes,), generator=generator) * 2 + 1
        self.register_buffer("multiplier_H", odd_H)
        self.register_buffer(
            "last_step_HN", torch.zeros(num_hashes, num_buckets, dtype=torch.int64)
        )
        self.register_buffer("gap_HN", torch.zeros(num_hashes, num_buckets))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.multiplier_H: Tensor
        self.last_step_HN: Tensor
        self.gap_HN: Tensor
        self.step: Tensor

    def _buckets(self, id_X: Tensor) -> Tensor:
        """[H, X] bucket of every id: multiply-shift in wrapping int64, mixed upper bits."""
        mixed_HX = id_X[None, :] * self.multiplier_H[:, None]
        mixed_HX = mixed_HX ^ ((mixed_HX >> 32) & 0xFFFFFFFF)
        mixed_HX = mixed_HX * -7046029254386353131  # 2**64 / golden ratio, as a signed odd int64
        return ((mixed_HX >> 24) & 0xFFFFFFFFFF) % self.num_buckets

    @torch.no_grad()
    def update(self, id_X: Tensor) -> None:
        """Sees one global batch of ids (int64, -1 padding), equal on all ranks. No collective."""
        self.step += 1
        unique_X = torch.unique(id_X)
        unique_X = unique_X[unique_X >= 0]
        bucket_HX = self._buckets(unique_X)
        last_HX = self.last_step_HN.gather(1, bucket_HX)
        gap_HX = self.gap_HN.gather(1, bucket_HX)
        # A bucket's first sighting starts its average at the full gap: nothing is known before.
        first_HX = last_HX == 0
        since_HX = (self.step - last_HX).to(torch.float32)
        moved_HX = torch.where(first_HX, since_HX, gap_HX + self.rate * (since_HX - gap_HX))
        # Two ids of one batch in one bucket write the same value, whichever comes last.
        self.gap_HN.scatter_(1, bucket_HX, moved_HX)
        self.last_step_HN.scatter_(1, bucket_HX, self.step.expand_as(last_HX))

    @torch.no_grad()
    def log_q(self, id_X: Tensor, draws_per_step: int) -> Tensor:
        """log Q per draw, float32: `log(1 / gap)` is the chance per step, divided by the draws of a
        step.

        An id never seen has the gap of the whole run so far: it comes at most once in all steps.
        """
        gap_HX = self.gap_HN.gather(1, self._buckets(id_X))
        gap_X = gap_HX.amax(dim=0)
        unseen_X = (gap_HX == 0).any(dim=0)
        gap_X = torch.where(
            unseen_X, self.step.to(gap_X.dtype).clamp(min=1.0), gap_X.clamp(min=1.0)
        )
        return -torch.log(gap_X) - math.log(draws_per_step)
