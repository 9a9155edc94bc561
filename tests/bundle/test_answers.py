"""Answers beside a ranking of all items by hand, with every filter, precision and way to ask."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bundle.made import make_bundle
from trainer.base.mistake import Mistake
from trainer.bundle import fold_in
from trainer.bundle.answers import answer, prepare, prepare_similar, recommend, similar
from trainer.bundle.asked import Ask, AskSimilar, Filters, Recommendations
from trainer.bundle.fold_in import centre_of
from trainer.bundle.manifest import MANIFEST, describe
from trainer.bundle.names_file import write_names
from trainer.bundle.opened_bundle import Bundle
from trainer.bundle.vectors.passing import Passing
from trainer.retrieval.recommend import as_lists, meant_item

ITEMS = 500


@pytest.fixture(scope="module", params=["float32", "float16", "int8", "dot"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    kind = request.param
    path = tmp_path_factory.mktemp("bundle") / "B"
    if kind == "dot":
        return Bundle(make_bundle(path, ITEMS, similarity="dot"))
    return Bundle(make_bundle(path, ITEMS, precision=kind))


@pytest.fixture(params=[64, 1 << 16])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of several chunks, and of one."""
    size = request.param
    chunks = Passing.chunks
    monkeypatch.setattr(Passing, "chunks", lambda self, _: chunks(self, size))


FILTERS = {
    "none": Filters(),
    "where": Filters(where="genre = 'Jazz' AND price < 20"),
    "most pass": Filters(where="price IS NULL OR price > 2"),
    "lists": Filters(where="list_contains(tags, 'old')"),
    "nothing passes": Filters(where="price < 0"),
    "only": Filters(only=tuple(f"i{row}" for row in range(3, 400, 7))),
    "exclude": Filters(exclude=tuple(f"i{row}" for row in range(0, 450, 2))),
    "brands": Filters(max_per={"brand": 2}),
    "one a brand": Filters(max_per={"brand": 1}),
    "brand and genre": Filters(max_per={"brand": 3, "genre": 4}),
    "all": Filters(
        "price < 80", tuple(f"i{row}" for row in range(450)), ("i1", "i7", "i30"), {"brand": 1}
    ),
}


@cache
def attributes(path: Path) -> list[dict]:
    return pq.read_table(path / "items/attributes.parquet").to_pylist()


def passes(bundle: Bundle, filters: Filters) -> np.ndarray:
    """Items that pass, bool, row by row in Python."""
    rows = attributes(bundle.path)
    wheres = {
        None: lambda r: True,
        "genre = 'Jazz' AND price < 20": lambda r: (
            r["genre"] == "Jazz" and r["price"] is not None and r["price"] < 20
        ),
        "price IS NULL OR price > 2": lambda r: r["price"] is None or r["price"] > 2,
        "list_contains(tags, 'old')": lambda r: "old" in r["tags"],
        "price < 0": lambda r: False,
        "price < 80": lambda r: r["price"] is not None and r["price"] < 80,
    }
    return np.array(
        [
            wheres[filters.where](row)
            and (filters.only is None or row["item"] in filters.only)
            and row["item"] not in filters.exclude
            for row in rows
        ]
    )


def by_hand(
    bundle: Bundle, score_I: np.ndarray, left_out: set[int], filters: Filters, k: int
) -> list[int]:
    """Down the whole ranking, one by one."""
    rows = attributes(bundle.path)
    passing = passes(bundle, filters) & bundle.known_I
    taken: dict[tuple[str, str], int] = {}
    found: list[int] = []
    for row in np.lexsort((np.arange(ITEMS), -score_I.astype(np.float32))):
        groups = [(c, rows[row][c]) for c in filters.max_per if rows[row][c] is not None]
        full = any(taken.get(each, 0) >= filters.max_per[each[0]] for each in groups)
        if not passing[row] or int(row) in left_out or full or len(found) == k:
            continue
        found.append(int(row))
        for each in groups:
            taken[each] = taken.get(each, 0) + 1
    return found


def scores(bundle: Bundle, query_D: np.ndarray) -> np.ndarray:
    """float32 products, summed in float64: what the search promises."""
    item_ID = bundle.items.at(slice(0, ITEMS))
    return (item_ID * query_D).sum(axis=1, dtype=np.float64).astype(np.float32)


