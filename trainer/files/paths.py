"""Which fields of a dataclass are paths, by their declared types; nobody else lists them.

    out: LastingPath                     what is there before a command, or after it
    items: SentPath | None = None        a file that is only read, and may be sent with a job
    runs: tuple[LastingPath, ...]

A job runs in a copy of the working directory, on some machine, and the copy is deleted with it: a
lasting path that is relative would mean nothing there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from trainer.base.typed import fields_of

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class PathKind:
    """What a path of a declared type is for."""

    kind: Literal["lasting", "sent"]


LASTING, SENT = PathKind("lasting"), PathKind("sent")
LastingPath = Annotated[str, LASTING]
"""A folder, file or URI that is there before a command, or after it."""
SentPath = Annotated[str, SENT]
"""A file that is read once: it may lie in the working directory that a job is sent with."""


def kind_of_path(annotation: Any) -> PathKind | None:
    """What a field of such an annotation is as a path; None: it is none."""
    if get_origin(annotation) is Annotated:
        for each in annotation.__metadata__:
            if isinstance(each, PathKind):
                return each
    for arm in get_args(annotation):
        found = kind_of_path(arm)
        if found is not None:
            return found
    return None


def paths_in(value: Any) -> Iterator[tuple[str, PathKind, str]]:
    """(field, kind, path) of each path that was given, in a dataclass and those in it; the field of
    one in a section as "negatives.mined"."""
    of: type = type(value)
    for name, annotation in fields_of(of).items():
        given = getattr(value, name)
        if dataclasses.is_dataclass(given):
            section = "" if name in UNNAMED else f"{name}."
            for field, kind, path in paths_in(given):
                yield f"{section}{field}", kind, path
            continue
        declared = kind_of_path(annotation)
        if declared is not None:
            for path in (given,) if isinstance(given, str) else given or ():
                if path:
                    yield name, declared, path


UNNAMED = ("config", "filters")
"""Fields whose own fields are flags without a section before them."""


def with_paths(value: T, change: Callable[[str], str]) -> T:
    """The same dataclass, each path of it and of those in it changed."""
    changes: dict[str, Any] = {}
    of: type = type(value)
    for name, annotation in fields_of(of).items():
        given = getattr(value, name)
        if dataclasses.is_dataclass(given):
            changed: Any = with_paths(given, change)
        elif given is None or kind_of_path(annotation) is None:
            continue
        else:
            changed = change(given) if isinstance(given, str) else tuple(map(change, given))
        if changed != given:
            changes[name] = changed
    return dataclasses.replace(value, **changes) if changes else value  # type: ignore[type-var]
