"""What planted data may have beyond ids and categories, and how it bears on who likes what.

    vectors    an item's `text` tells its cluster and how popular it is
    numbers    an item's `price` tells how popular it is, its `tempo` its cluster; a user's `age`
               the first taste
    context    `device` and `minutes` of an event shift the weights of the user's tastes
    kinds      buys follow the tastes as likes do, carts and views less
    weights    an event's weight is the chance that it follows the tastes at all
    windows    days; with `new_items` a share of the catalog appears on each day, and another when
               the held-out part begins; with `drift` a share of users has new tastes every day

Shapes: M = events, T = tastes, C = clusters, I = items, W = width of vectors, n = items asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from trainer.data.schema import DISLIKED, LIKED, Kind
from trainer.synth.planted import PlantedModel

DEVICES = ("phone", "tv", "desktop")
DEVICE_BOOST, MINUTES_BOOST = 4.0, 1.0
MIDDLE_MINUTES, MINUTES_SPREAD = 20.0, 0.8
MISSING = 0.05
"""Share of devices, minutes and numbers that are missing."""
MISSING_VECTORS = 0.02
POPULARITY_IN_VECTOR, NOISE_OF_VECTOR = 0.5, 0.3
"""Beside the cluster's part, which has length 1."""
EVENTS = (
    Kind("buy", "positive", 10.0),
    Kind("cart", "signal", 3.0),
    Kind("view", "signal", 1.0),
    Kind("dislike", "negative"),
)
SHARE_OF_EVENT = (0.25, 0.15, 0.6)
NOISE_OF_EVENT = (0.0, 0.3, 0.6)
"""Share of buys, carts and views that follow no preference, beside the noise of all."""
LEAST_WEIGHT = 0.1
GOLDEN = 0.618034
"""Multiples of it, modulo 1, lie apart: a number tells which cluster it is of."""
VECTORS_AT_ONCE = 1 << 14
ATTRIBUTES_SEED, BIRTH_SEED, VECTORS_SEED = 3, 4, 5


@dataclass(frozen=True)
class Extras:
    """Which of them the data have."""

    vectors: int = 0
    """Width of the items' vectors; 0: none."""
    numbers: bool = False
    context: bool = False
    kinds: bool = False
    weights: bool = False
    windows: int = 1
    new_items: float = 0.0
    """Share of the catalog that is new in each window but the first, and in the held-out part."""
    drift: float = 0.0
    """Share of users who change their tastes from one window to the next."""

    @property
    def any(self) -> bool:
        """Whether the data differ from plain ones."""
        return self != Extras()

    @property
    def changes_events(self) -> bool:
        """Whether events are drawn otherwise than plain ones."""
        plain = Extras(vectors=self.vectors, numbers=self.numbers)
        return self != plain

    @property
    def set_fields(self) -> dict[str, float | int | bool]:
        """Those that are not as left out."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if value != getattr(Extras(), name)}

    @property
    def event_kinds(self) -> tuple[Kind, ...]:
        """The kinds of the dataset's events."""
        return EVENTS if self.kinds else (LIKED, DISLIKED)


