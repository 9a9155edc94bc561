"""`tandem recommend RUN --user ID` or `--items ID,ID`, and `tandem similar RUN --item ID`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn import functional

from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet, say, window_width
from trainer.data.schema import Dataset
from trainer.launch.here import Here, is_first_process
from trainer.launch.launcher import Worker
from trainer.retrieval.arguments import RecommendArguments, SimilarArguments
from trainer.retrieval.encode import Encoder, is_known
from trainer.retrieval.known import KnownUsers, known_users
from trainer.retrieval.measures.popularity import PopularityRanking
from trainer.retrieval.names import HOW_TO_QUOTE, Item, find_rows, name_items, split_ids
from trainer.retrieval.opened import OpenedRun
from trainer.retrieval.request_context import context_of, parsed_context
from trainer.retrieval.search.item_lists import ItemLists
from trainer.retrieval.search.item_rows import ItemRows
from trainer.retrieval.search.keys import decode_keys
from trainer.retrieval.search.merge import merge_rankings, share_queries
from trainer.retrieval.search.topk import exact_topk


@dataclass(frozen=True)
class Recommendation:
    """An item for a user, or like another, as a program takes it."""

    item: int | str
    """Raw id, as in the source."""
    title: str | None
    score: float


@dataclass(frozen=True)
class Recommendations:
    """Items by falling score, and the history they follow from."""

    items: list[Item]
    scores: list[float]
    history: list[Item]
    """Most recent first."""
    note: str | None = None
    """What to know of the list, where the model knows nothing of the user or the item."""

    def listed(self) -> list[Recommendation]:
        """Best first."""
        return [
            Recommendation(item.raw_id, item.title, score)
            for item, score in zip(self.items, self.scores, strict=True)
        ]


def recommend(arguments: RecommendArguments) -> Recommendations:
    """Print recommendations with the recent history beside them, and return them."""
    found: Recommendations = Here().run(recommend_on_rank, arguments)
    title = "somebody new" if arguments.user is None else f"user {arguments.user}"
    if is_first_process():
        for sheet in sheets(found, title, window_width()):
            sheet.print()
        _say_note(found)
    return found


def similar(arguments: SimilarArguments) -> Recommendations:
    """Print the items most like one item, and return them."""
    found: Recommendations = Here().run(similar_on_rank, arguments)
    title = f"like {found.history[0].label}"
    sheet = Sheet("", "item", "cosine", numbers=("", "cosine"), title=title)
    for rank, (item, score) in enumerate(zip(found.items, found.scores, strict=True), 1):
        sheet.add(rank, item.label, f"{score:.4f}")
    if is_first_process():
        sheet.print()
        _say_note(found)
    return found


def _say_note(found: Recommendations) -> None:
    if found.note is not None:
        say(found.note)


def sheets(found: Recommendations, title: str, window: int | None) -> list[Sheet]:
    """Items and history beside each other where the window is wide enough, else one by one."""
    items = [
        (rank, item.label, f"{score:.4f}")
        for rank, (item, score) in enumerate(zip(found.items, found.scores, strict=True), 1)
    ]
    past = [item.label for item in found.history]
    numbers = ("", "score")
    beside = Sheet("", "recommended", "score", "recent history", numbers=numbers, title=title)
    for rank, (item, label) in enumerate(zip_longest(items, past), 1):
        beside.add(*(item or (rank, "", "")), label or "")
    if window is None or beside.width() <= window:
        return [beside]
    first = Sheet("", "recommended", "score", numbers=numbers, title=title)
    for item in items:
        first.add(*item)
    second = Sheet("", "recent history", numbers=("",), title="recent history")
    for rank, label in enumerate(past, 1):
        second.add(rank, label)
    return [first, second] if past else [first]


def recommend_on_rank(arguments: RecommendArguments, worker: Worker) -> Recommendations:
    """Collective; the same on every rank."""
    return recommend_from(OpenedRun(arguments.run, worker.ranks, arguments.data), arguments)


def recommend_from(opened: OpenedRun, arguments: RecommendArguments) -> Recommendations:
    """Of a run that is open. Collective; the same on every rank."""
    trained, encoder = opened.trained, opened.encoder
    if arguments.user is not None:
        (row,) = find_rows(trained.dataset, "user", [arguments.user])
        (known,) = known_users(trained.dataset, row, row + 1, 1)
    else:
        row = -1
        known = _somebody_new(trained.dataset, encoder, arguments.items or "")
    k = min(arguments.k, trained.dataset.num_items)
    given = parsed_context(arguments.context)
    context = context_of(trained.dataset, given, encoder.model.inputs.query_reads)
    query_1D = encoder.queries(  # collective
        torch.tensor([row]), known.history, known.disliked, context
    )
    item, score = _best(opened.items, query_1D, known.seen, k)  # collective
    recent = known.history.values.flip(0)[:k].tolist()
    dataset, note = trained.dataset, None
    if not is_known(query_1D).item():
        item, score = _most_popular(encoder, known.seen, k)
        note = (
            "no training interaction of this user, and nothing else that the model reads: these "
            "are the most popular items, with their training interactions as the score"
        )
    return Recommendations(name_items(dataset, item), score, name_items(dataset, recent), note)


def similar_on_rank(arguments: SimilarArguments, worker: Worker) -> Recommendations:
    """Collective; the same on every rank."""
    return similar_from(OpenedRun(arguments.run, worker.ranks, arguments.data), arguments)


def similar_from(opened: OpenedRun, arguments: SimilarArguments) -> Recommendations:
    """Of a run that is open. Collective; the same on every rank."""
    trained, encoder = opened.trained, opened.encoder
    (row,) = find_rows(trained.dataset, "item", [arguments.item])
    rows = opened.items  # collective
    unit = ItemRows(functional.normalize(rows.embedding_ID, dim=1), rows.first_row, rows.unranked_X)
    query_1D = functional.normalize(encoder.candidates(torch.tensor([row]).numpy()), dim=1)
    k = min(arguments.k, trained.dataset.num_items)
    item, score = _best(unit, query_1D, ItemLists.from_lists([[row]]), k)  # collective
    note = None
    if not is_known(query_1D).item():
        item, score = [], []
        note = (
            "no training interaction with this item, and nothing else that the model reads: "
            "what it is like is unknown"
        )
    dataset = trained.dataset
    return Recommendations(name_items(dataset, item), score, name_items(dataset, [row]), note)


def _best(
    items: ItemRows, query_1D: Tensor, seen: ItemLists, k: int
) -> tuple[list[int], list[float]]:
    """Rows and scores of the k best items for one query that every rank holds. Collective."""
    query_WD = share_queries(query_1D)  # collective
    everywhere = ItemLists(
        seen.values.repeat(len(query_WD)),
        torch.arange(len(query_WD) + 1) * seen.values.numel(),
    ).to(query_1D.device)
    key_1K = merge_rankings(exact_topk(items, query_WD, everywhere, k))  # collective
    score_K, item_K = (part[0] for part in decode_keys(key_1K))
    real_K = item_K >= 0
    return item_K[real_K].tolist(), score_K[real_K].tolist()


def _most_popular(encoder: Encoder, seen: ItemLists, k: int) -> tuple[list[int], list[float]]:
    """The k items with the most training interactions that one user has not seen; with those."""
    count_I = torch.from_numpy(encoder.store.item_count_I)
    found_K = PopularityRanking(count_I).topk(seen, min(k, len(count_I)))[0]
    found_K = found_K[found_K >= 0]
    return found_K.tolist(), count_I[found_K].double().tolist()


def _somebody_new(dataset: Dataset, encoder: Encoder, raw_ids: str) -> KnownUsers:
    """A user without a row, known by the items alone."""
    if not encoder.uses_history:
        raise Mistake(
            "--items: this model does not read histories, so it knows nothing of somebody new; "
            "train with --model.use-history, or give --user ID"
        )
    rows = find_rows(dataset, "item", split_ids(raw_ids), HOW_TO_QUOTE)
    nothing = ItemLists.from_lists([[]])
    seen = ItemLists.from_lists([sorted(set(rows))])
    return KnownUsers(-1, ItemLists.from_lists([rows]), nothing, seen)
