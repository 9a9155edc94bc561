"""`--extend`: rows stay where they are, and the result is that of preparing all data at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.planted import Row, interactions, make, queries, table, write_csv
from trainer.base.split_names import SPLITS
from trainer.data.schema import Dataset
from trainer.files.whole_folder import OWNER, PREFIX

OLD = [
    Row(u, 100 + (3 * u + i) % 20, 1 + (u + i) % 5, 10 * i + u) for i in range(14) for u in range(8)
]
NEW = [
    Row(u, 100 + (5 * u + 3 * i) % 30, 1 + (u * i) % 5, 1000 + 10 * i + u)
    for i in range(9)
    for u in range(4, 14)
]
ITEMS = "item,title,genre,price\n"


def raw(dataset: Dataset, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with raw ids, sorted."""
    users = {row["user"]: row["raw_id"] for row in table(dataset, "users")}
    items = {row["item"]: row["raw_id"] for row in table(dataset, "items")}
    changed = []
    for row in rows:
        other = {**row, "user": users[row["user"]]}
        if "item" in row:
            other["item"] = items[row["item"]]
        for name in ("history", "disliked", "targets", "disliked_targets"):
            if name in row:
                other[name] = [items[each] for each in row[name]]
        if "seen" in row:
            other["seen"] = sorted(items[each] for each in row["seen"])
        changed.append(other)
    return sorted(changed, key=lambda row: (row["user"], row.get("position", 0)))


def side_file(path: Path, ids: range, note: str) -> str:
    path.write_text(ITEMS + "".join(f"{n},{note} {n},{note}{n % 3},{n * n}\n" for n in ids))
    return str(path)


def test_equals_preparing_all_at_once(tmp_path: Path) -> None:
    """But for splits: those of the new events are made among them alone."""
    pairs = {(row.user, row.item) for row in OLD}
    new = [row for row in NEW if (row.user, row.item) not in pairs]
    old = make(write_csv(tmp_path / "old.csv", OLD), tmp_path / "old", split="leave-last-out")
    both = make(
        write_csv(tmp_path / "both.csv", OLD + new), tmp_path / "both", split="leave-last-out"
    )
    extended = make(
        write_csv(tmp_path / "new.csv", new), tmp_path / "extended", extend=str(tmp_path / "old")
    )
    assert extended.parent_digest == old.digest
    assert extended.source["rows"] == both.source["rows"]
    everything = [
        {
            (row["user"], row["item"], row["feedback"], row["timestamp"])
            for split in SPLITS
            for row in raw(each, interactions(each, split))
        }
        for each in (extended, both)
    ]
    assert everything[0] == everything[1]
    assert sum(each.rows for each in extended.splits.values()) == len(everything[0])
    # What was held out is train by now, and the new events alone are held out.
    first_new = min(row.timestamp or 0 for row in new)
    for split in ("validation", "test"):
        rows = interactions(extended, split)
        assert rows and all(row["timestamp"] >= first_new for row in rows)
        assert queries(extended, split)
    counts = {row["raw_id"]: row["count_of_all"] for row in table(both, "items")}
    assert {row["raw_id"]: row["count_of_all"] for row in table(extended, "items")} == counts


@pytest.mark.parametrize("rule", ["leave-last-out", "time", "random"])
def test_old_rows_stay(tmp_path: Path, rule: str) -> None:
    old = make(write_csv(tmp_path / "old.csv", OLD), tmp_path / "old", split=rule, test_share=0.2)
    before = {name: table(old, name) for name in ("users", "items")}
    trained = {(row["user"], row["item"]) for row in interactions(old, "train")}
    extended = make(
        write_csv(tmp_path / "new.csv", NEW), tmp_path / "old", extend=str(tmp_path / "old")
    )
    assert not (tmp_path / "old.old").exists() and not (tmp_path / "old.partial").exists()
    assert extended.parent_digest == old.digest != extended.digest
    assert extended.num_users == 14 and extended.num_items == 30
    for name, rows in before.items():
        after = table(extended, name)
        assert [row["raw_id"] for row in after[: len(rows)]] == [row["raw_id"] for row in rows]
    held_out = {
        (row["user"], row["item"])
        for split in ("validation", "test")
        for row in interactions(extended, split)
    }
    assert not held_out & trained
    kept = sum(each.rows for each in extended.splits.values())
    assert kept + sum(extended.dropped.values()) == extended.source["rows"] == len(OLD) + len(NEW)


def test_attributes_and_titles(tmp_path: Path) -> None:
    old = make(
        write_csv(tmp_path / "old.csv", OLD),
        tmp_path / "old",
        items=side_file(tmp_path / "old_items.csv", range(100, 120), "a"),
    )
    extended = make(
        write_csv(tmp_path / "new.csv", NEW),
        tmp_path / "extended",
        extend=str(tmp_path / "old"),
        items=side_file(tmp_path / "new_items.csv", range(119, 130), "b"),
    )
    was = {row["raw_id"]: row for row in table(old, "items")}
    now = {row["raw_id"]: row for row in table(extended, "items")}
    for item in range(100, 119):
        for name in ("title", "genre", "price"):
            assert now[item][name] == was[item][name]
    assert now[119]["title"] == "b 119"  # the new file's word holds
    names = {
        row["row"]: row["value"] for row in table(extended, "attributes") if row["name"] == "genre"
    }
    assert {names[each] for each in range(1, 4)} == {"a0", "a1", "a2"}
    assert names[now[120]["genre"]] == "b0"
    plain = make(
        write_csv(tmp_path / "new.csv", NEW), tmp_path / "plain", extend=str(tmp_path / "old")
    )
    assert [each.name for each in plain.item_attributes] == ["genre", "price"]
    assert {row["raw_id"]: row["genre"] for row in table(plain, "items")}[129] == 0


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (NEW, {"history_length": 5}, r"--history-length 5 is not the extended dataset's \(20\)"),
        (NEW, {"split": "time"}, r"--split time is not the extended dataset's \(leave-last-out\)"),
        ([Row(f"x{n}", n, 5, n) for n in range(9)], {}, r"user ids .* integers, the new ones are"),
        ([Row(n, 100 + n, 5) for n in range(9)], {}, r"no timestamp column, the extended dataset"),
        ([Row(n, 100 + n, None, n) for n in range(9)], {}, r"no rating column"),
    ],
)
def test_refused(tmp_path: Path, rows: list[Row], arguments: dict[str, Any], message: str) -> None:
    old = make(write_csv(tmp_path / "old.csv", OLD), tmp_path / "old")
    with pytest.raises(ValueError, match=message):
        make(
            write_csv(tmp_path / "new.csv", rows),
            tmp_path / "old",
            extend=str(tmp_path / "old"),
            **arguments,
        )
    assert Dataset.load(tmp_path / "old", verify="digest") == old


def test_nothing_to_extend(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "new.csv", NEW)
    with pytest.raises(ValueError, match=r"is no prepared dataset"):
        make(source, tmp_path / "out", extend=str(tmp_path / "old"))


def test_killed_between_two_renames(tmp_path: Path) -> None:
    make(write_csv(tmp_path / "old.csv", OLD), tmp_path / "old")
    beside = tmp_path / f"{PREFIX}dead"
    beside.mkdir()
    (beside / OWNER).write_text('{"out": "old"}')
    (tmp_path / "old").rename(beside / "old")
    new = write_csv(tmp_path / "new.csv", NEW)
    extended = make(new, tmp_path / "old", extend=str(tmp_path / "old"))
    assert extended.num_users == 14 and not beside.exists()
