"""Flags drawn from the dataclasses of a command's arguments: a new field is tried by itself."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st

from cluster.jobs.job_command import ARGUMENTS, arguments_of
from tests.hostile.values import NO_PLACES, NUMBERS, PLACES, WORDS
from trainer.base.typed import fields_of

ELSEWHERE = {
    "submit": "cluster.jobs.submit.SubmitArguments",
    "status": "cluster.jobs.submit.StatusArguments",
    "logs": "cluster.jobs.submit.LogsArguments",
    "stop": "cluster.jobs.submit.StopArguments",
    "dashboard": "trainer.live.dashboard.DashboardArguments",
    "serve": "trainer.serve.serve_arguments.ServeArguments",
    "bench loss": "trainer.bench.loss.LossBenchArguments",
    "bench step": "trainer.bench.step.StepBenchArguments",
    "bench data": "trainer.bench.data.DataBenchArguments",
    "bench eval": "trainer.bench.eval.EvalBenchArguments",
    "bench serve": "trainer.bench.serve.ServeBenchArguments",
    "bench sequence": "trainer.bench.sequence.SequenceBenchArguments",
}
"""Commands that are no jobs."""
NOT_DRAWN = {"engine", "prometheus", "python", "config", "address", "detach", "follow"}
"""Ray's engine takes a cluster; addresses are drawn with servers that answer them."""
GOOD_NUMBERS = st.sampled_from(("1", "2", "3", "5", "10"))


def kind_of(command: str) -> type[Any]:
    """The dataclass of a command's arguments."""
    if command in ARGUMENTS:
        return arguments_of(command)
    from importlib import import_module

    module, _, name = ELSEWHERE[command].rpartition(".")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


@cache
def flags_of(command: str) -> tuple[tuple[str, Any], ...]:
    """Each flag of a command that is drawn, and the annotation of its value."""
    return tuple(sorted(_flags(kind_of(command), ""), key=lambda each: each[0]))


def _flags(kind: type[Any], before: str) -> Iterator[tuple[str, Any]]:
    defaults = {
        field.name: field.default is not dataclasses.MISSING
        or field.default_factory is not dataclasses.MISSING
        for field in dataclasses.fields(kind)
    }
    for name, annotated in fields_of(kind).items():
        inside = getattr(annotated, "__origin__", None)
        annotation = inside if dataclasses.is_dataclass(inside) else annotated
        if dataclasses.is_dataclass(annotation):
            inner = "" if name in ("config", "filters") else f"{before}{name}."
            yield from _flags(annotation, inner)  # type: ignore[arg-type]
        elif name in NOT_DRAWN or "Positional" in repr(annotation):
            continue
        elif defaults[name] or before:
            yield f"--{before}{name.replace('_', '-')}", annotation


@st.composite
def hostile_flags(draw: st.DrawFn, command: str, most: int = 2) -> list[tuple[str, list[str]]]:
    """One to some flags with values: [(flag, words to type)]."""
    drawn = []
    for _ in range(draw(st.integers(1, most))):
        flag, annotation = draw(st.sampled_from(flags_of(command)))
        values = draw(_values(annotation))
        if values is None:
            switch = flag.replace(".", ".no-") if "." in flag else flag.replace("--", "--no-")
            drawn.append((flag, [draw(st.sampled_from((flag, switch, f"{flag}=maybe")))]))
        elif len(values) == 1 and draw(st.integers(0, 9)) != 0:
            drawn.append((flag, [f"{flag}={values[0]}"]))
        else:
            drawn.append((flag, [flag, *values]))
    return drawn


def _values(annotation: Any) -> st.SearchStrategy[list[str] | None]:
    """Values for a flag of some type; None for a switch."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _values(annotation.__origin__)
    if origin in (Union, types.UnionType):
        return _values(next(each for each in arguments if each is not type(None)))
    if annotation is bool:
        return st.none()
    if origin is tuple:
        return st.lists(_one(arguments[0]), max_size=3)
    return _one(annotation).map(lambda value: [value])


def _one(annotation: Any) -> st.SearchStrategy[str]:
    if hasattr(annotation, "__metadata__"):
        return _one(annotation.__origin__)
    if get_origin(annotation) is Literal:
        return st.sampled_from([str(each) for each in get_args(annotation)]) | WORDS
    if annotation in (int, float):
        return st.one_of(NUMBERS, GOOD_NUMBERS)
    return st.one_of(WORDS, NUMBERS, PLACES, NO_PLACES)
