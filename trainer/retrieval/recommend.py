"""`tandem recommend RUN --user ID` or `--items ID,ID`, and `tandem similar RUN --item ID`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn import functional

from trainer.data.schema import Dataset
from trainer.mistake import Mistake
from trainer.ranks import Ranks
from trainer.restore import load_run
from trainer.retrieval.arguments import RecommendArguments, SimilarArguments
from trainer.retrieval.encode import Encoder
from trainer.retrieval.item_lists import ItemLists
from trainer.retrieval.keys import decode_keys
from trainer.retrieval.known import KnownUsers, known_users
from trainer.retrieval.merge import merge_rankings, share_queries
from trainer.retrieval.names import HOW_TO_QUOTE, Item, find_rows, name_items, split_ids
from trainer.retrieval.topk import ItemRows, exact_topk
from trainer.retrieval.workers import is_first_process, on_workers
from trainer.screen import Sheet, window_width


@dataclass(frozen=True)
class Recommendations:
    """Items by falling score, and the history they follow from."""

    items: list[Item]
    scores: list[float]
    history: list[Item]
    """Most recent first."""


def recommend(arguments: RecommendArguments) -> Recommendations:
    """Print recommendations with the recent history beside them, and return them."""
    found: Recommendations = on_workers(recommend_on_rank, arguments, workers=1)
    title = "somebody new" if arguments.user is None else f"user {arguments.user}"
    if is_first_process():
        for sheet in sheets(found, title, window_width()):
            sheet.print()
    return found


def similar(arguments: SimilarArguments) -> Recommendations:
    """Print the items most like one item, and return them."""
    found: Recommendations = on_workers(similar_on_rank, arguments, workers=1)
    title = f"like {found.history[0].label}"
    sheet = Sheet("", "item", "cosine", numbers=("", "cosine"), title=title)
    for rank, (item, score) in enumerate(zip(found.items, found.scores, strict=True), 1):
        sheet.add(rank, item.label, f"{score:.4f}")
    if is_first_process():
        sheet.print()
    return found


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


def recommend_on_rank(arguments: RecommendArguments, ranks: Ranks) -> Recommendations:
    """Collective; the same on every rank."""
    trained = load_run(arguments.run, ranks, arguments.data)  # collective
    encoder = Encoder.of_run(trained, ranks)
    if arguments.user is not None:
        (row,) = find_rows(trained.dataset, "user", [arguments.user])
        (known,) = known_users(trained.dataset, row, row + 1, with_seen=True, block_size=1)
    else:
        row = -1
        known = _somebody_new(trained.dataset, encoder, arguments.items or "")
    k = min(arguments.k, trained.dataset.num_items)
    query_1D = encoder.queries(torch.tensor([row]), known.history, known.disliked)  # collective
    item, score = _best(encoder.items(), query_1D, known.seen, k)  # collective
    recent = known.history.values.flip(0)[:k].tolist()
    dataset = trained.dataset
    return Recommendations(name_items(dataset, item), score, name_items(dataset, recent))


def similar_on_rank(arguments: SimilarArguments, ranks: Ranks) -> Recommendations:
    """Collective; the same on every rank."""
    trained = load_run(arguments.run, ranks, arguments.data)  # collective
    (row,) = find_rows(trained.dataset, "item", [arguments.item])
    encoder = Encoder.of_run(trained, ranks)
    rows = encoder.items()  # collective
    unit = ItemRows(functional.normalize(rows.embedding_ID, dim=1), rows.first_row)
    query_1D = functional.normalize(encoder.candidates(torch.tensor([row]).numpy()), dim=1)
    k = min(arguments.k, trained.dataset.num_items)
    item, score = _best(unit, query_1D, ItemLists.from_lists([[row]]), k)  # collective
    return Recommendations(
        name_items(trained.dataset, item), score, name_items(trained.dataset, [row])
    )


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
