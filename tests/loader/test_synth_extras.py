"""Planted vectors, numbers, context, kinds, weights, windows, new items and drift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.planted import queries
from tests.loader.conftest import epoch_of
from trainer.data.events.event_reader import EventReader
from trainer.data.events.event_rows import EventRows, joined
from trainer.data.schema import Dataset
from trainer.data.vectors import Vectors
from trainer.prepare.pipeline import PrepareArguments, prepare
from trainer.synth.planted import TASTE_WEIGHTS, PlantedModel
from trainer.synth.planted_eras import DAY, FIRST_DAY, EraModel
from trainer.synth.planted_extras import (
    DEVICE_BOOST,
    EVENTS,
    MIDDLE_MINUTES,
    MINUTES_SPREAD,
    Extras,
    ItemFeatures,
)
from trainer.synth.planted_truth import best_possible
from trainer.synth.synth import SynthArguments, synth

SIZES: Any = {"users": 300, "items": 240, "interactions": 9000, "seed": 3}
ALL: Any = {
    "vectors": 16,
    "numbers": True,
    "context": True,
    "kinds": True,
    "weights": True,
    "windows": 3,
    "new_items": 0.1,
    "drift": 0.2,
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("synth") / "data"
    synth(SynthArguments(out=str(out), **SIZES, **ALL), show=False)
    return Dataset.load(out, verify="digest")


def all_events(dataset: Dataset) -> EventRows:
    reader = EventReader(dataset)
    return joined([reader.of_users(0, dataset.num_users)])


def drawn(extras: Extras, users: int = 2000, **changes: Any) -> tuple[PlantedModel, Any]:
    """A model and the rows of a part, 30 events a user."""
    settings = {"items": 400, "clusters": 10, "zipf_exponent": 0.8, "noise": 0.0, "disliked": 0.0}
    model = PlantedModel(**{**settings, **changes}, seed=1)
    eras = EraModel(model, extras, ItemFeatures(model, extras, 1))
    part = eras.part(
        np.random.default_rng(2), np.full(users, 30), held_out=1, held_share=1.0, first_user=0
    )
    return model, part


def at_home(model: PlantedModel, part: Any) -> np.ndarray:
    """Whether each event is of a taste of its user, bool."""
    cluster_M = part.draws.slot_M % model.clusters
    return (cluster_M[:, None] == part.draws.taste_UT[part.draws.user_M]).any(axis=1)


def test_what_dataset_json_says_of_it(planted: Dataset) -> None:
    assert planted.kinds == EVENTS and planted.has_weights and planted.window_rule == "day"
    assert [each.name for each in planted.context_attributes] == ["device", "minutes"]
    kinds = {key: each.kind for key, each in planted.attributes.items()}
    assert kinds["item.text"] == "vector" and kinds["context.device"] == "single"
    for key in ("item.price", "item.tempo", "user.age", "context.minutes"):
        assert kinds[key] == "number", key
    minutes = planted.attributes["context.minutes"].scale
    assert minutes is not None and minutes.log1p
    assert len(planted.windows) == 3
    for number, window in enumerate(planted.windows):
        assert window.first_time is not None and window.last_time is not None
        start = FIRST_DAY + number * DAY
        assert start <= window.first_time <= window.last_time < start + DAY
    assert planted.splits["test"].queries > 250


def test_new_items_come_with_their_window_and_some_only_held_out(planted: Dataset) -> None:
    rows = all_events(planted)
    slots = pq.read_table(planted.file("items.parquet"))["raw_id"].to_numpy() - 1
    model = PlantedModel(items=240, clusters=8, zipf_exponent=0.8, noise=0.1, disliked=0.05, seed=3)
    birth_I = ItemFeatures(model, Extras(**ALL), 3).birth_I[slots]
    assert np.bincount(birth_I).tolist() == [168, 24, 24, 24]
    assert rows.time_E is not None
    era_E = (rows.time_E - FIRST_DAY) // DAY + (rows.split_E > 0)
    assert (birth_I[rows.item_E] <= era_E).all()
    met = np.zeros(planted.num_items, dtype=bool)
    met[rows.item_E[rows.split_E == 0]] = True
    assert not met[birth_I == 3].any()
    held_new = birth_I[rows.item_E[rows.split_E == 2]] == 3
    assert 0.05 < held_new.mean() < 0.3
    truth = json.loads(Path(planted.file("truth.json")).read_text())
    assert truth["best_of_new_items"]["test"]["users"] == held_new.sum()
    count = pq.read_table(planted.file("items.parquet"))["count"].to_numpy()
    liked = rows.feedback_E > 0
    own = np.bincount(rows.item_E[liked & (rows.split_E == 0)], minlength=planted.num_items)
    assert count.tolist() == own.tolist()


def test_loader_and_queries_read_all_of_it(planted: Dataset) -> None:
    batches = epoch_of(
        planted,
        query_keys=("user", "history", "context.device"),
        candidate_keys=("item", "item.genre"),
    )
    weighed = sum(float((batch.weight_B > 0).sum()) for batch in batches)
    assert weighed == planted.splits["train"].positives + planted.splits["train"].disliked
    assert len(list(queries(planted, "test"))) == planted.splits["test"].queries


def test_the_same_whatever_the_threads(planted: Dataset, tmp_path: Path) -> None:
    synth(SynthArguments(out=str(tmp_path / "a"), threads=1, **SIZES, **ALL), show=False)
    again = Dataset.load(tmp_path / "a")
    assert again.digest == planted.digest and again.attributes == planted.attributes


def test_vectors_and_numbers_tell_clusters_and_popularity(planted: Dataset) -> None:
    table = pq.read_table(planted.file("items.parquet"))
    slot = table["raw_id"].to_numpy() - 1
    vector = Vectors(planted, planted.attributes["item.text"]).take(np.arange(240)).astype(float)
    there = vector.any(axis=1)
    assert 0.9 < there.mean() <= 1
    mean = np.stack([vector[there & (slot % 8 == each)].mean(axis=0) for each in range(8)])
    nearest = np.linalg.norm(vector[:, None] - mean, axis=2).argmin(axis=1)
    assert (nearest == slot % 8)[there].mean() > 0.95
    price, tempo = (table[name].to_numpy() for name in ("price", "tempo"))
    known = np.isfinite(price)
    assert 0.02 < np.isnan(price).mean() < 0.1
    assert np.corrcoef(np.log(price[known]), -np.log1p(slot[known] // 8))[0, 1] > 0.8
    mean = np.array([np.nanmean(tempo[slot % 8 == each]) for each in range(8)])
    known = np.isfinite(tempo)
    found = np.abs(tempo[:, None] - mean).argmin(axis=1)
    assert (found == slot % 8)[known].all()


def test_kinds_and_weights_say_how_far_events_follow_tastes() -> None:
    model, part = drawn(Extras(kinds=True))
    home = at_home(model, part)
    shares = [home[part.kind_M == kind].mean() for kind in range(3)]
    chance = 3 / model.clusters
    for share, noise in zip(shares, (0.0, 0.3, 0.6), strict=True):
        assert share == pytest.approx(1 - noise * (1 - chance), abs=0.04)
    assert (part.kind_M[part.split_M > 0] == 0).all(), "buys alone are held out"
    model, part = drawn(Extras(weights=True))
    home = at_home(model, part)
    light = part.more["weight"] < 0.3
    assert home[light].mean() < 0.55 < 0.85 < home[part.more["weight"] > 0.9].mean()


def test_drift_changes_tastes_from_day_to_day() -> None:
    for drift, least, most in ((0.0, 0.999, 1), (0.5, 0.55, 0.8)):
        model, part = drawn(Extras(windows=2, drift=drift))
        home = at_home(model, part)
        assert least <= home[part.window_M == 0].mean() <= most
        assert home[part.window_M == 1].mean() > 0.999


def test_best_possible_in_a_context_against_a_full_ranking() -> None:
    """Every slot's probability written out, for each user, and ranked."""
    extras = Extras(kinds=True, context=True, new_items=0.3)
    model, part = drawn(extras, users=90, noise=0.1, disliked=0.1)
    is_new_I = ItemFeatures(model, extras, 1).birth_I == 1
    draws, recalls, of_new = part.draws, [], []
    for user in np.flatnonzero(part.is_held_U):
        start, test = draws.start_U[user], draws.start_U[user + 1] - 1
        device, minutes = (part.more[f"context.{name}"][test] for name in ("device", "minutes"))
        chance = np.full(model.items, 1e-12)
        for taste, weight in zip(draws.taste_UT[user].tolist(), TASTE_WEIGHTS, strict=True):
            weight *= DEVICE_BOOST if device - 1 == taste % 3 else 1
            if np.isfinite(minutes):
                z = np.log(minutes / MIDDLE_MINUTES) / MINUTES_SPREAD
                weight *= np.exp(z if taste // 3 % 2 == 0 else -z)
            for slot in range(taste, model.items, model.clusters):
                chance[slot] += weight * model.chance_of_rank[slot // model.clusters]
        gone = [row for row in range(start, test) if part.kind_M[row] in (0, 3)]
        chance[draws.slot_M[gone]] = -1
        recalls.append(draws.slot_M[test] in np.argsort(-chance, kind="stable")[:10])
        of_new += [recalls[-1]] * int(is_new_I[draws.slot_M[test]])
    for among_I, expected in ((None, recalls), (is_new_I, of_new)):
        summary = best_possible(model, part, 2, 90, among_I).summary()
        assert summary["users"] == len(expected) > 15
        assert summary["recall@10"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_raw_source_prepared_gives_the_same_events(planted: Dataset, tmp_path: Path) -> None:
    synth(SynthArguments(out=str(tmp_path / "raw"), raw=True, **SIZES, **ALL), show=False)
    prepare(
        PrepareArguments(
            source=str(tmp_path / "raw/interactions"),
            out=str(tmp_path / "prepared"),
            items=str(tmp_path / "raw/items.parquet"),
            users=str(tmp_path / "raw/users.parquet"),
            event_column="event",
            event_weights=("buy=10", "cart=3", "view=1", "dislike=negative"),
            weight_column="weight",
            context=("device", "minutes"),
            window="day",
            split="leave-last-out",
        )
    )
    prepared = Dataset.load(tmp_path / "prepared")
    assert prepared.kinds == planted.kinds and prepared.num_items == planted.num_items
    assert described(prepared) == described(planted)
    for window in range(3):
        assert prepared.windows[window].events == planted.windows[window].events


def described(dataset: Dataset) -> set[tuple]:
    """Events by raw ids, with all that is known of them; splits of users of three buys."""
    rows = all_events(dataset)
    user, item = (
        pq.read_table(dataset.file(f"{side}s.parquet"))["raw_id"].to_numpy()
        for side in ("user", "item")
    )
    words = pq.read_table(dataset.file("attributes.parquet")).to_pylist()
    device = {each["row"]: each["value"] or "" for each in words if each["name"] == "device"}
    text = Vectors(dataset, dataset.attributes["item.text"]).take(rows.item_E)
    buys_R = np.bincount(rows.row_E[rows.kind_E == 0], minlength=len(rows.user_R))
    split_E = np.where(buys_R[rows.row_E] >= 3, rows.split_E, -1)
    assert rows.time_E is not None
    return set(
        zip(
            user[rows.user_R[rows.row_E]].tolist(),
            item[rows.item_E].tolist(),
            rows.kind_E.tolist(),
            rows.time_E.tolist(),
            split_E.tolist(),
            rows.more["weight"].tolist(),
            [device[each] for each in rows.more["context.device"].tolist()],
            np.nan_to_num(rows.more["context.minutes"], nan=-1).tolist(),
            text[:, 0].tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new_items": 0.5, "windows": 2}, "--new-items 0.5 on 2 days make 1.00 of the catalog"),
        ({"drift": 0.1}, "--drift 0.1 goes from day to day"),
        ({"vectors": -1}, "--vectors -1 must be at least 0"),
        ({"windows": 0}, "--windows 0 must be at least 1"),
        ({"new_items": 1.0}, "--new-items 1 must be from 0 to below 1"),
    ],
)
def test_wrong_arguments(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynthArguments(out="out", **{**SIZES, **changes})