def rows_of(found: Recommendations) -> list[int]:
    return [item.row for item in found.items]


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.usefixtures("chunks")
def test_a_user_is_answered_as_by_hand(bundle: Bundle, filters: Filters) -> None:
    for user, k in ((0, 10), (7, 1), (11, 600)):
        found = recommend(bundle, Ask(user=f"u{user}", k=k, filters=filters))
        score_I = scores(bundle, bundle.users.at(np.array([user]))[0])  # type: ignore[union-attr]
        seen = set(bundle.list_of("seen", user).tolist())
        wanted = by_hand(bundle, score_I, seen, filters, min(k, ITEMS))
        assert rows_of(found) == wanted
        assert found.scores == score_I[wanted].tolist()
        assert [item.raw_id for item in found.items] == [f"i{row}" for row in wanted]
        assert (found.note is None) == bool(wanted)


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_items_like_one_are_as_by_hand(bundle: Bundle, filters: Filters) -> None:
    row = int(np.flatnonzero(bundle.known_I)[60])
    found = similar(bundle, AskSimilar(f"i{row}", 15, filters))
    item_ID = bundle.items.at(slice(0, ITEMS))
    unit_ID = item_ID / np.linalg.norm(item_ID, axis=1, keepdims=True)
    cosine_I = unit_ID.astype(np.float64) @ unit_ID[row]
    wanted = by_hand(bundle, np.round(cosine_I, 5), {row}, filters, 15)
    np.testing.assert_allclose(found.scores, cosine_I[wanted], atol=2e-5)
    assert [item.row for item in found.history] == [row]


def test_many_at_once_are_answered_as_one_by_one(bundle: Bundle) -> None:
    asks = [
        Ask(user=f"u{user}", k=3 + user % 5, filters=filters)
        for user in range(20)
        for filters in FILTERS.values()
    ]
    alone = [recommend(bundle, ask) for ask in asks]
    together = answer(bundle, [prepare(bundle, ask) for ask in asks])
    assert together == alone
    mixed = [prepare(bundle, asks[0]), prepare_similar(bundle, AskSimilar("i9"))]
    assert answer(bundle, mixed) == [alone[0], similar(bundle, AskSimilar("i9"))]


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_somebody_of_whom_nothing_is_known_is_shown_what_is_popular(
    bundle: Bundle, filters: Filters
) -> None:
    user = len(bundle.user_names) - 1
    found = recommend(bundle, Ask(user=f"u{user}", k=8, filters=filters))
    seen = set(bundle.list_of("seen", user).tolist())
    taken = np.array(bundle.count_I) > 0
    everything = Bundle(bundle.path)
    everything.known_I = taken  # popularity asks for interactions alone
    wanted = by_hand(everything, np.array(bundle.count_I), seen, filters, 8)
    assert rows_of(found) == wanted and found.scores == bundle.count_I[wanted].tolist()
    assert "most popular items" in (found.note or "")


def test_an_item_of_which_nothing_is_known_is_like_nothing(bundle: Bundle) -> None:
    row = int(np.flatnonzero(~bundle.known_I)[0])
    found = similar(bundle, AskSimilar(f"i{row}"))
    assert found.items == [] and "unknown" in (found.note or "")


def test_ids_that_are_no_items_are_counted(bundle: Bundle) -> None:
    found = recommend(bundle, Ask(user="u1", filters=Filters(exclude=("i3", "x", "y"))))
    assert found.note == "2 of 3 ids of exclude are no items"
    found = recommend(bundle, Ask(user="u1", filters=Filters(only=("x",))))
    assert found.items == [] and "no item passes" in (found.note or "")


