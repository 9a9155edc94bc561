"""The user's mistakes, told apart from faults.

A `Mistake` is something that the user can mend: its message says the value, the limit and the
remedy, and no restart helps. Everything else (an OSError while reading, an ArrowInvalid of a torn
read, a bug) is a fault: it keeps its traceback, and a run is tried again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Mistake(ValueError):
    """The user's mistake. One line: the value, the limit, the remedy."""


class ToldByFirst(Exception):
    """What every rank of a run raises: rank 0 tells it, for all."""


class MistakeOfAll(Mistake, ToldByFirst):
    """The user's mistake, raised on every rank."""


class UsageError(Mistake):
    """The command line itself is wrong."""


@contextmanager
def mistakes() -> Iterator[None]:
    """What losses and embeddings refuse is the user's mistake: they know ValueError alone."""
    try:
        yield
    except ValueError as error:
        raise Mistake(str(error)) from error


def require(condition: bool, message: str) -> None:
    """Raise Mistake(message) unless `condition`: the user's mistake, not ours."""
    if not condition:
        raise Mistake(message)
