"""Answers of a bundle, one or several at once: who asks is looked up, items are filtered, ranked.

Shapes: Q asked at once, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.base.mistake import Mistake
from trainer.base.typed import nearest
from trainer.bundle.asked import Ask, AskSimilar, Filters, Item, Recommendations
from trainer.bundle.opened_bundle import Bundle
from trainer.bundle.query_program import Query
from trainer.bundle.quota import Quota
from trainer.bundle.titled import titled
from trainer.bundle.vectors.exact import Ranking, exact_best
from trainer.bundle.vectors.passing import Passing
from trainer.bundle.vocabularies import Value
from trainer.data.events.marks import items_of

BY_ITEMS = (
    "the model reads no histories: this follows the mean of these items' vectors "
    "(--model.use-history trains for it)"
)
NOTHING_OF_USER = (
    "no training interaction of this user, and nothing else that the model reads: these "
    "are the most popular items, with their training interactions as the score"
)
NOTHING_OF_ITEM = (
    "no training interaction with this item, and nothing else that the model reads: "
    "what it is like is unknown"
)


@dataclass(frozen=True)
class Prepared:
    """A question whose ids are looked up: what is left is arithmetic."""

    k: int
    vector_D: np.ndarray | None
    """None: `query` has to be encoded."""
    query: Query
    left_out: np.ndarray
    """Rows, ascending."""
    passing: Passing
    quota: Quota | None
    notes: tuple[str, ...] = ()
    item: int | None = None
    """Items like this one."""

    @property
    def by_cosine(self) -> bool:
        return self.item is not None


def recommend(bundle: Bundle, ask: Ask) -> Recommendations:
    """Items for somebody. Raises Mistake."""
    return answer(bundle, [prepare(bundle, ask)])[0]


def similar(bundle: Bundle, ask: AskSimilar) -> Recommendations:
    """Items whose vectors have the largest cosine with an item's. Raises Mistake."""
    return answer(bundle, [prepare_similar(bundle, ask)])[0]


def prepare(bundle: Bundle, ask: Ask) -> Prepared:
    """Look up who asks, and what passes.

    Raises:
        Mistake: for ids, values and expressions that are not as they must be.
    """
    if ask.user is None and not ask.items and not ask.features:
        raise Mistake("say who asks: a user, items, or features")
    if ask.user is not None and ask.items:
        raise Mistake("give either a user or items")
    folds_in = bool(ask.items) and not bundle.manifest.reads_history
    if folds_in and (ask.features or ask.context):
        raise Mistake(
            "items beside features or context: this model does not read histories; train with "
            "--model.use-history, or leave one of them out"
        )
    given = {
        f"{side}.{name}": value_of(bundle, side, name, value)
        for side, values in (("user", ask.features), ("context", ask.context))
        for name, value in values.items()
    }
    if ask.user is not None:
        row = bundle.user_names.row_of(ask.user)
        history, disliked, seen = (
            bundle.list_of(name, row) for name in ("history", "disliked", "seen")
        )
        query = Query(row, history, disliked, given, bool(ask.features))
    else:
        rows = np.array([bundle.item_names.row_of(each) for each in ask.items], dtype=np.int64)
        seen = np.unique(rows)
        query = Query(-1, rows, given=given, described=bool(ask.features))
    vector_D = None
    if query.user >= 0 and not given and bundle.users is not None:
        vector_D = bundle.users.at(np.array([query.user]))[0]
        if not bundle.user_known_U[query.user]:
            vector_D = np.zeros_like(vector_D)
    if folds_in:
        vector_D = bundle.query_from_items(query.history)
    found = _filtered(bundle, ask.k, ask.filters, vector_D, query, seen)
    by_items = folds_in and vector_D is not None and vector_D.any()
    return replace(found, notes=(*found.notes, BY_ITEMS)) if by_items else found


