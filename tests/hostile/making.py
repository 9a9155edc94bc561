"""What is tried of commands that make a dataset."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.hostile.case import Case, Put
from tests.hostile.flags import hostile_flags
from tests.hostile.parts import (
    FIXTURES,
    KINDS_OF_NOTHING,
    OUTS,
    changed_dataset,
    dashes_last,
    said,
    typed,
    words_of,
)
from tests.hostile.tables import RIGHT_SOURCES, SOURCES, side_tables
from tests.hostile.values import NO_PLACES, PLACES

SPARING = ("--memory-limit=512MB", "--threads=1")
FOLDERS = st.sampled_from(("", "", "", "in[1]/", "user=7/", "a b/", "new\nline/", "src.d/"))


WRONG = ("source", "source", "source", "place", "side", "side", "flags", "flags", "extend", "all")
"""What is hostile of a `prepare`: one thing, mostly, or right ones would never come."""


@st.composite
def preparing(draw: st.DrawFn) -> Case:
    """A source of any kind, tables beside it, an OUT of any kind, flags."""
    wrong = draw(st.sampled_from(WRONG))
    name, content, rows = draw(SOURCES if wrong in ("source", "all") else RIGHT_SOURCES)
    folder = draw(FOLDERS)
    source, out = f"{folder}{name}", draw(OUTS if wrong in ("place", "all") else PLACES)
    puts, arguments = [*KINDS_OF_NOTHING, Put(source, content)], [source, out]
    scratch: list[str] = []
    named = [source, name.partition(".")[0]]
    if folder:
        puts.append(Put(f"in1/{name}", b"user,item\n666,667\n"))
    if wrong in ("place", "all"):
        places = (source, folder or ".", f"{folder}*", f"./{source}", f"{source}/", "link.csv")
        puts.append(Put("link.csv", link=source))
        arguments[0] = draw(st.sampled_from(places) | NO_PLACES)
        named, rows = [*named, *words_of(arguments[0]), "SOURCE"], None
    if wrong in ("side", "all"):
        for side in draw(st.sampled_from((("items",), ("users",), ("items", "users")))):
            table, content_of_side = draw(side_tables(side))
            puts.append(Put(table, content_of_side))
            arguments.append(f"--{side}={table}")
            named.append(table)
    if wrong in ("flags", "all"):
        flags = draw(hostile_flags("prepare"))
        arguments += typed(flags)
        named, rows = [*named, *said(flags)], None
        scratch = [
            words[-1].removeprefix("--scratch=") for flag, words in flags if "scratch" in flag
        ]
    if wrong == "extend":
        arguments.append(f"--extend={FIXTURES}/P")
        named, rows = [*named, "/P", "--extend"], None
    return Case(
        "prepare",
        ("prepare", *dashes_last(arguments), *SPARING),
        tuple(puts),
        out,
        writes=tuple(part for each in scratch for part in (each, each.partition("/")[0])),
        named=(*named, *words_of(out), "--split", "--extend"),
        rows=rows,
    )


@st.composite
def extending(draw: st.DrawFn) -> Case:
    """A dataset that somebody has changed is extended, elsewhere or in place."""
    put = draw(changed_dataset("P"))
    out = draw(st.sampled_from(("P", "new")))
    return Case(
        "prepare",
        (
            "prepare",
            f"{FIXTURES}/more.csv",
            out,
            "--extend",
            "P",
            "--threads=1",
            "--memory-limit=512MB",
        ),
        (put,),
        out,
        named=("P", "more.csv"),
    )


@st.composite
def synthesising(draw: st.DrawFn) -> Case:
    out = draw(OUTS)
    flags = draw(hostile_flags("synth")) if draw(st.booleans()) else []
    base = ["--users=60", "--items=40", "--interactions=500", "--threads=1"]
    kept = [each for each in base if each.partition("=")[0] not in {flag for flag, _ in flags}]
    first = f"./{out}" if out.startswith("-") else out
    return Case(
        "synth",
        ("synth", first, *kept, *typed(flags)),
        KINDS_OF_NOTHING,
        out,
        named=(*said(flags), *words_of(out), "users", "items", "interactions"),
    )
