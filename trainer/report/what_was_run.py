"""What a run was, where and when it ran, and what became of it."""

from __future__ import annotations

import time
from typing import Any

from trainer.config.sections import settings_of
from trainer.live.document import NOTHING, Document
from trainer.observe.progress import in_words
from trainer.report.differing import from_preset, words


def state_of(now: dict[str, Any]) -> str:
    """Its phase, and the cause of a failure."""
    return f"{now['phase']}: {now['cause']}" if now["cause"] else str(now["phase"])


def what_was_run(page: Document, run: dict[str, Any]) -> None:
    """Differences from the preset, data, machine, versions; all settings folded away."""
    differing = from_preset(run)
    if differing is None:
        page.words(f"Settings from {run['preset']}; all of them are below.")
    elif differing:
        page.words(
            "Settings that are not the preset's: given, or chosen for these data by the preset."
        )
        rows = [[(name, "name"), value, (base, "soft")] for name, value, base in differing]
        page.table(["setting", "this run", f"preset {run['preset']}"], rows)
    else:
        page.words(f"All settings are those of the preset {run['preset']}.")
    page.table([], [[(name, "name"), value] for name, value in facts(run)])
    inside = page.part()
    every = settings_of(run["config"]).items()
    inside.table([], [[(name, "name"), words(value)] for name, value in every])
    page.fold("All settings", inside)


def facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    """What ran where and when, in words."""
    first, data = run["starts"][0], run["dataset"]
    rows = [("data", str(run["data"]))]
    if data is not None:
        rows.append(("in them", data))
    if run["start_from"]:
        rows.append(
            ("started from", f"{run['start_from']['run']}, step {run['start_from']['step']:,}")
        )
    if first.get("time"):
        rows.append(("begun", moment(first["time"])))
    machine = run["starts"][-1].get("machine")
    if machine:
        rows.append(("machine", machine))
    rows.append(("workers", str(run["starts"][-1]["world_size"])))
    rows.append(("versions", ", ".join(f"{name} {v}" for name, v in run["versions"].items())))
    return rows


def happened(page: Document, run: dict[str, Any]) -> None:
    """Starts, faults and what was lost."""
    starts = [
        [
            moment(start["time"]) if start.get("time") else NOTHING,
            f"{'started' if number == 0 else 'started again'} at step {start['step']:,}",
            f"{start['world_size']} {'rank' if start['world_size'] == 1 else 'ranks'}",
        ]
        for number, start in enumerate(run["starts"])
    ]
    starts += [["", each, ""] for each in troubles(run)]
    starts.append(["", f"now: {state_of(run['now'])}", f"step {run['now']['step']:,}"])
    page.table([], starts)


def troubles(run: dict[str, Any]) -> list[str]:
    """What went wrong, a sentence each."""
    found = []
    failures, dropped = (_last(run, key) for key in ("checkpoint_failures", "rows_dropped"))
    if failures:
        found.append(f"{failures:,.0f} checkpoints could not be written")
    if dropped:
        found.append(f"{dropped:,.0f} corrupt rows were left out")
    return found or ["no checkpoint failed, and no row was corrupt"]


def _last(run: dict[str, Any], key: str) -> float:
    return max((v for v in run["metrics"].get(key, []) if v is not None), default=0.0)


def moment(seconds: float) -> str:
    """`2026-11-26 16:40 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) + " UTC"


def minutes(summary: dict[str, Any] | None) -> str:
    """How long the last start took."""
    if summary is None or "seconds" not in summary:  # it failed, or goes on
        return NOTHING
    return in_words(summary["seconds"])
