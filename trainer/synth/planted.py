"""The planted model behind `tandem synth`: who likes what, with probabilities that are known.

Items stand in slots: slot s is number s // C of cluster s % C, and item row = rows[s] for a fixed
random permutation. Inside a cluster popularity is Zipf: q(r) ~ (r + 1)^-exponent for number r.
A user has three distinct clusters of taste with weights w, and one it dislikes. Its positives are
drawn without repetition, one after the other, from

    p(slot | user) = (1 - noise) * sum_j w_j q(slot in taste j) + noise / I

so the best ranking for the user is by p with what it has seen left out, whatever a model does.

Shapes: U = users of a part, M = draws of a part, T = tastes, I = items, C = clusters.
"""

from dataclasses import dataclass

import numpy as np

TASTE_WEIGHTS = np.array([0.6, 0.28, 0.12])
NUM_TASTES = len(TASTE_WEIGHTS)
CLUSTER_EXPONENT = 0.4
"""Zipf exponent of the clusters' own popularity."""
OVERDRAW, OVERDRAW_OF_RANKS = 1.2, 40.0
"""Draws made for each interaction wanted, as repetitions are dropped: more in small clusters."""


class AliasTable:
    """Draws from a fixed distribution in constant time (Vose's method)."""

    def __init__(self, weight: np.ndarray) -> None:
        self._size = len(weight)
        scaled = weight * (self._size / weight.sum())
        self._keep = np.ones(self._size)
        self._alias = np.arange(self._size)
        small = np.flatnonzero(scaled < 1).tolist()
        large = np.flatnonzero(scaled >= 1).tolist()
        rest = scaled.tolist()
        while small and large:
            low, high = small.pop(), large[-1]
            self._keep[low], self._alias[low] = rest[low], high
            rest[high] -= 1 - rest[low]
            if rest[high] < 1:
                small.append(large.pop())

    def draw(self, random: np.random.Generator, size: int) -> np.ndarray:
        """int64 [size]."""
        place = random.random(size) * self._size
        index = place.astype(np.int64)
        return np.where(place - index < self._keep[index], index, self._alias[index])


@dataclass(frozen=True)
class Draws:
    """Interactions of a part's users in time order, user after user; M rows."""

    user_M: np.ndarray
    """User within the part, int64, ascending."""
    slot_M: np.ndarray
    """Slot of the item, int64; no slot twice for one user."""
    liked_M: np.ndarray
    """False for an explicit dislike."""
    start_U: np.ndarray
    """First row of each user, then M; int64 [U + 1]."""
    taste_UT: np.ndarray
    """Clusters of taste, strongest first, int64 [U, 3]."""


