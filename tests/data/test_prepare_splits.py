"""Split rules, determinism, and what dataset.json refuses."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.data.planted import Row, interactions, make, queries, some_rows, table, write_csv
from tests.definitions import events_of
from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.loader.loader import Loader


def splits_by_user(dataset: Dataset) -> dict[int, list[tuple[int, str, int]]]:
    """(timestamp, split, feedback) of each user's rows in time order."""
    found = defaultdict(list)
    for split in dataset.splits:
        for row in interactions(dataset, split):
            found[row["user"]].append((row["timestamp"], split, row["feedback"]))
    return {user: sorted(rows) for user, rows in found.items()}


def test_last_positives(tmp_path: Path) -> None:
    rows = [*some_rows(), Row(50, 100, None, 1), Row(50, 101, None, 2)]
    dataset = make(write_csv(tmp_path / "rows.csv", rows), tmp_path / "out")
    for own in splits_by_user(dataset).values():
        names = [split for _, split, _ in own]
        if len(names) == 2:
            assert names == ["train", "train"]  # fewer than three positives
        else:
            assert names == ["train"] * 6 + ["validation", "test"]


def test_last_share_by_default_with_dislikes(tmp_path: Path) -> None:
    rows = [Row(u, i, 1 + (u + i) % 5, 10 * i + u) for i in range(40) for u in range(10)]
    dataset = make(write_csv(tmp_path / "rows.csv", rows), tmp_path / "out")
    assert dataset.split_rule["test_share"] == 0.1
    assert dataset.splits["test"].disliked > 0
    for own in splits_by_user(dataset).values():
        order = [("train", "validation", "test").index(split) for _, split, _ in own]
        assert order == sorted(order)
        assert 2 <= order.count(2) <= 4 and 2 <= order.count(1) <= 4  # a tenth of 32 rows


