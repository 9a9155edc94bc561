"""log Q of candidates: from counts, of mixtures of sources, and estimated from the stream.

Every function returns log Q *per draw*: the chance that one drawn column is this item. A batch
draws many columns; that constant cancels in the softmax where every score is corrected, the
positive's too. No clipping: all of it stays in log space, so catalogs of any size keep their exact
log.
"""

import math

import torch
from torch import Tensor, nn


def log_q_from_counts(count_X: Tensor, total: int | float) -> Tensor:
    """log(count / total) in float32, per draw: the chance of an item among `total` interactions.

    An item without a count (padding, or never seen in train) cannot be drawn from the interactions;
    it gets the log of one count so that the value stays finite.
    """
    log_count_X = count_X.clamp(min=1).to(torch.float64).log()
    return (log_count_X - math.log(total)).to(torch.float32)


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
    share_S = share_S / share_S.sum().clamp(min=1.0)
    log_q_X = torch.logsumexp(log_q_SX.to(torch.float64) + share_S.log()[:, None], dim=0)
    return log_q_X.to(torch.float32)


class StreamingFrequency(nn.Module):
    """Streaming estimate of how often an item is drawn (after Yi et al. 2019), in buffers.

    An item's bucket is counted at the steps that see it: how often the step has it, and how many
    steps passed since the last one that had it. Two moving sums of both, over the last sixty or
    so of such steps, give occurrences a step; divided by the ids of a step that is Q per draw.
    Repeated ids count, so Q does not saturate at one occurrence a step; and sums, not a mean of
    gaps, since the mean of (gap / repeats) is up to .3 nats too long at one to three repeats.

    Of H hash rows an item takes the *smallest* rate, for a collision can only raise it. `update`
    takes the ids of the global batch, so every rank keeps an equal copy with no communication of
    its own; the buffers go into the checkpoint.

    Args:
        num_buckets: of a hash row; four times the items keep collisions rare.
        rate: share of the moving sums that a new sighting replaces: a smaller one is steadier where
            popularity stays, a larger one follows it sooner where it drifts.
    """

    def __init__(
        self, num_buckets: int, num_hashes: int = 3, rate: float = 0.03, seed: int = 0
    ) -> None:
        super().__init__()
        if num_buckets < 1 or num_hashes < 1:
            raise ValueError(
                f"num_buckets is {num_buckets}, num_hashes {num_hashes}; both must be at least 1"
            )
        if not 0.0 < rate <= 1.0:
            raise ValueError(f"rate is {rate}; the moving sums need 0 < rate <= 1")
        self.num_buckets = num_buckets
        self.kept = 1.0 - rate
        generator = torch.Generator().manual_seed(seed)
        odd_H = torch.randint(1, 2**62, (num_hashes,), generator=generator) * 2 + 1
        self.register_buffer("multiplier_H", odd_H)
        buckets = (num_hashes, num_buckets + 1)  # the last is padding's
        self.register_buffer("last_step_HN", torch.zeros(buckets, dtype=torch.int32))
        self.register_buffer("elapsed_HN", torch.zeros(buckets))
        self.register_buffer("count_HN", torch.zeros(buckets))
        self.register_buffer("step", torch.zeros((), dtype=torch.int32))
        self.register_buffer("draws", torch.zeros(2))
        self.multiplier_H: Tensor
        self.last_step_HN: Tensor
        """The last step that had an item of the bucket; 0 none."""
        self.elapsed_HN: Tensor
        """Moving sum of the steps between sightings."""
        self.count_HN: Tensor
        """Moving sum of the occurrences at sightings."""
        self.step: Tensor
        self.draws: Tensor
        """Moving sums of the ids of a step, and of steps."""

    def _buckets(self, id_X: Tensor) -> Tensor:
        """[H, X] bucket of every id: multiply-shift in wrapping int64, mixed upper bits."""
        mixed_HX = id_X[None, :] * self.multiplier_H[:, None]
        mixed_HX = mixed_HX ^ ((mixed_HX >> 32) & 0xFFFFFFFF)
        mixed_HX = mixed_HX * -7046029254386353131  # 2**64 / golden ratio, as a signed odd int64
        bucket_HX = ((mixed_HX >> 24) & 0xFFFFFFFFFF) % self.num_buckets
        return bucket_HX.masked_fill(id_X < 0, self.num_buckets)

    @torch.no_grad()
    def update(self, id_X: Tensor) -> None:
        """Sees one global batch of ids (int64, -1 padding), equal on all ranks. No collective and
        no device-to-host sync."""
        self.step += 1
        here = torch.stack([(id_X >= 0).sum(), torch.ones_like(self.step)])
        self.draws.mul_(self.kept).add_(here)
        bucket_HX = self._buckets(id_X)
        sorted_HX = bucket_HX.sort(dim=1).values
        count_HX = torch.searchsorted(sorted_HX, bucket_HX, right=True)
        count_HX = count_HX - torch.searchsorted(sorted_HX, bucket_HX)
        elapsed_HX = self.step - self.last_step_HN.gather(1, bucket_HX)
        # All ids of a bucket write the same value, whichever comes last.
        for sum_HN, new_HX in ((self.elapsed_HN, elapsed_HX), (self.count_HN, count_HX)):
            moved_HX = sum_HN.gather(1, bucket_HX) * self.kept + new_HX
            sum_HN.scatter_(1, bucket_HX, moved_HX)
        self.last_step_HN.scatter_(1, bucket_HX, self.step.expand_as(bucket_HX))

    @torch.no_grad()
    def log_q(self, id_X: Tensor) -> Tensor:
        """log Q per draw, float32: occurrences a step, divided by the ids of a step.

        The steps since the last sighting count as well: without them an id that is asked for at
        other steps than its own (a drawn negative) would seem as frequent as when it last came. An
        id never seen is taken to have come once so far.
        """
        bucket_HX = self._buckets(id_X)
        count_HX = self.count_HN.gather(1, bucket_HX)
        since_HX = self.step - self.last_step_HN.gather(1, bucket_HX)
        rate_HX = count_HX / (self.elapsed_HN.gather(1, bucket_HX) + since_HX).clamp(min=1.0)
        once = 1.0 / self.step.clamp(min=1)
        rate_X = torch.where((count_HX == 0).any(dim=0), once, rate_HX.amin(dim=0))
        draws_per_step = self.draws[0].clamp(min=1.0) / self.draws[1].clamp(min=1.0)
        return (torch.log(rate_X) - torch.log(draws_per_step)).clamp(max=0.0)