class PlantedModel:
    """What users like: clusters, popularity in them, and draws of interactions.

    noise: share of positives drawn from the whole catalog alike.
    disliked: share of interactions that are explicit dislikes, out of one disliked cluster.
    """

    def __init__(
        self,
        *,
        items: int,
        clusters: int,
        zipf_exponent: float,
        noise: float,
        disliked: float,
        seed: int,
    ) -> None:
        self.items, self.clusters = items, clusters
        self.noise, self.disliked = noise, disliked
        ranks = -(-items // clusters)
        weight = np.arange(1, ranks + 1) ** -float(zipf_exponent)
        self.chance_of_rank = weight / weight.sum()
        """q, float64 [ceil(I / C)]."""
        self.ranks = AliasTable(weight)
        """Numbers within a cluster, by q."""
        self._tastes = AliasTable(np.arange(1, clusters + 1) ** -CLUSTER_EXPONENT)
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, 1 << 40))))
        self.row_of_slot_I = random.permutation(items).astype(np.int32)
        """Item row of each slot: popular items and clusters lie anywhere in the table."""

    def draw(self, random: np.random.Generator, length_U: np.ndarray) -> Draws:
        """About `length_U` interactions of each user: fewer where repetitions ate the overdraw."""
        taste_UT, dislike_U = self.draw_tastes(random, len(length_U))
        overdraw = OVERDRAW + OVERDRAW_OF_RANKS / len(self.chance_of_rank)
        draws_U = (length_U * overdraw).astype(np.int64) + 2
        user_M = np.repeat(np.arange(len(length_U)), draws_U)
        first_U = np.cumsum(draws_U) - draws_U
        turn_M = np.arange(len(user_M)) - np.repeat(first_U, draws_U)
        slot_M, liked_M = self._draw_slots(random, user_M, taste_UT, dislike_U)
        first_M = first_of_each(user_M, slot_M, turn_M, first_U)
        user_M, slot_M, liked_M = user_M[first_M], slot_M[first_M], liked_M[first_M]
        count_U = np.bincount(user_M, minlength=len(length_U))
        first_U = np.cumsum(count_U) - count_U
        turn_M = np.arange(len(user_M)) - np.repeat(first_U, count_U)
        keep_M = turn_M < np.repeat(length_U, count_U)
        kept_U = np.minimum(count_U, length_U)
        start_U = np.concatenate([[0], np.cumsum(kept_U)])
        return Draws(user_M[keep_M], slot_M[keep_M], liked_M[keep_M], start_U, taste_UT)

    def draw_tastes(self, random: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray]:
        """Distinct clusters a user, three liked [U, 3] and one disliked [U].

        Each is the draw itself, or the next cluster that is still free.
        """
        chosen = np.empty((users, NUM_TASTES + 1), dtype=np.int64)
        for place in range(NUM_TASTES + 1):
            cluster = self._tastes.draw(random, users)
            for _ in range(place):
                taken = (chosen[:, :place] == cluster[:, None]).any(axis=1)
                cluster = np.where(taken, (cluster + 1) % self.clusters, cluster)
            chosen[:, place] = cluster
        return chosen[:, :NUM_TASTES], chosen[:, NUM_TASTES]

    def _draw_slots(
        self,
        random: np.random.Generator,
        user_M: np.ndarray,
        taste_UT: np.ndarray,
        dislike_U: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        size = len(user_M)
        kind_M = random.random(size, dtype=np.float32)
        liked_M = kind_M >= self.disliked
        weights = np.cumsum(TASTE_WEIGHTS).astype(np.float32)
        part_M = random.random(size, dtype=np.float32)
        taste_M = (part_M >= weights[0]).astype(np.int64) + (part_M >= weights[1])
        cluster_M = taste_UT.reshape(-1)[user_M * NUM_TASTES + taste_M]
        cluster_M = np.where(liked_M, cluster_M, dislike_U[user_M])
        slot_M = self.ranks.draw(random, size) * self.clusters + cluster_M
        noisy = liked_M & (kind_M < self.disliked + self.noise * (1 - self.disliked))
        # Clusters whose last number falls beyond the catalog: their draw becomes noise.
        noisy |= slot_M >= self.items
        slot_M[noisy] = random.integers(0, self.items, int(noisy.sum()))
        return slot_M, liked_M


def first_of_each(
    user_M: np.ndarray, slot_M: np.ndarray, turn_M: np.ndarray, first_U: np.ndarray
) -> np.ndarray:
    """True for a user's first draw of a slot, False for repetitions; bool [M].

    first_U: each user's first row. Packed int64 keys sort several times faster than an argsort.
    """
    turn_bits = int(turn_M.max(initial=1)).bit_length()
    slot_bits = int(slot_M.max(initial=1)).bit_length()
    user_bits = int(user_M.max(initial=1)).bit_length()
    assert turn_bits + slot_bits + user_bits < 64, (turn_bits, slot_bits, user_bits)
    key = (user_M << slot_bits | slot_M) << turn_bits | turn_M
    key.sort()
    pair = key >> turn_bits
    repeats = key[1:][pair[1:] == pair[:-1]]
    first_M = np.ones(len(key), dtype=bool)
    first_M[first_U[repeats >> (turn_bits + slot_bits)] + (repeats & ((1 << turn_bits) - 1))] = (
        False
    )
    return first_M
