"""`tandem recommend RUN --user ID` or `--items ID,ID`, and `tandem similar RUN --item ID`.

RUN is a run or a bundle. Without torch, but where a query has to be computed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.base.mistake import Mistake
from trainer.base.screen import Sheet, say, window_width
from trainer.bundle import answers
from trainer.bundle.asked import Ask, AskSimilar, Filters, Recommendations
from trainer.bundle.opened_bundle import Bundle
from trainer.bundle.titled import rows_by_title
from trainer.retrieval.arguments import FilterArguments, RecommendArguments, SimilarArguments
from trainer.retrieval.names import HOW_TO_QUOTE, split_ids
from trainer.retrieval.run_bundle import opened_bundle

if TYPE_CHECKING:  # imported where a page is asked for, or everybody's answers
    from trainer.launch.launcher import Launcher
    from trainer.live.answers_page import AnswersPage

MOST_FILE_BYTES = 1 << 30
MOST_TITLES = 20
BELOW_ZERO = (
    "scores order the items of one list and are no chances or ratings: higher is better, and below "
    "zero is no dislike"
)


def answer(arguments: RecommendArguments, launcher: Launcher | None = None) -> None:
    """What `tandem recommend` does. launcher: of what --all asks for; None: on this machine."""
    if not arguments.all:
        recommend(arguments)
        return
    assert arguments.out is not None
    users = None if arguments.users is None else read_ids("--users", Path(arguments.users))
    with _opened(arguments) as bundle:
        from trainer.retrieval.everybody import recommend_everybody  # brings torch

        recommend_everybody(
            *(bundle, arguments.out, users, arguments.k, filters_of(arguments.filters)),
            *(arguments.workers, launcher),
        )


def recommend(arguments: RecommendArguments) -> Recommendations:
    """Print recommendations with the recent history beside them, and return them."""
    page = _page(arguments)
    with _opened(arguments) as bundle:
        found = recommend_from(bundle, arguments)
    title = "somebody new" if arguments.user is None else f"user {arguments.user}"
    if page is not None:
        page.write(found, f"For {title}", arguments.run, notes_on(found))
        say(page.place)
        return found
    if arguments.json:
        print(json.dumps(as_lists(found)))
        return found
    for sheet in sheets(found, title, window_width()):
        sheet.print()
    _say_notes(found)
    return found


def similar(arguments: SimilarArguments) -> Recommendations:
    """Print the items most like one item, and return them."""
    page = _page(arguments)
    with _opened(arguments) as bundle:
        found = similar_from(bundle, arguments)
    title = f"like {found.history[0].label}"
    if page is not None:
        heading = f"Like {found.history[0].label}"
        page.write(found, heading, arguments.run, notes_on(found), "cosine", "the item")
        say(page.place)
        return found
    if arguments.json:
        print(json.dumps(as_lists(found)))
        return found
    sheet = Sheet("", "item", "cosine", numbers=("", "cosine"), title=title)
    for rank, (item, score) in enumerate(zip(found.items, found.scores, strict=True), 1):
        sheet.add(rank, item.label, f"{score:.4f}")
    sheet.print()
    _say_notes(found)
    return found


def _page(arguments: RecommendArguments | SimilarArguments) -> AnswersPage | None:
    """Of --html; None: none is asked for. Raises Mistake, before anything is opened."""
    if arguments.html is None:
        return None
    from trainer.live.answers_page import AnswersPage

    return AnswersPage(arguments.html, arguments.images)


def as_lists(found: Recommendations) -> dict[str, Any]:
    """As JSON has it: "items" and "history" of "item" (raw id) and "title", items with "score"."""
    items = [asdict(each) for each in found.listed()]
    history = [{"item": item.raw_id, "title": item.title} for item in found.history]
    return {"items": items, "history": history, "note": found.note}


def recommend_from(bundle: Bundle, arguments: RecommendArguments) -> Recommendations:
    """Of a bundle that is open."""
    ask = Ask(
        user=arguments.user,
        items=() if arguments.items is None else tuple(split_ids(arguments.items)),
        context=parsed_context(arguments.context),
        k=arguments.k,
        filters=filters_of(arguments.filters),
    )
    try:
        return answers.recommend(bundle, ask)
    except Mistake as mistake:
        if arguments.items is not None and str(mistake).startswith("no item"):
            raise Mistake(f"{mistake}; {HOW_TO_QUOTE}") from mistake
        raise


def similar_from(bundle: Bundle, arguments: SimilarArguments) -> Recommendations:
    """Of a bundle that is open."""
    ask = AskSimilar(meant_item(bundle, arguments.item), arguments.k, filters_of(arguments.filters))
    return answers.similar(bundle, ask)


def meant_item(bundle: Bundle, words: str) -> str:
    """The raw id that is meant: an id as it stands, else that of the one item with such a title.

    Raises:
        Mistake: where several titles fit, which are printed, or none.
    """
    names = bundle.item_names
    if names.rows_of([words])[0] >= 0:
        return words
    rows = rows_by_title(bundle, words)
    if not rows:
        return words  # whose search says what is wrong
    if len(rows) == 1:
        return str(names.id_of(rows[0]))
    sheet = Sheet("id", "title", "training interactions", numbers=("training interactions",))
    for row in rows[:MOST_TITLES]:
        sheet.add(names.id_of(row), names.title_of(row) or "", f"{bundle.count_I[row]:,}")
    sheet.print(sys.stderr)
    listed = f", {MOST_TITLES} with most interactions are listed" if len(rows) > MOST_TITLES else ""
    raise Mistake(
        f"--item {words!r}: {len(rows):,} titles fit{listed}; give the id of the one you mean"
    )


def filters_of(given: FilterArguments) -> Filters:
    """What the flags say. Raises Mistake."""
    return Filters(
        where=given.where,
        only=None if given.only is None else listed_ids("--only", given.only),
        exclude=() if given.exclude is None else listed_ids("--exclude", given.exclude),
        max_per=parsed_limits(given.max_per),
    )


def listed_ids(flag: str, given: str) -> tuple[str, ...]:
    """The ids of a file, one a line, or those that stand there, separated by commas."""
    try:
        is_file = Path(given).is_file()
    except (OSError, ValueError):  # too long for a name, or no name at all
        is_file = False
    if not is_file:
        return tuple(forms[-1] for forms in split_ids(given, flag))
    return read_ids(flag, Path(given))


def read_ids(flag: str, file: Path) -> tuple[str, ...]:
    """The ids of a file, one a line. Raises Mistake."""
    if not file.is_file():
        raise Mistake(f"{flag} {file} is no file: write an id a line")
    size = file.stat().st_size
    if size > MOST_FILE_BYTES:
        raise Mistake(f"{flag} {file} has {size:,} bytes; at most {MOST_FILE_BYTES:,} are read")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise Mistake(f"{flag} {file} is no text: write an id a line, in UTF-8") from error
    ids = tuple(line.strip() for line in lines if line.strip())
    if not ids:
        raise Mistake(f"{flag} {file} holds no id: write one a line")
    return ids


def parsed_limits(texts: Sequence[str]) -> dict[str, int]:
    """COLUMN=N of `--max-per`."""
    found: dict[str, int] = {}
    for text in texts:
        column, sign, count = text.rpartition("=")
        if not sign or not column or not count.isdecimal() or int(count) < 1 or column in found:
            raise Mistake(f"--max-per {text!r:.60}: give COLUMN=N, N at least 1, each column once")
        found[column] = int(count)
    return found


def parsed_context(texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE of the command line."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or name in found:
            raise Mistake(f"--context {text!r:.60}: give --context NAME=VALUE, each name once")
        found[name] = value
    return found


@contextmanager
def _opened(arguments: RecommendArguments | SimilarArguments) -> Iterator[Bundle]:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Mistake(
            "answers are given by one process: leave torchrun out. Where one process cannot hold "
            "the model, `tandem export --workers N` writes a bundle, which is asked in its stead"
        )
    with opened_bundle(arguments.run, arguments.data) as bundle:
        yield bundle


def _say_notes(found: Recommendations) -> None:
    for note in notes_on(found):
        say(note)


def notes_on(found: Recommendations) -> list[str]:
    """What to know of a list: what it rests on, and how its scores are read."""
    notes = [] if found.note is None else [found.note]
    if min(found.scores, default=0.0) < 0:
        notes.append(BELOW_ZERO)
    return notes


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
    second = Sheet("", "item", numbers=("",), title="recent history")
    for rank, label in enumerate(past, 1):
        second.add(rank, label)
    return [first, second] if past else [first]
