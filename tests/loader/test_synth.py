"""Planted data: the format, the promised numbers, and the same rows as `prepare` makes of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.planted import queries
from tests.definitions import Query, by_user, events_of, queries_of
from tests.loader.conftest import epoch_of, rows_of
from trainer.base.split_names import SPLITS
from trainer.data.schema import Dataset
from trainer.observe.progress import SilentProgress
from trainer.prepare.pipeline import PrepareArguments, prepare
from trainer.retrieval.queries import LIST_COLUMNS
from trainer.synth.planted import TASTE_WEIGHTS, PlantedModel
from trainer.synth.planted_rows import make_part
from trainer.synth.planted_tables import titles
from trainer.synth.planted_truth import CUTOFFS, best_possible
from trainer.synth.synth import SynthArguments, synth

SIZES = {"users": 400, "items": 300, "interactions": 8000, "seed": 3}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("synth") / "data"
    synth(SynthArguments(out=str(out), held_out=2, **SIZES))
    return Dataset.load(out, verify="digest")


def test_splits_times_and_counts(planted: Dataset) -> None:
    count = np.zeros(planted.num_items, dtype=int)
    for user, events in by_user(events_of(planted)).items():
        assert len({each.item for each in events}) == len(events), user
        times = [each.time for each in events]
        assert times == sorted(set(times))
        splits = [SPLITS.index(each.split) for each in events]
        assert splits == sorted(splits) and splits[-4:] == [1, 1, 2, 2]
        for each in events:
            if each.split == "train" and each.feedback == 1:
                count[each.item] += 1
    items = pq.read_table(planted.file("items.parquet"))
    assert items["count"].to_pylist() == count.tolist()
    assert sum(split.rows for split in planted.splits.values()) == pytest.approx(8000, rel=0.06)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_queries(planted: Dataset, split: str) -> None:
    expected = queries_of(planted, split)
    assert len(expected) == planted.splits[split].queries > 100
    found = [
        Query(row["user"], *(tuple(row[name]) for name in LIST_COLUMNS))
        for row in queries(planted, split)
    ]
    assert found == expected


def test_the_loader_reads_it(planted: Dataset) -> None:
    batches = epoch_of(
        planted,
        query_keys=("user", "history", "disliked", "user.country", "user.interests"),
        candidate_keys=("item", "item.genre", "item.moods"),
    )
    assert sum(float(batch.weight_B.sum()) for batch in batches) == planted.splits["train"].rows
    assert batches[0].features["item.moods"].lengths().max() > 1


def test_the_same_whatever_the_threads(planted: Dataset, tmp_path: Path) -> None:
    for name, threads, seed in (("a", 1, 3), ("b", 3, 3), ("c", 1, 4)):
        arguments = {**SIZES, "seed": seed}
        synth(SynthArguments(out=str(tmp_path / name), held_out=2, threads=threads, **arguments))
    digests = [Dataset.load(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] == planted.digest
    assert digests[2] != planted.digest


def test_best_possible_against_a_full_ranking() -> None:
    """Every slot's probability written out, for each user, and ranked."""
    model = PlantedModel(items=130, clusters=9, zipf_exponent=0.9, noise=0.1, disliked=0.1, seed=1)
    random = np.random.default_rng(0)
    draws = model.draw(random, random.integers(6, 20, 60))
    part = make_part(
        draws, row_of_slot_I=model.row_of_slot_I, random=random, held_out=2, held_share=1.0,
        first_user=0,
    )  # fmt: skip
    recalls, gains = [], []
    for user in range(60):
        start, stop = draws.start_U[user], draws.start_U[user + 1]
        targets = [draws.slot_M[row] for row in range(stop - 2, stop) if draws.liked_M[row]]
        if not targets:
            continue
        chance = np.full(130, 1e-12)
        for taste, weight in zip(draws.taste_UT[user], TASTE_WEIGHTS, strict=True):
            for slot in range(int(taste), 130, 9):
                chance[slot] += weight * model.chance_of_rank[slot // 9]
        chance[draws.slot_M[start : stop - 2]] = -1
        ranked = np.argsort(-chance, kind="stable")[:10].tolist()
        recalls.append(sum(slot in ranked for slot in targets) / len(targets))
        gain = sum(1 / np.log2(ranked.index(s) + 2) for s in targets if s in ranked)
        gains.append(gain / sum(1 / np.log2(k + 2) for k in range(len(targets))))
    summary = best_possible(model, part, 2, 60).summary()
    assert summary["users"] == len(recalls)
    assert summary["recall@10"] == pytest.approx(np.mean(recalls), abs=1e-5)
    assert summary["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-5)
    assert {f"recall@{cutoff}" for cutoff in CUTOFFS} <= set(summary)


def test_preferences_are_worth_learning(planted: Dataset) -> None:
    """The best possible recall is several times that of popularity."""
    best = json.loads(Path(planted.file("truth.json")).read_text())["best"]["test"]["recall@20"]
    count = np.array(pq.read_table(planted.file("items.parquet"))["count"])
    popular = np.argsort(-count, kind="stable")
    recalls = []
    for query in queries_of(planted, "test"):
        unseen = popular[~np.isin(popular, query.seen)][:20]
        recalls.append(np.isin(query.targets, unseen).mean())
    assert best > 2 * np.mean(recalls)


def test_popularity_is_zipf_and_noise_and_dislikes_have_their_shares() -> None:
    model = PlantedModel(
        items=20_000, clusters=40, zipf_exponent=1.0, noise=0.2, disliked=0.1, seed=5
    )
    draws = model.draw(np.random.default_rng(1), np.full(20_000, 6))
    liked = draws.liked_M
    assert liked.mean() == pytest.approx(0.9, abs=0.01)
    at_home = (draws.slot_M % 40)[:, None] == draws.taste_UT[draws.user_M]
    # Noise falls into one of the three tastes by chance, too; repeated heads are dropped, which
    # takes a few of the others: so a wide margin.
    assert at_home.any(axis=1)[liked].mean() == pytest.approx(0.8 + 0.2 * 3 / 40, abs=0.03)
    count = np.sort(np.bincount(draws.slot_M[liked] // 40, minlength=500))[::-1]
    slope = np.polyfit(np.log(np.arange(3, 60)), np.log(count[2:59]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.25)


def test_raw_source_prepared_gives_the_same_rows(tmp_path: Path) -> None:
    sizes = {**SIZES, "disliked": 0.0, "history_length": 7}
    synth(SynthArguments(out=str(tmp_path / "direct"), **sizes))
    synth(SynthArguments(out=str(tmp_path / "raw"), raw=True, **sizes))
    prepare(
        PrepareArguments(
            source=str(tmp_path / "raw/interactions"),
            out=str(tmp_path / "prepared"),
            items=str(tmp_path / "raw/items.parquet"),
            users=str(tmp_path / "raw/users.parquet"),
            split="leave-last-out",
            history_length=7,
        )
    )
    direct, prepared = (_raw_rows(tmp_path / name) for name in ("direct", "prepared"))
    assert direct == prepared


def _raw_rows(folder: Path) -> dict[str, set]:
    """(user, item, history) by raw ids for each split."""
    dataset = Dataset.load(folder)
    user = pq.read_table(dataset.file("users.parquet"))["raw_id"].to_pylist()
    item = pq.read_table(dataset.file("items.parquet"))["raw_id"].to_pylist()
    return {
        split: {
            (user[row[0]], item[row[1]], tuple(item[each] for each in row[3]))
            for row in rows_of(
                epoch_of(
                    dataset, splits=(split,), query_keys=("history",), candidate_keys=("item",)
                )
            )
        }
        for split in dataset.splits
    }


def test_titles_differ_within_a_genre() -> None:
    names = titles(np.arange(60_000), 40).to_pylist()
    assert len(set(names)) == len(names)
    assert titles(np.array([0]), 27).to_pylist() == ["Quiet Harbour (Jazz)"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": 0}, "--users 0 must be at least 1"),
        ({"items": 10}, "--items 10 must be at least 16"),
        ({"noise": 1.0}, "--noise 1 must be from 0"),
        ({"interactions": 700}, "make 1.8 a user: take more than 3"),
        ({"interactions": 80_000}, "make 200.0 a user: .* at most 75"),
        ({"clusters": 299}, "--clusters 299 must be from 4 to 150"),
        ({"threads": 0}, "--threads 0"),
    ],
)
def test_wrong_arguments(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynthArguments(out="out", **{**SIZES, **changes})


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        synth(SynthArguments(out=str(tmp_path), **SIZES))


@dataclass
class Told(SilentProgress):
    """Keeps what the user is told."""

    lines: list[str] = field(default_factory=list)

    def message(self, text: str) -> None:
        self.lines.append(text)

    def update(self, name: str, done: int, total: int | None = None, **values: float) -> None:
        self.lines.append(f"{name} {done}/{total}")


def test_it_says_what_it_does_before_it_is_long(tmp_path: Path) -> None:
    told = Told()
    synth(SynthArguments(str(tmp_path / "out"), users=40, items=30, interactions=240), told)
    assert told.lines[0] == "planting 30 items"
    assert told.lines[1] == "users 0/40" and told.lines[-1] == "writing items and attributes"