def prepare_similar(bundle: Bundle, ask: AskSimilar) -> Prepared:
    """As `prepare`, for items like one. Raises Mistake."""
    row = titled(bundle, ask.item) if ask.by_title else bundle.item_names.row_of(ask.item)
    vector_D = bundle.items.at(np.array([row]))[0]
    length = np.linalg.norm(vector_D)
    vector_D = vector_D / length if bundle.known_I[row] and length else np.zeros_like(vector_D)
    query = Query(history=np.array([row]))
    return _filtered(bundle, ask.k, ask.filters, vector_D, query, query.history, item=row)


def value_of(bundle: Bundle, side: str, name: str, value: Value) -> np.ndarray:
    """A feature as the tower reads it. Raises Mistake where the model does not, or never met it."""
    known = bundle.manifest.attributes(side)
    key = f"{side}.{name}"
    what = "context" if side == "context" else "feature"
    if name not in known or key not in bundle.program.reads:
        names = [each for each in known if f"{side}.{each}" in bundle.program.reads]
        none = f"no {side} attributes (model.{side}_attributes)"
        if side == "context":
            none = "no context (model.context_attributes)"
        raise Mistake(
            f"{what} {name!r:.60}: {nearest(name, names)}the model reads {', '.join(names) or none}"
        )
    words, attribute = bundle.vocabularies, known[name]
    match attribute.kind:
        case "number":
            return np.array([words.number_of(side, attribute, value)], dtype=np.float32)
        case "vector":
            return words.vector_of(side, attribute, value)
    return words.rows_of(side, attribute, value)


def _filtered(
    bundle: Bundle,
    k: int,
    filters: Filters,
    vector_D: np.ndarray | None,
    query: Query,
    seen: np.ndarray,
    item: int | None = None,
) -> Prepared:
    if k < 1:
        raise Mistake(f"k {k}: at least 1")
    k = min(k, bundle.manifest.items)
    notes: list[str] = []
    passing, left_out, quota = Passing(bundle.manifest.items), seen, None
    if filters.where is not None:
        passing = passing.with_mask(bundle.where.mask(filters.where))
    if filters.only is not None:
        passing = passing.only(_rows(bundle, "only", filters.only, notes))
    if filters.exclude:
        left_out = np.union1d(seen, _rows(bundle, "exclude", filters.exclude, notes))
    if filters.max_per:
        for column, limit in filters.max_per.items():
            if limit < 1:
                raise Mistake(f"max_per {column}={limit}: at least 1")
        codes = [bundle.codes(column) for column in filters.max_per]
        quota = Quota(codes, list(filters.max_per.values()))
    return Prepared(k, vector_D, query, left_out, passing, quota, tuple(notes), item)


def _rows(bundle: Bundle, name: str, ids: tuple[str, ...], notes: list[str]) -> np.ndarray:
    """Rows of the ids that are there; how many are not is noted."""
    rows = bundle.item_names.rows_of(ids)
    there = rows[rows >= 0]
    if len(there) < len(rows):
        notes.append(f"{len(rows) - len(there):,} of {len(rows):,} ids of {name} are no items")
    return there


def answer(bundle: Bundle, asked: Sequence[Prepared]) -> list[Recommendations]:
    """All of them; those that may be answered with the same items share one search."""
    vector_QD = _vectors(bundle, asked)
    found: dict[int, tuple[Ranking, str | None]] = {}
    together: dict[tuple[object, ...], list[int]] = {}
    for place, (each, vector_D) in enumerate(zip(asked, vector_QD, strict=True)):
        if not vector_D.any():
            nothing = Ranking(np.empty(0, np.int64), np.empty(0, np.float32))
            ranking = nothing if each.by_cosine else _popular(bundle, each)
            found[place] = ranking, NOTHING_OF_ITEM if each.by_cosine else NOTHING_OF_USER
        elif each.quota is not None:
            found[place] = _under_quota(bundle, each, vector_D), None
        else:
            mask, rows = each.passing.mask_I, each.passing.row_P
            same = (each.by_cosine, id(mask), None if rows is None else rows.tobytes())
            together.setdefault(same, []).append(place)
    for places in together.values():
        group = [asked[place] for place in places]
        passing = group[0].passing.with_mask(bundle.ranked.mask_I)
        rankings = _search(bundle, group, vector_QD[places], passing, [each.k for each in group])
        found |= {place: (each, None) for place, each in zip(places, rankings, strict=True)}
    return [_named(bundle, each, *found[place]) for place, each in enumerate(asked)]