def boosts(device_M: np.ndarray, z_M: np.ndarray, cluster_MT: np.ndarray) -> np.ndarray:
    """What the context multiplies the weights of tastes by, [M, T].

    device_M: 0 where missing, else 1 + place in DEVICES. z_M: standardised log of minutes, NaN
    where missing.
    """
    device_MT = np.where((device_M[:, None] - 1) == cluster_MT % len(DEVICES), DEVICE_BOOST, 1.0)
    sign_MT = 1.0 - 2.0 * (cluster_MT // len(DEVICES) % 2)
    return device_MT * np.exp(MINUTES_BOOST * sign_MT * np.nan_to_num(z_M)[:, None])


def minutes_of(z_M: np.ndarray) -> np.ndarray:
    """Minutes that a user has, float32; NaN where missing."""
    return (MIDDLE_MINUTES * np.exp(MINUTES_SPREAD * z_M)).astype(np.float32)


def draw_context(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(device, z) of events, int64 and float64 [size]."""
    device = random.integers(1, len(DEVICES) + 1, size)
    device[random.random(size) < MISSING] = 0
    z = random.standard_normal(size)
    z[random.random(size) < MISSING] = np.nan
    return device, z


class ItemFeatures:
    """Vectors and numbers of the items, by slot: the same whatever is asked for at once."""

    def __init__(self, model: PlantedModel, extras: Extras, seed: int) -> None:
        self._model, self._extras, self._seed = model, extras, seed

    @cached_property
    def _popularity_R(self) -> np.ndarray:
        """log q of a cluster's numbers, standardised; zeros where all are alike."""
        log = np.log(self._model.chance_of_rank)
        return (log - log.mean()) / max(float(log.std()), 1e-9)

    @cached_property
    def _code_CW(self) -> np.ndarray:
        """Directions of the clusters, and one of popularity at the end, float32 [C + 1, W]."""
        random = self._random(VECTORS_SEED, 1 << 40)
        code = random.standard_normal((self._model.clusters + 1, self._extras.vectors))
        code /= np.linalg.norm(code, axis=1, keepdims=True)
        return code.astype(np.float32)

    def vectors(self, first: int) -> np.ndarray:
        """Of slots first .. first + VECTORS_AT_ONCE, float16 [n, W]; zeros where missing."""
        slot_n = np.arange(first, min(first + VECTORS_AT_ONCE, self._model.items))
        random = self._random(VECTORS_SEED, first)
        width = self._extras.vectors
        vector_nW = random.standard_normal((len(slot_n), width), dtype=np.float32)
        vector_nW *= NOISE_OF_VECTOR / width**0.5
        vector_nW += self._code_CW[slot_n % self._model.clusters]
        popularity_n = self._popularity_R[slot_n // self._model.clusters].astype(np.float32)
        vector_nW += POPULARITY_IN_VECTOR * popularity_n[:, None] * self._code_CW[-1]
        vector_nW[random.random(len(slot_n)) < MISSING_VECTORS] = 0
        return vector_nW.astype(np.float16)

    @cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """By name, float32 by slot [I]; NaN where missing."""
        if not self._extras.numbers:
            return {}
        slot_I = np.arange(self._model.items)
        random = self._random(ATTRIBUTES_SEED, 0)
        popularity_I = self._popularity_R[slot_I // self._model.clusters]
        price_I = np.exp(2 + popularity_I + 0.2 * random.standard_normal(len(slot_I)))
        tempo_I = 60 + 120 * (slot_I % self._model.clusters * GOLDEN % 1)
        tempo_I += 0.3 * random.standard_normal(len(slot_I))
        found = {"price": price_I.astype(np.float32), "tempo": tempo_I.astype(np.float32)}
        for values in found.values():
            values[random.random(len(slot_I)) < MISSING] = np.nan
        return found

    @cached_property
    def birth_I(self) -> np.ndarray:
        """Era from which on each slot is in the catalog, int64; the held-out part is the last."""
        eras = self._extras.windows + 1
        birth_I = np.zeros(self._model.items, dtype=np.int64)
        each = round(self._extras.new_items * self._model.items)
        order = self._random(BIRTH_SEED, 0).permutation(self._model.items)
        for era in range(1, eras):
            birth_I[order[(era - 1) * each : era * each]] = era
        return birth_I

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence((self._seed, *key))))


def user_numbers(taste_UT: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Numbers of users by name, float32 [U]; NaN where missing."""
    age_U = 18 + 60 * (taste_UT[:, 0] * GOLDEN % 1) + 0.3 * random.standard_normal(len(taste_UT))
    age_U[random.random(len(taste_UT)) < MISSING] = np.nan
    return {"age": age_U.astype(np.float32)}