def test_somebody_new_before_a_model_of_ids_alone_is_made_of_items(bundle: Bundle) -> None:
    """By the formula of fold_in.py, over all rows; what nothing is known of counts for nothing."""
    item_ID = bundle.items.at(slice(0, ITEMS)).astype(np.float64)
    mean_D = item_ID[bundle.known_I].mean(0)
    known = np.flatnonzero(bundle.known_I)[[3, 40, 120]]
    unknown = np.flatnonzero(~bundle.known_I)[:1]
    named = tuple((f"i{row}",) for row in (*known, *unknown))
    weight_n = np.maximum(bundle.count_I[known], 1) ** -0.25
    query_D = (weight_n[:, None] * (item_ID[known] - mean_D)).sum(0)
    query_D /= np.linalg.norm(query_D)
    left_out = {*known.tolist(), *unknown.tolist()}
    wanted = by_hand(bundle, scores(bundle, query_D.astype(np.float32)), left_out, Filters(), 5)
    found = recommend(bundle, Ask(items=named, k=5))
    assert [item.row for item in found.items] == wanted
    assert "the mean of these items' vectors" in (found.note or "")
    alone = recommend(bundle, Ask(items=((f"i{unknown[0]}",),), k=3))
    popular = [row for row in bundle.by_popularity if row not in unknown][:3]
    assert [item.row for item in alone.items] == popular
    assert "mean of these items" not in (alone.note or "")


def test_the_mean_of_a_large_catalog_is_that_of_a_part(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold_in, "ROWS_OF_MEAN", ITEMS // 2)
    rows = np.linspace(0, ITEMS - 1, ITEMS // 2).astype(np.int64)
    wanted_D = bundle.items.at(rows[bundle.known_I[rows]]).mean(0)
    np.testing.assert_allclose(centre_of(bundle.items, bundle.known_I), wanted_D, rtol=1e-6)
    assert not centre_of(bundle.items, np.zeros(ITEMS, dtype=bool)).any()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (Ask(), "say who asks"),
        (Ask(user="u1", items=(("i1",),)), "either a user or items"),
        (Ask(user="x17"), "no user 'x17' in .*did you mean u17"),
        (Ask(items=(("i1",),), features={"age": 3}), "does not read histories"),
        (Ask(user="u1", context={"hour": 3}), "context 'hour': the model reads no context"),
        (Ask(user="u1", features={"age": 3}), "feature 'age': the model reads no user attributes"),
        (Ask(user="u1", k=0), "at least 1"),
        (Ask(user="u1", filters=Filters(max_per={"brnd": 1})), "did you mean 'brand'"),
        (Ask(user="u1", filters=Filters(max_per={"tags": 1})), "several values"),
        (Ask(user="u1", filters=Filters(max_per={"brand": 0})), "at least 1"),
        (Ask(user="u1", filters=Filters(where="colour = 'red'")), "colour.*brand VARCHAR"),
    ],
)
def test_what_cannot_be_answered_says_why(bundle: Bundle, ask: Ask, words: str) -> None:
    with pytest.raises(Mistake, match=words):
        recommend(bundle, ask)


@pytest.fixture(scope="module")
def titled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With titles that would be markup, commands or another title's part."""
    path = make_bundle(tmp_path_factory.mktemp("titles") / "B", 40)
    titles = ["Star Wars", "Star Trek", "STAR WARS II", "[red]Up[/red] 🎬", "i1", *[None] * 35]
    names = pa.table({"raw_id": [f"i{n}" for n in range(40)], "title": titles})
    write_names(path / "items", names.to_batches(), names.schema)
    describe_again(path)
    return Bundle(path)


def describe_again(path: Path) -> None:
    """The manifest of files that were changed since."""
    manifest = json.loads((path / MANIFEST).read_text())
    facts = {k: v for k, v in manifest.items() if k not in ("form", "files", "digest")}
    (path / MANIFEST).unlink()
    describe(path, facts)


def test_an_item_is_found_by_its_title(titled: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert meant_item(titled, "star wars") == "i0", "a whole title goes before a part of one"
    assert meant_item(titled, "trek") == "i1"
    assert meant_item(titled, "[RED]") == "i3"
    assert meant_item(titled, "i1") == "i1", "an id goes before a title"
    assert meant_item(titled, "nothing") == "nothing"
    with pytest.raises(Mistake, match="'Star': 3 titles fit; give the id"):
        meant_item(titled, "Star")
    assert "STAR WARS II" in capsys.readouterr().err


def test_answers_as_json(titled: Bundle) -> None:
    found = as_lists(similar(titled, AskSimilar("i0", k=5)))
    assert json.loads(json.dumps(found)) == found
    assert {item["title"] for item in found["items"]} <= {
        *("Star Trek", "STAR WARS II", "[red]Up[/red] 🎬", "i1", None)
    }
    assert [each["item"] for each in found["history"]] == ["i0"]