def test_time(tmp_path: Path) -> None:
    rows = [Row(u, (u + 3 * i) % 50, None, i // 2) for i in range(50) for u in range(10)]
    dataset = make(
        write_csv(tmp_path / "rows.csv", rows),
        tmp_path / "out",
        split="time",
        test_share=0.2,
        validation_share=0.1,
    )
    latest = {
        split: [row["timestamp"] for row in interactions(dataset, split)]
        for split in dataset.splits
    }
    assert max(latest["train"]) < min(latest["validation"])
    assert max(latest["validation"]) < min(latest["test"])
    assert min(latest["validation"]) == dataset.split_rule["validation_from"]
    assert [each.rows for each in dataset.splits.values()] == [340, 60, 100]


def lists(folder: Path, first: int = 0) -> Path:
    """LightGCN's lists: 12 users of ten train items and two test items, `first` on."""
    folder.mkdir()
    for name, places in (("train", range(10)), ("test", range(10, 12))):
        lines = [
            " ".join(map(str, (user, *((first + user + 7 * k) % 97 for k in places))))
            for user in range(12)
        ]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


def test_in_order(tmp_path: Path) -> None:
    """Rows' places are times: what came last is held out, and a history is what came before."""
    dataset = make(
        lists(tmp_path / "lists"),
        tmp_path / "out",
        in_order=True,
        validation_share=0.2,
        history_length=4,
    )
    assert dataset.has_timestamps and dataset.source["in_order"]
    assert dataset.split_rule["validation"] == "last"
    item_at = {user: [(user + 7 * k) % 97 for k in range(12)] for user in range(12)}
    users = [row["raw_id"] for row in table(dataset, "users")]
    items = [row["raw_id"] for row in table(dataset, "items")]
    for split, places in (("train", range(8)), ("validation", (8, 9)), ("test", (10, 11))):
        rows = sorted(interactions(dataset, split), key=lambda row: row["timestamp"])
        for user in range(12):
            own = [row for row in rows if users[row["user"]] == user]
            assert [items[row["item"]] for row in own] == [item_at[user][k] for k in places]
            if split == "train":
                histories = [[items[each] for each in row["history"]] for row in own]
                assert histories == [item_at[user][max(0, k - 4) : k] for k in places]
    for split, end in (("validation", 8), ("test", 10)):
        for row in queries(dataset, split):
            user = users[row["user"]]
            assert [items[each] for each in row["history"]] == item_at[user][end - 4 : end]


def test_in_order_is_extended_in_order(tmp_path: Path) -> None:
    make(lists(tmp_path / "old_lists"), tmp_path / "old", in_order=True, validation_share=0.2)
    new = lists(tmp_path / "new_lists", first=40)
    extended = make(new, tmp_path / "new", extend=str(tmp_path / "old"))
    assert extended.has_timestamps and extended.split_rule["validation"] == "last"
    train = interactions(extended, "train")
    new_rows = [row for row in train if row["timestamp"] >= 12 * 12]
    assert new_rows and all(len(row["history"]) >= 8 for row in new_rows)


def test_random_shares_hold_for_short_users(tmp_path: Path) -> None:
    rows = [Row(u, (7 * u + i) % 40) for u in range(400) for i in range(4)]
    dataset = make(
        write_csv(tmp_path / "rows.csv", rows),
        tmp_path / "out",
        split="random",
        test_share=0.2,
        validation_share=0.1,
    )
    assert 280 <= dataset.splits["test"].rows <= 360
    assert 120 <= dataset.splits["validation"].rows <= 200
    train = Counter(row["user"] for row in interactions(dataset, "train"))
    assert len(train) == 400  # nobody is without a training row


def test_digest_is_free_of_threads_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.prepare.staging.ROWS_A_PARTITION", 800)
    rows = [Row(u, (u * i) % 97, 1 + i % 5, i % 7) for u in range(60) for i in range(70)]
    source = write_csv(tmp_path / "rows.csv", rows)
    first = make(source, tmp_path / "first")
    assert len(first.windows[0].files) > 2
    again = make(source, tmp_path / "again", threads=4, memory_limit="1GB")
    assert again.digest == first.digest
    assert make(source, tmp_path / "other", seed=1).digest != first.digest


def test_a_users_events_lie_together_and_in_order(tmp_path: Path) -> None:
    """Whatever the order of the source: users ascend, their times too."""
    rows = [Row(u, i, None, (37 * i) % 40) for i in range(40) for u in range(50)]
    dataset = make(write_csv(tmp_path / "rows.csv", rows), tmp_path / "out")
    events = events_of(dataset)
    assert events == sorted(events, key=lambda each: (each.user, each.time))
    assert len(events) == 2000


def test_batches_mix_users(tmp_path: Path) -> None:
    rows = [Row(u, i, None, 100 * u + i) for u in range(50) for i in range(40)]
    dataset = make(write_csv(tmp_path / "rows.csv", rows), tmp_path / "out")
    loader = Loader(dataset, local_batch_size=50)
    users = [user for batch in loader.epoch(0) for user in batch.user_B.tolist() if user >= 0]
    neighbours = sum(a == b for a, b in itertools.pairwise(users))
    assert neighbours < 0.06 * len(users)  # 1 in 50 by chance


@pytest.mark.parametrize(("keep", "expected"), [(None, 7), ("last", 900)])
def test_repeated_rows(tmp_path: Path, keep: str | None, expected: int) -> None:
    rows = [*some_rows(), Row(0, 100, None, 7), Row(0, 100, None, 900)]
    rows = [row for row in rows if row != Row(0, 100, None, 0)]
    dataset = make(write_csv(tmp_path / "rows.csv", rows), tmp_path / "out", duplicates=keep)
    assert dataset.dropped == {"duplicate": 1}
    users = {row["raw_id"]: row["user"] for row in table(dataset, "users")}
    items = {row["raw_id"]: row["item"] for row in table(dataset, "items")}
    times = [
        row["timestamp"]
        for split in dataset.splits
        for row in interactions(dataset, split)
        if (row["user"], row["item"]) == (users[0], items[100])
    ]
    assert times == [expected]


def test_the_last_rating_holds(tmp_path: Path) -> None:
    rows = [Row(u, i, 5, i) for u in range(4) for i in range(20)] + [Row(1, 3, 1, 99)]
    dataset = make(write_csv(tmp_path / "rows.csv", rows), tmp_path / "out")
    assert sum(each.disliked for each in dataset.splits.values()) == 1
    assert dataset.dropped == {"duplicate": 1}


class TestDescription:
    """Dataset.load."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Dataset:
        return make(write_csv(tmp_path / "rows.csv", some_rows()), tmp_path / "out")

    def test_round_trip(self, made: Dataset) -> None:
        assert Dataset.load(made.path) == made
        assert Dataset.load(f"file://{made.path}").num_users == made.num_users

    def test_no_dataset(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no prepared dataset.*tandem prepare"):
            Dataset.load(tmp_path)

    def test_changed_file(self, made: Dataset) -> None:
        path = Path(made.path, "items.parquet")
        contents = bytearray(path.read_bytes())
        contents[10] ^= 1
        path.write_bytes(contents)
        Dataset.load(made.path)  # sizes agree
        with pytest.raises(ValueError, match=r"items.parquet does not have the SHA-256"):
            Dataset.load(made.path, verify="digest")
        path.write_bytes(contents[:-1])
        with pytest.raises(ValueError, match=r"items.parquet has \d+ bytes, dataset.json says"):
            Dataset.load(made.path)
        path.unlink()
        with pytest.raises(ValueError, match=r"items.parquet is missing"):
            Dataset.load(made.path)

    def test_other_version(self, made: Dataset) -> None:
        path = Path(made.path, "dataset.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
        with pytest.raises(ValueError, match=r"schema version 99, this Tandem reads 2"):
            Dataset.load(made.path)

    @pytest.mark.parametrize(
        ("source", "command"),
        [({"format": "synth"}, "tandem synth"), ({"format": "csv"}, "tandem prepare SOURCE")],
    )
    def test_the_form_before_events(
        self, tmp_path: Path, source: dict[str, str], command: str
    ) -> None:
        """Whatever else it holds: its fields are not those of today."""
        split = {"rows": 9, "positives": 9, "files": ["train/part-00000.parquet"], "queries": 0}
        old = {"schema_version": 1, "num_users": 3, "splits": {"train": split}, "source": source}
        (tmp_path / "dataset.json").write_text(json.dumps(old))
        told = rf"schema version 1, this Tandem reads 2: remove it .*`{command} {tmp_path}`$"
        with pytest.raises(Mistake, match=told):
            Dataset.load(tmp_path)

    def test_cut_short(self, made: Dataset) -> None:
        path = Path(made.path, "dataset.json")
        path.write_text(path.read_text()[:-20])
        with pytest.raises(ValueError, match=r"dataset.json cannot be read"):
            Dataset.load(made.path)