def _vectors(bundle: Bundle, asked: Sequence[Prepared]) -> np.ndarray:
    """Query vectors, [Q, D]; those that are not stored are encoded at once."""
    vector_QD = np.zeros((len(asked), bundle.manifest.width), dtype=np.float32)
    missing = [place for place, each in enumerate(asked) if each.vector_D is None]
    if missing:
        vector_QD[missing] = bundle.program.encode([asked[place].query for place in missing])
    for place, each in enumerate(asked):
        if each.vector_D is not None:
            vector_QD[place] = each.vector_D
    return vector_QD


def _search(
    bundle: Bundle,
    group: Sequence[Prepared],
    vector_QD: np.ndarray,
    passing: Passing,
    count_Q: Sequence[int],
) -> list[Ranking]:
    left_out = [each.left_out for each in group]
    largest = bundle.manifest.largest_norm
    by_cosine = group[0].by_cosine
    return exact_best(bundle.items, vector_QD, passing, left_out, count_Q, largest, by_cosine)


def _under_quota(bundle: Bundle, each: Prepared, vector_D: np.ndarray) -> Ranking:
    """Down the whole ranking, each item that the quota takes: searched in rounds.

    A round asks for as many as are wanted still; all it finds is decided in order, since what
    ranks below decides nothing above. The next round goes without what is decided and without
    values that are full, so it is not asked for what the quota would refuse.
    """
    assert each.quota is not None
    passing = each.passing.with_mask(bundle.ranked.mask_I)
    rows: list[int] = []
    scores: list[float] = []
    decided = each.left_out
    while len(rows) < each.k:
        wanted = each.k - len(rows)
        open_now = passing.with_mask(each.quota.open())
        (round_,) = exact_best(
            bundle.items, vector_D[None], open_now, [decided], [wanted],
            bundle.manifest.largest_norm, each.by_cosine,
        )  # fmt: skip
        for row, score in zip(round_.row_k.tolist(), round_.score_k.tolist(), strict=True):
            if each.quota.takes(row):
                rows.append(row)
                scores.append(score)
        if len(round_.row_k) < wanted:
            break
        decided = np.union1d(decided, round_.row_k)
    return Ranking(np.array(rows, dtype=np.int64), np.array(scores, dtype=np.float32))


def _popular(bundle: Bundle, each: Prepared) -> Ranking:
    """The most popular items that pass, with their training interactions."""
    rows: list[int] = []
    order, start, size = bundle.by_popularity, 0, 4 * each.k + len(each.left_out)
    while start < len(order) and len(rows) < each.k:
        block = order[start : start + size]
        fits = each.passing.holds(block) & ~np.isin(block, each.left_out)
        for row in block[fits].tolist():
            if len(rows) < each.k and (each.quota is None or each.quota.takes(row)):
                rows.append(row)
        start, size = start + size, 2 * size
    found = np.array(rows, dtype=np.int64)
    return Ranking(found, bundle.count_I[found].astype(np.float32))


def _named(bundle: Bundle, each: Prepared, ranking: Ranking, note: str | None) -> Recommendations:
    notes = [*([note] if note else []), *each.notes]
    if not len(ranking.row_k) and note is None:
        notes.append("no item passes the filters and was not seen")
    recent = items_of(each.query.history)[::-1][: each.k].tolist()
    return Recommendations(
        [_item(bundle, row) for row in ranking.row_k.tolist()],
        [float(score) for score in ranking.score_k],
        [_item(bundle, row) for row in recent],
        "; ".join(notes) or None,
    )


def _item(bundle: Bundle, row: int) -> Item:
    names = bundle.item_names
    return Item(row, names.id_of(row), names.title_of(row))
