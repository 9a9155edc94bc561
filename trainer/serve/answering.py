"""A batch of requests, answered from the bundle that is current when it begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trainer.base.mistake import Mistake
from trainer.bundle.answers import Prepared, answer, prepare, prepare_similar
from trainer.bundle.asked import Ask, AskSimilar
from trainer.bundle.opened_bundle import Bundle
from trainer.serve.schemas import Answer
from trainer.serve.shelf import Shelf

logger = logging.getLogger(__name__)
SHOWN_DIGITS = 12
Question = Ask | AskSimilar


class FailedError(Exception):
    """A fault of the server's, which its log tells of."""


def answer_batch(shelf: Shelf, questions: Sequence[Question]) -> list[Answer | Exception]:
    """A reply each: an answer, or the Mistake or fault of that one question."""
    bundle = shelf.current
    replies: dict[int, Answer | Exception] = {}
    prepared: dict[int, Prepared] = {}
    for place, question in enumerate(questions):
        try:
            prepared[place] = _prepared(bundle, question)
        except Exception as error:  # noqa: BLE001  of this question alone
            replies[place] = _told(error)
    try:
        replies |= _answered(bundle, prepared)
    except Exception:  # noqa: BLE001  one of them hinders all: each alone
        for place, each in prepared.items():
            try:
                fresh = each if each.quota is None else _prepared(bundle, questions[place])
                replies |= _answered(bundle, {place: fresh})
            except Exception as error:  # noqa: BLE001
                replies[place] = _told(error)
    return [replies[place] for place in range(len(questions))]


def _prepared(bundle: Bundle, question: Question) -> Prepared:
    if isinstance(question, AskSimilar):
        return prepare_similar(bundle, question)
    return prepare(bundle, question)


def _answered(bundle: Bundle, prepared: dict[int, Prepared]) -> dict[int, Answer]:
    found = answer(bundle, list(prepared.values()))
    digest = bundle.manifest.digest[:SHOWN_DIGITS]
    return {place: Answer.of(each, digest) for place, each in zip(prepared, found, strict=True)}


def _told(error: Exception) -> Exception:
    if isinstance(error, Mistake):
        return error
    logger.error("a request failed: %s", error, exc_info=error)
    return FailedError()
