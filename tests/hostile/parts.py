"""What cases of several commands are made of."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from tests.hostile.case import Put
from tests.hostile.documents import BINARY_CHANGES, DEEP, JSON_CHANGES, header, within
from tests.hostile.strangers import other_counts, other_numbers, other_table, sealed_checkpoint
from tests.hostile.values import NO_PLACES, PLACES, mostly

FIXTURES = "{fixtures}"
"""In an argument: the folder of `Fixtures`."""
KINDS_OF_NOTHING = (
    Put("loop", link="loop"),
    Put("dangling", link="nowhere/at/all"),
    Put("pipe", fifo=True),
    Put("empty"),
    Put(".tandem-pipe/owner.json", fifo=True),
    Put(".tandem-deep/owner.json", content=DEEP.encode()),
)
SEEDS = st.integers(0, 2**32)
RUN_WRITES = (
    "R/evaluation.json",
    "R/evaluation-*.parquet",
    "R/report.html",
    "R/.lock",
    "*/.derived/*",
    "R/.prometheus/*",
    "R/bundles/*",
)
OUTS = mostly(PLACES, NO_PLACES)
"""OUT: a name as nobody has it, or what is in the way."""


def said(flags: Sequence[tuple[str, list[str]]]) -> tuple[str, ...]:
    """What a message may name of flags: the flag, its field, its value."""
    words = []
    for flag, typed in flags:
        field = flag.removeprefix("--")
        words += [flag, field, field.replace("-", "_"), field.rpartition(".")[2].replace("-", "_")]
        words += [word.partition("=")[2] or word for word in typed]
    return tuple(word for word in words if word.strip())


def typed(flags: Sequence[tuple[str, list[str]]]) -> list[str]:
    return [word for _, words in flags for word in words]


def words_of(out: str) -> tuple[str, ...]:
    """How a message may name a place: by itself, or a part of it."""
    return (out, "OUT", "--out", *(part for part in out.split("/") if len(part) > 2))


def dashes_last(arguments: list[str]) -> list[str]:
    """Words that begin with a dash where a path stands come after `--`, as a user would have it."""
    first, second, *rest = arguments
    if not (first.startswith("-") or second.startswith("-")):
        return arguments
    fixed = [f"./{each}" if each.startswith("-") else each for each in (first, second)]
    return [*fixed, *rest]


def changed_dataset(name: str, fixture: str = "P") -> st.SearchStrategy[Put]:
    """A dataset whose description or tables somebody has changed."""
    description = within("dataset.json", JSON_CHANGES)
    tables = within("**/*.parquet", BINARY_CHANGES)
    return st.builds(
        lambda change, seed: Put(name, fixture=fixture, change=change, seed=seed),
        st.sampled_from((description, description, tables, other_table, other_table, other_counts)),
        SEEDS,
    )


def changed_run(name: str) -> st.SearchStrategy[Put]:
    """A run whose files somebody has changed."""
    changes = (
        within("config.json", JSON_CHANGES),
        within("config.json", JSON_CHANGES),
        within("checkpoints/*/checkpoint.json", JSON_CHANGES),
        within("checkpoints/*/*.safetensors", (*BINARY_CHANGES, header, header)),
        within("*.json*", (*JSON_CHANGES[3:], *BINARY_CHANGES)),
        sealed_checkpoint,
        sealed_checkpoint,
        other_numbers,
    )
    return st.builds(
        lambda change, seed: Put(name, fixture="R", change=change, seed=seed),
        st.sampled_from(changes),
        SEEDS,
    )
