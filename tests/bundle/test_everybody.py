"""Everybody's recommendations: each user once, as asked alone; gone on with after an end."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.bundle.made import make_bundle
from trainer.base.mistake import Mistake
from trainer.bundle.answers import recommend
from trainer.bundle.asked import Ask, Filters
from trainer.bundle.opened_bundle import Bundle
from trainer.retrieval import everybody
from trainer.retrieval.arguments import RecommendArguments
from trainer.retrieval.everybody import recommend_everybody
from trainer.retrieval.recommend import answer
from trainer.retrieval.search import everybody_batch

FILTERS = {
    "none": Filters(),
    "where": Filters(where="price < 40", exclude=("i1", "i2")),
    "few": Filters(only=("i1", "i7", "i33", "i400")),
    "nothing": Filters(where="price < 0"),
    "brands": Filters(max_per={"brand": 1}),
    "one genre": Filters(where="genre = 'Jazz'", max_per={"brand": 1, "genre": 3}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("everybody") / "B", users=37)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everybody_batch, "USERS_AT_ONCE", 4)
    monkeypatch.setattr(everybody.Plan.__init__, "__defaults__", (10,))
    torch.set_num_threads(1)


def written(out: Path) -> list[dict[str, Any]]:
    parts = sorted(out.glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def check(out: Path, bundle: Bundle, users: list[str], k: int, filters: Filters) -> None:
    rows = written(out)
    assert [row["user"] for row in rows] == users
    for row in rows:
        alone = recommend(bundle, Ask(row["user"], k=k, filters=filters))
        assert row["items"] == [item.raw_id for item in alone.items]
        np.testing.assert_allclose(row["scores"], alone.scores, rtol=1e-6)


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_each_is_answered_as_alone(place: Path, tmp_path: Path, filters: Filters) -> None:
    bundle, out = Bundle(place), tmp_path / "out"
    facts = recommend_everybody(bundle, str(out), None, 6, filters)
    assert facts["users"] == 37 and facts["parts"] == 4
    check(out, bundle, [f"u{row}" for row in range(37)], 6, filters)
    assert json.loads((out / "recommendations.json").read_text()) == facts
    assert sorted(each.name for each in out.iterdir() if "part" not in each.name) == [
        "plan.json",
        "recommendations.json",
    ]


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_of_any_precision(tmp_path: Path, precision: Any) -> None:
    bundle = Bundle(make_bundle(tmp_path / "B", users=12, precision=precision))
    recommend_everybody(bundle, str(tmp_path / "out"), None, 5, Filters())
    check(tmp_path / "out", bundle, [f"u{row}" for row in range(12)], 5, Filters())


def test_a_command_that_was_ended_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, out = Bundle(place), tmp_path / "out"
    table, made = everybody.EverybodyBatch.table, []

    def ended(self: Any, rows: np.ndarray) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(len(rows))
        return table(self, rows)

    monkeypatch.setattr(everybody.EverybodyBatch, "table", ended)
    with pytest.raises(KeyboardInterrupt):
        recommend_everybody(bundle, str(out), None, 5, Filters())
    assert len(list(out.glob("*.parquet"))) == 2 and not (out / "recommendations.json").exists()
    kept = {each: each.stat().st_mtime_ns for each in out.glob("*.parquet")}
    (out / ".part-00002.parquet-1").write_bytes(b"half")  # of a process that was killed
    monkeypatch.setattr(everybody.EverybodyBatch, "table", table)
    recommend_everybody(bundle, str(out), None, 5, Filters())
    assert {each: each.stat().st_mtime_ns for each in kept} == kept
    check(out, bundle, [f"u{row}" for row in range(37)], 5, Filters())


def test_processes_make_what_one_does(place: Path, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("u5\nu3\n\nu5\nu36\n" + "".join(f"u{row}\n" for row in range(10, 30)))
    out = tmp_path / "out"
    answer(RecommendArguments(str(place), all=True, users=str(users), out=str(out), workers=2, k=4))
    names = ["u5", "u3", "u36", *(f"u{row}" for row in range(10, 30))]
    check(out, Bundle(place), names, 4, Filters())


class Elsewhere:
    """Machines that do not share our disk."""

    is_here = False

    def __init__(self) -> None:
        self.shares: Mapping[str, Any] = {}

    def each(self, work: Any, many: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        self.shares = many
        yield from ((name, 1) for name in many)


def test_parts_that_are_not_seen_are_missed(place: Path, tmp_path: Path) -> None:
    machines = Elsewhere()
    with pytest.raises(Mistake, match="parts that other machines wrote are not seen from here"):
        recommend_everybody(
            Bundle(place),
            str(tmp_path / "out"),
            None,
            5,
            Filters(),
            launcher=machines,  # type: ignore[arg-type]
        )
    assert [share.parts for share in machines.shares.values()] == [[0], [1], [2], [3]]
    assert all(share.rows is None for share in machines.shares.values())
    assert not (tmp_path / "out/recommendations.json").exists()
    share = replace(machines.shares["1 of 4"], out=tmp_path / "not here")
    with pytest.raises(Mistake, match=r"not here is not there on \S+: RUN and OUT have to lie"):
        everybody.make_parts(share, None)  # type: ignore[arg-type]


def test_what_out_holds_is_left_alone(place: Path, tmp_path: Path) -> None:
    bundle, out = Bundle(place), tmp_path / "out"
    recommend_everybody(bundle, str(out), ["u1"], 5, Filters())
    for users, k, filters in (
        (["u2"], 5, Filters()),
        (["u1"], 6, Filters()),
        (["u1"], 5, Filters(where="price < 9")),
    ):
        with pytest.raises(Mistake, match="holds recommendations of another bundle"):
            recommend_everybody(bundle, str(out), users, k, filters)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x").touch()
    with pytest.raises(Mistake, match="holds something else"):
        recommend_everybody(bundle, str(tmp_path / "mine"), ["u1"], 5, Filters())
    for users, words in ((["u1", "u99"], "no user 'u99'"), (["u1"], "colour")):
        where = "colour = 1" if words == "colour" else None
        with pytest.raises(Mistake, match=words):
            recommend_everybody(bundle, str(tmp_path / "new"), users, 5, Filters(where=where))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give either --user"),
        ({"all": True}, "--all: give --out OUT"),
        ({"all": True, "user": "u1", "out": "o"}, "give either --user"),
        ({"user": "u1", "out": "o"}, "belong to --all"),
        ({"all": True, "out": "o", "context": ("hour=1",)}, "--all: no --context"),
        ({"all": True, "out": ""}, "--out is empty"),
    ],
)
def test_flags_that_do_not_go_together(given: dict[str, Any], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        RecommendArguments("R", **given)
