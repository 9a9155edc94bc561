"""Events of planted data with extras: window after window, the held-out part last.

Every era, a window or the held-out part, draws from what is in the catalog by then and from the
tastes that users have by then. What is held out is liked (bought) and follows

    p(slot | user, context) = (1 - noise) * sum_j w_j b_j(context) q(slot in taste j) + noise / I

so the best ranking is known, whatever kinds and weights the training events have.

Shapes: U = users of a part, E = eras, M = events, T = tastes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from trainer.data.jagged import offsets_of
from trainer.synth.planted import (
    NUM_TASTES,
    OVERDRAW,
    OVERDRAW_OF_RANKS,
    TASTE_WEIGHTS,
    Draws,
    PlantedModel,
    first_of_each,
)
from trainer.synth.planted_extras import (
    LEAST_WEIGHT,
    NOISE_OF_EVENT,
    SHARE_OF_EVENT,
    Extras,
    ItemFeatures,
    boosts,
    draw_context,
    minutes_of,
)
from trainer.synth.planted_rows import PartRows

FIRST_DAY = 1_699_920_000
DAY, DAY_OF_TRAINING = 86_400, 64_800
"""Seconds; on the last day the held-out part begins after the second number of them."""
TRIES = 64
"""Draws of an item that is in the catalog, before it becomes noise."""
SLACK = 8
"""Further draws for what is held out, of which much is repeated."""


@dataclass
class _Events:
    """Draws, filled step by step; M rows."""

    user_M: np.ndarray
    era_M: np.ndarray
    taste_MT: np.ndarray
    kind_M: np.ndarray
    chance_M: np.ndarray
    """Of following the tastes."""
    weight_M: np.ndarray | None = None
    device_M: np.ndarray | None = None
    z_M: np.ndarray | None = None
    slot_M: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def take(self, keep_M: np.ndarray) -> _Events:
        values = {name: None if v is None else v[keep_M] for name, v in vars(self).items()}
        return _Events(**values)  # type: ignore[arg-type]


class EraModel:
    """Draws events of a planted model with extras."""

    def __init__(self, model: PlantedModel, extras: Extras, features: ItemFeatures) -> None:
        self._model, self._extras = model, extras
        self._birth_I = features.birth_I
        self._eras = extras.windows + 1
        self._disliked_kind = len(extras.event_kinds) - 1

    def part(
        self,
        random: np.random.Generator,
        length_U: np.ndarray,
        *,
        held_out: int,
        held_share: float,
        first_user: int,
    ) -> PartRows:
        """About `length_U` events of each user, those held out among them."""
        users, windows = len(length_U), self._extras.windows
        is_held_U = random.random(users) < held_share
        length_UE = np.zeros((users, self._eras), dtype=np.int64)
        length_UE[:, -1] = 2 * held_out * is_held_U
        dealt_U = length_U - length_UE[:, -1]
        length_UE[:, :windows] = random.multinomial(dealt_U, np.full(windows, 1 / windows))
        taste_UET, dislike_UE = self._tastes(random, users)
        events = self._draw(random, length_UE, taste_UET, dislike_UE)
        count_UE = _counts(events, users, self._eras)
        # Who has too few for both parts, or none to train on, is not held out.
        is_held_U &= count_UE[:, -1] == 2 * held_out
        is_held_U &= count_UE[:, :windows].sum(axis=1) > 0
        events = events.take((events.era_M < windows) | is_held_U[events.user_M])
        return self._as_rows(random, events, taste_UET[:, -1], is_held_U, held_out, first_user)

    def _tastes(self, random: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray]:
        """Tastes [U, E, T] and disliked cluster [U, E]; those of the last window stay."""
        tastes: list[np.ndarray] = []
        dislikes: list[np.ndarray] = []
        for era in range(self._extras.windows):
            taste_UT, dislike_U = self._model.draw_tastes(random, users)
            if era:
                changed_U = random.random(users) < self._extras.drift
                taste_UT = np.where(changed_U[:, None], taste_UT, tastes[-1])
                dislike_U = np.where(changed_U, dislike_U, dislikes[-1])
            tastes.append(taste_UT)
            dislikes.append(dislike_U)
        return np.stack([*tastes, tastes[-1]], axis=1), np.stack([*dislikes, dislikes[-1]], axis=1)

    def _draw(
        self,
        random: np.random.Generator,
        length_UE: np.ndarray,
        taste_UET: np.ndarray,
        dislike_UE: np.ndarray,
    ) -> _Events:
        """Events without repetitions, at most `length_UE` of each user and era."""
        overdraw = OVERDRAW + OVERDRAW_OF_RANKS / len(self._model.chance_of_rank)
        draws_UE = np.where(length_UE > 0, (length_UE * overdraw).astype(np.int64) + 2, 0)
        draws_UE[:, -1] += np.where(length_UE[:, -1] > 0, SLACK + 2 * length_UE[:, -1], 0)
        group_M = np.repeat(np.arange(draws_UE.size), draws_UE.reshape(-1))
        user_M, era_M = group_M // self._eras, group_M % self._eras
        events = self._kinds(random, user_M, era_M, taste_UET, dislike_UE)
        self._add_context(random, events, len(length_UE))
        self._add_slots(random, events)
        groups = len(SHARE_OF_EVENT) if self._extras.kinds else 1
        kind_group_M = np.where(events.kind_M < groups, events.kind_M, 0)
        first_U = offsets_of(draws_UE.sum(axis=1))[:-1]
        turn_M = np.arange(len(user_M)) - first_U[user_M]
        events = events.take(
            first_of_each(user_M, events.slot_M * groups + kind_group_M, turn_M, first_U)
        )
        first_G = offsets_of(_counts(events, *length_UE.shape).reshape(-1))[:-1]
        group_M = events.user_M * self._eras + events.era_M
        turn_M = np.arange(len(group_M)) - first_G[group_M]
        return events.take(turn_M < length_UE.reshape(-1)[group_M])

    def _kinds(
        self,
        random: np.random.Generator,
        user_M: np.ndarray,
        era_M: np.ndarray,
        taste_UET: np.ndarray,
        dislike_UE: np.ndarray,
    ) -> _Events:
        """Kinds of the events, and how far each follows the tastes."""
        held_M = era_M == self._eras - 1
        disliked_M = ~held_M & (random.random(len(user_M)) < self._model.disliked)
        kind_M = np.zeros(len(user_M), dtype=np.int8)
        chance_M = np.full(len(user_M), 1 - self._model.noise)
        if self._extras.kinds:
            edges = np.cumsum(SHARE_OF_EVENT)[:-1]
            drawn_M = np.searchsorted(edges, random.random(len(user_M)), side="right")
            kind_M = np.where(held_M, 0, drawn_M).astype(np.int8)
            chance_M *= 1 - np.array(NOISE_OF_EVENT)[kind_M]
        weight_M = None
        if self._extras.weights:
            weight_M = random.uniform(LEAST_WEIGHT, 1, len(user_M)).astype(np.float32)
            weight_M[held_M] = 1
            chance_M *= weight_M
        taste_MT = taste_UET[user_M, era_M]
        kind_M[disliked_M] = self._disliked_kind
        chance_M[disliked_M] = 1
        taste_MT[disliked_M] = dislike_UE[user_M, era_M][disliked_M, None]
        return _Events(user_M, era_M, taste_MT, kind_M, chance_M, weight_M)

    def _add_context(self, random: np.random.Generator, events: _Events, users: int) -> None:
        """One context an event; all that is held out of a user has the same."""
        if not self._extras.context:
            return
        events.device_M, events.z_M = draw_context(random, len(events.user_M))
        device_U, z_U = draw_context(random, users)
        held_M = events.era_M == self._eras - 1
        events.device_M[held_M] = device_U[events.user_M[held_M]]
        events.z_M[held_M] = z_U[events.user_M[held_M]]

    def _add_slots(self, random: np.random.Generator, events: _Events) -> None:
        """Items of the events: of a taste, of the disliked cluster, or any."""
        size = len(events.user_M)
        weight_MT = np.broadcast_to(TASTE_WEIGHTS, (size, NUM_TASTES))
        if events.device_M is not None and events.z_M is not None:
            weight_MT = weight_MT * boosts(events.device_M, events.z_M, events.taste_MT)
        edge_MT = np.cumsum(weight_MT, axis=1)
        part_M = random.random(size) * edge_MT[:, -1]
        place_M = (part_M[:, None] >= edge_MT[:, :-1]).sum(axis=1)
        cluster_M = events.taste_MT[np.arange(size), place_M]
        noisy_M = random.random(size) >= events.chance_M
        slot_M = np.full(size, self._model.items)
        wanted = np.flatnonzero(~noisy_M)
        for _ in range(TRIES):
            drawn = self._model.ranks.draw(random, len(wanted)) * self._model.clusters
            slot_M[wanted] = drawn + cluster_M[wanted]
            inside = slot_M[wanted] < self._model.items
            born = np.zeros(len(wanted), dtype=bool)
            born[inside] = self._birth_I[slot_M[wanted[inside]]] <= events.era_M[wanted[inside]]
            # A cluster whose last number falls beyond the catalog: its draw becomes noise.
            noisy_M[wanted[~inside]] = True
            wanted = wanted[inside & ~born]
            if not len(wanted):
                break
        noisy_M[wanted] = True
        for era in range(self._eras):
            of_era = np.flatnonzero(noisy_M & (events.era_M == era))
            born = np.flatnonzero(self._birth_I <= era)
            slot_M[of_era] = born[random.integers(0, len(born), len(of_era))]
        events.slot_M = slot_M

    def _as_rows(
        self,
        random: np.random.Generator,
        events: _Events,
        taste_UT: np.ndarray,
        is_held_U: np.ndarray,
        held_out: int,
        first_user: int,
    ) -> PartRows:
        users = len(is_held_U)
        start_U = offsets_of(np.bincount(events.user_M, minlength=users))
        from_end_M = start_U[1:][events.user_M] - np.arange(len(events.user_M)) - 1
        held_M = events.era_M == self._extras.windows
        more: dict[str, np.ndarray] = {}
        if events.weight_M is not None:
            more["weight"] = events.weight_M
        if events.device_M is not None and events.z_M is not None:
            more["context.device"] = events.device_M
            more["context.minutes"] = minutes_of(events.z_M)
        return PartRows(
            draws=Draws(
                events.user_M,
                events.slot_M,
                events.kind_M != self._disliked_kind,
                start_U,
                taste_UT,
            ),
            item_M=self._model.row_of_slot_I[events.slot_M].astype(np.int64),
            split_M=(held_M * (1 + (from_end_M < held_out))).astype(np.int8),
            timestamp_M=self._times(random, events, users),
            held_out=held_out,
            is_held_U=is_held_U,
            first_user=first_user,
            kind_M=events.kind_M,
            window_M=np.minimum(events.era_M, self._extras.windows - 1),
            signals=tuple(
                number
                for number, kind in enumerate(self._extras.event_kinds)
                if kind.role == "signal"
            ),
            more=more,
            context=None
            if events.device_M is None or events.z_M is None
            else (events.device_M, events.z_M),
        )

    def _times(self, random: np.random.Generator, events: _Events, users: int) -> np.ndarray:
        """Seconds, strictly ascending for a user; a window's lie in its day."""
        count_G = _counts(events, users, self._eras).reshape(-1)
        group_M = events.user_M * self._eras + events.era_M
        first_G = offsets_of(count_G)[:-1]
        # Uniform moments in order are sums of exponential gaps, over the sum of one gap more.
        gap_M = random.exponential(1, len(group_M))
        through = np.append(0.0, np.cumsum(gap_M))
        last_G = random.exponential(1, len(count_G))
        begin_G, end_G = through[first_G], through[first_G + count_G]
        share_M = (through[1:] - begin_G[group_M]) / (end_G - begin_G + last_G)[group_M]
        held_M = events.era_M == self._extras.windows
        span_M = np.where(held_M, DAY - DAY_OF_TRAINING, DAY_OF_TRAINING)
        place_M = np.arange(len(group_M)) - first_G[group_M]
        within_M = (share_M * (span_M - count_G[group_M])).astype(np.int64) + place_M
        day_M = np.minimum(events.era_M, self._extras.windows - 1)
        return FIRST_DAY + day_M * DAY + held_M * DAY_OF_TRAINING + within_M


def _counts(events: _Events, users: int, eras: int) -> np.ndarray:
    """Events of each user and era, int64 [U, E]."""
    group_M = events.user_M * eras + events.era_M
    return np.bincount(group_M, minlength=users * eras).reshape(users, eras)
