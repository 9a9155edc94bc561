"""Values held to a dataclass's own annotations: types, choices, ranges; one line for a wrong one.

    @dataclass(frozen=True)
    class Training:
        epochs: Annotated[int, Range(least=1)] = 5

        def __post_init__(self) -> None:
            check(self, "training")

    read_as(Training, {"epochs": 1.5}, "training")    # training.epochs=1.5: must be a whole ...

A field takes Any, None, bool, int, float, str, Literal, a dataclass, tuple[X, ...], list[X],
dict[str, X], X | None, or one of them with a Range. Floats are finite. A bool is no number.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trainer.base.mistake import Mistake

SHOWN_CHARACTERS = 60
LONGEST_TEXT = 4096
T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Limits of a number; of a list, text or object: of its length."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        limits = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        return " and ".join(
            f"{word} {int(limit) if limit == int(limit) else limit:,}"
            for word, limit in limits.items()
            if limit is not None
        )


def check(section: Any, name: str) -> None:
    """Hold a dataclass's fields to their annotations. Raises Mistake for the first that does not.

    Args:
        name: what stands before the field's name in the message.
    """
    kind: type = type(section)
    for field, annotation in fields_of(kind).items():
        _conform(annotation, getattr(section, field), f"{name}.{field}" if name else field)


def read_as(kind: type[T], value: Any, name: str = "") -> T:
    """Plain JSON data as `kind`: lists become tuples, whole numbers floats where asked for.

    Names in a dataclass's RETIRED, fields that earlier versions wrote, are left out.

    Raises:
        Mistake: with the name of the field, its value and what is allowed; for unknown names, the
            nearest known one.
    """
    return _conform(kind, value, name)  # type: ignore[no-any-return]


def nearest(word: str, words: Iterable[str]) -> str:
    """ "did you mean X? ", or nothing where none is near."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


@cache
def fields_of(kind: type) -> dict[str, Any]:
    """Names and annotations of a dataclass's fields."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _conform(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        limits = tuple(limit for limit in arguments[1:] if isinstance(limit, Range))
        if not limits:
            return _conform(arguments[0], value, name)
        return _conform_limited(kind, arguments[0], limits, value, name)
    if origin in (Union, types.UnionType):
        return _conform_union(kind, arguments, value, name)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _conform_fields(kind, value, name)
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return origin(_conform(arguments[0], each, f"{name}[{i}]") for i, each in enumerate(value))
    if origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _conform(arguments[1], each, f"{name}.{key}") for key, each in value.items()}
    return _conform_plain(kind, value, name)


def _conform_plain(kind: Any, value: Any, name: str) -> Any:
    """A value that holds no others."""
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if any(type(choice) is type(value) and choice == value for choice in choices):
        return value
    if kind in (None, type(None)) and value is None:
        return value
    if kind in (bool, int) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float) and _is_finite(value):
        return float(value)
    if kind is str and isinstance(value, str) and len(value) <= LONGEST_TEXT:
        return value
    words = [choice for choice in choices if isinstance(choice, str)]
    hint = nearest(value, words) if isinstance(value, str) else ""
    raise Mistake(f"{_given(name, value)}: {hint}must be {allowed(kind)}")


def _conform_limited(
    kind: Any, inner: Any, limits: tuple[Range, ...], value: Any, name: str
) -> Any:
    """A value of a kind with a Range."""
    wrong = Mistake(f"{_given(name, value)}: must be {allowed(kind)}")
    if inner in (int, float) and type(value) not in (int, float):
        raise wrong
    try:
        conformed = _conform(inner, value, name)
    except Mistake as mistake:
        raise (wrong if inner in (int, float) else mistake) from None
    measured = value if isinstance(value, int | float) else len(value)
    if all(limit.holds(measured) for limit in limits):
        return conformed
    raise wrong


def _conform_union(kind: Any, arms: tuple[Any, ...], value: Any, name: str) -> Any:
    """The first arm that fits; the only one beside None says itself what is wrong with a value."""
    if value is None and type(None) in arms:
        return None
    others = [arm for arm in arms if arm is not type(None)]
    if len(others) == 1:
        try:
            return _conform(others[0], value, name)
        except Mistake as mistake:
            if type(None) not in arms or not str(mistake).endswith(allowed(others[0])):
                raise
            raise Mistake(f"{mistake}, or none") from None
    for arm in others:
        try:
            return _conform(arm, value, name)
        except Mistake:
            continue
    raise Mistake(f"{_given(name, value)}: must be {allowed(kind)}")


def _conform_fields(kind: type, value: Any, name: str) -> Any:
    """An object of a dataclass, out of JSON; one that is there already is taken as it is."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, dict):
        raise Mistake(f"{_given(name, value)}: must be an object of {_list(fields_of(kind))}")
    retired = getattr(kind, "RETIRED", ())
    value = {key: each for key, each in value.items() if key not in retired}
    known, before = fields_of(kind), f"{name}." if name else ""
    for key in value:
        if key not in known:
            hint = nearest(str(key), known)
            unknown = _short(before + str(key))
            raise Mistake(f"unknown field {unknown}: {hint}there are {_list(known)}")
    absent = [
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in value
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if absent:
        raise Mistake(f"{_list(before + field for field in absent)} missing")
    return kind(**{k: _conform(known[k], each, f"{before}{k}") for k, each in value.items()})


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond every float
        return False


def allowed(kind: Any) -> str:
    """What a kind allows, for people."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        limits = " and ".join(str(a) for a in arguments[1:] if isinstance(a, Range))
        many = get_origin(arguments[0]) in (tuple, list, dict) or arguments[0] is str
        between = ", their number " if many else ", "
        return f"{allowed(arguments[0])}{between}{limits}" if limits else allowed(arguments[0])
    if origin in (Union, types.UnionType):
        arms = [allowed(arm) for arm in arguments if arm is not type(None)]
        return " or ".join(arms) + (", or none" if type(None) in arguments else "")
    if origin is Literal:
        return f"one of {_list(map(str, arguments))}"
    if origin in (tuple, list):
        return f"a list, each {allowed(arguments[0])}"
    if origin is dict:
        return f"an object, each value {allowed(arguments[1])}"
    names = {bool: "true or false", int: "a whole number", float: "a finite number"}
    return names.get(kind, "text" if kind is str else "nothing")


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


def _given(name: str, value: Any) -> str:
    return f"{name}={_short(repr(value))}" if name else _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
