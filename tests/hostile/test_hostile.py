"""Hostile commands of a fixed seed in `make test`; ten minutes of them in `make test-hostile`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from cluster.cli import COMMANDS
from cluster.jobs.job_command import ARGUMENTS
from tests.hostile.case import Case
from tests.hostile.commands import STRATEGIES
from tests.hostile.flags import ELSEWHERE, flags_of, kind_of
from tests.hostile.hunt import Hunt, draw_cases
from tests.hostile.judge import Ended, judged, snapshot

SEED = int(os.environ.get("HOSTILE_SEED", "0"))
SECONDS = float(os.environ.get("HOSTILE_SECONDS", "600"))
LIGHT = ("prepare", "synth")
"""Commands that import no torch."""


def test_every_command_has_a_strategy_of_its_own() -> None:
    """A new command is to be tried with hostile input, too."""
    assert set(STRATEGIES) == set(COMMANDS)
    drawn = {*ARGUMENTS, *(name.partition(" ")[0] for name in ELSEWHERE)}
    # doctor has no arguments; of demo's those are tried that it refuses
    assert set(COMMANDS) - drawn == {"doctor", "demo"}


def test_flags_are_drawn_from_the_arguments_themselves() -> None:
    assert {"--loss.temperature", "--workers", "--resume"} <= {f for f, _ in flags_of("train")}
    fields = {field.name for field in dataclasses.fields(kind_of("synth"))} - {"out"}
    assert {flag.removeprefix("--").replace("-", "_") for flag, _ in flags_of("synth")} == fields


def test_a_seed_decides_its_cases() -> None:
    first, again, other = (draw_cases("synth", 0, seed) for seed in (1, 1, 2))
    assert [case.arguments for case in first] == [case.arguments for case in again]
    assert [case.arguments for case in first] != [case.arguments for case in other]


@pytest.mark.parametrize(("command", "seed"), [("plan", 3), ("stop", 1)])
def test_what_is_drawn_can_be_typed(command: str, seed: int) -> None:
    """Also in a process of its own, whose command line is bytes."""
    for case in draw_cases(command, 0, seed):
        for word in case.arguments:
            assert b"\x00" not in os.fsencode(word)


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("--positive-threshold 4 is above every rating (highest 3): lower it", True),
        ("--positive-threshold and --dislike-threshold need ratings", True),
        ("--loss.temperature=0: above 0", True),
        ("src.csv has no rows", True),
        ("512MB of memory do not suffice", True),
        ("memory does not suffice; raise --memory-limit", False),
        ("something is wrong", False),
        ("-- is no column", False),
    ],
)
def test_a_message_names_what_is_at_fault(tmp_path: Path, message: str, names: bool) -> None:
    """The input, a flag as the message's subject, or a value that was typed; not a remedy alone."""
    arguments = ("prepare", "src.csv", "o", "--memory-limit=512MB", "--threads=1")
    case = Case("prepare", arguments, out="o", named=("src.csv",))
    ended = Ended(1, "", f"error: {message}\n")
    wrong = judged(case, tmp_path, snapshot(tmp_path), ended)
    assert [each.partition(":")[0] for each in wrong] == ([] if names else ["UNNAMED"])


def test_what_was_made_is_looked_for_where_a_uri_says(tmp_path: Path) -> None:
    folder, page = tmp_path / "case", tmp_path / "page.html"
    folder.mkdir()
    page.write_text("<html></html>\n")
    case = Case("report", ("report", "R", f"--out=file://{page}"), out=f"file://{page}")
    assert judged(case, folder, snapshot(folder), Ended(0, f"{page}\n", "")) == []
    page.write_text("<html>")
    assert judged(case, folder, snapshot(folder), Ended(0, f"{page}\n", "")) != []


@pytest.mark.timeout(300)
def test_a_few(tmp_path: Path) -> None:
    hunt = Hunt(0, tmp_path / "work", servers=1, light=True)
    assert hunt.run(3600, LIGHT, most=14) == 0, hunt.tally.failures
    assert hunt.tally.run.total() >= 11 and hunt.tally.ok.total() >= 1


@pytest.mark.hostile
@pytest.mark.timeout(SECONDS + 900)
def test_hostile(tmp_path: Path) -> None:
    """HOSTILE_SEED chooses what is drawn, HOSTILE_SECONDS for how long."""
    hunt = Hunt(SEED, tmp_path / "work", servers=2)
    hunt.run(SECONDS)
    assert not hunt.tally.failures
    assert set(hunt.tally.run) == set(COMMANDS)
