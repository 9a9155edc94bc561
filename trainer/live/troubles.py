"""What is wrong with a run, by what its folder says: the alerts that need no Prometheus.

They are those of rules/alerts.yml that a run's own files can tell, with the same names and limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STALLED_SECONDS = 300.0
STARVED_SHARE = 0.3
STARVED_READINGS = 3
"""So many readings in a row above the limit."""
RESTARTED_SECONDS = 600.0
FAILING_SECONDS = 3600.0


@dataclass(frozen=True)
class Trouble:
    """One alert."""

    name: str
    """As in docs/runbooks/alerts.md."""
    critical: bool
    words: str


def troubles_of(run: dict[str, Any], now: float) -> list[Trouble]:
    """The alerts of a run, as `RunReader.read` gives it, that hold at the time `now`."""
    at, found = run["now"], []
    if at["phase"] == "failed":
        found.append(Trouble("TandemRunEndedEarly", True, f"The run failed: {at['cause']}"))
    elif at["phase"] == "stopped":
        words = "Nobody works at the run, and it had not come to its end: tandem resume RUN"
        found.append(Trouble("TandemRunEndedEarly", False, words))
    if at["is_alive"] and at["silent_seconds"] > STALLED_SECONDS:
        words = f"The run has not gone forward for {at['silent_seconds']:,.0f} s"
        found.append(Trouble("TandemStalled", True, words))
    if not at["is_alive"]:
        return found
    again = [start for start in run["starts"][1:] if now - (start["time"] or 0) < RESTARTED_SECONDS]
    if again:
        words = f"Started anew {len(again)} times in the last ten minutes"
        found.append(Trouble("TandemRestarted", False, words))
    failures = _grown(run, "checkpoint_failures", now - FAILING_SECONDS)
    if failures > 0:
        words = f"{failures:,.0f} checkpoints could not be written in the last hour"
        found.append(Trouble("TandemCheckpointFailing", False, words))
    waits = _newest(run, "data_wait_share", STARVED_READINGS)
    if len(waits) == STARVED_READINGS and min(waits) > STARVED_SHARE:
        words = f"Steps wait for data {100 * waits[-1]:.0f} % of the time"
        found.append(Trouble("TandemDataStarvation", False, words))
    return found


def _grown(run: dict[str, Any], key: str, since: float) -> float:
    """How far a count has grown since a moment; where lines have no time, since the start."""
    values = run["metrics"].get(key, [])
    times = run["metrics"].get("time", [None] * len(values))
    known = [pair for pair in zip(values, times, strict=True) if pair[0] is not None]
    before = [value for value, time in known if time is not None and time < since]
    return (known[-1][0] if known else 0.0) - (before[-1] if before else 0.0)


def _newest(run: dict[str, Any], key: str, count: int) -> list[float]:
    return [value for value in run["metrics"].get(key, []) if value is not None][-count:]
