"""What the relay knows of a group's ranks, and the verdict on a group that goes no further.

Every sign of progress counts: a step, a block of queries evaluated, a megabyte of a checkpoint.
When no rank has given one for as long as its phase may take, the one that fell silent or behind is
named.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trainer.distributed.hooks import RunPhase

BEAT_SECONDS = 2.0
SILENT_SECONDS = 3 * BEAT_SECONDS
PATIENCE: dict[RunPhase, float] = {
    "training": 1.0,
    "evaluating": 1.0,
    "starting": 3.0,
    "checkpointing": 3.0,
    "waiting": 3.0,
    "stopped": 3.0,
    "failed": 3.0,
    "finished": 3.0,
}
"""How often --step-timeout may go by without a sign, in each phase: what is done there in one piece
(a table filled, a file closed on a slow disk) takes longer than a step."""
LONGEST_PATIENCE = max(PATIENCE.values())


@dataclass(frozen=True)
class Beat:
    """What a rank tells of itself."""

    rank: int
    step: int
    """The last one finished by this group; 0 before its first."""
    phase: RunPhase
    done: int
    total: int | None
    signs: int
    """Of progress, since the rank began: it grows with each."""
    where: str
    node: str
    """Ray's id of it."""
    pid: int = 0

    @property
    def at(self) -> str:
        """`step 7`, `step 7, evaluating 3,072 of 94,654`."""
        if self.phase == "training":
            return f"step {self.step}"
        of = "" if self.total is None else f" {self.done:,} of {self.total:,}"
        return f"step {self.step}, {self.phase}{of}"


@dataclass
class Pulse:
    """A rank's last beat."""

    beat: Beat
    heard_at: float


@dataclass(frozen=True)
class Answer:
    """What a beat is answered."""

    verdict: str | None = None
    """Why the group is condemned."""
    stop: bool = False
    """Write a checkpoint and return."""


class Pulses:
    """Beats of one group's ranks.

    Args:
        step_timeout_seconds: the longest from one sign of progress to the next, of all ranks
            together; times PATIENCE.
    """

    def __init__(
        self, step_timeout_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._step_timeout_seconds = step_timeout_seconds
        self._clock = clock
        self._count = 0
        self._stop = False
        self._ranks: dict[int, Pulse] = {}
        self._left: set[int] = set()
        self._advanced_at = 0.0
        self.group = 0
        """The number of the group that is listened to."""
        self.verdict: str | None = None

    def begin(self, group: int, count: int) -> None:
        """Forget an earlier group's ranks; the new one has `count`."""
        self.group, self._count = group, count
        self._ranks, self._left = {}, set()
        self._advanced_at = self._clock()
        self._stop = False
        self.verdict = None

    def ask_to_stop(self, group: int) -> None:
        """Answer every beat of `group` from now on that it shall stop at a checkpoint."""
        self._stop = self._stop or group == self.group

    @property
    def beats(self) -> list[Beat]:
        """The last of each rank that was heard."""
        return [pulse.beat for _, pulse in sorted(self._ranks.items())]

    def beat(self, group: int, beat: Beat) -> Answer:
        """Note what a rank tells; the verdict, if the group is condemned."""
        if group != self.group:
            return Answer()
        now = self._clock()
        known = self._ranks.get(beat.rank)
        if known is None or beat.signs > known.beat.signs:
            self._advanced_at = now
        self._ranks[beat.rank] = Pulse(beat, now)
        return Answer(self.judge(), self._stop)

    def leave(self, group: int, rank: int) -> None:
        """A rank's work is over, well or not: it beats no more, and is not waited for."""
        if group == self.group:
            self._left.add(rank)
            self._advanced_at = self._clock()

    @property
    def remaining(self) -> list[Beat]:
        """The last of each rank that was heard and has not left."""
        return [beat for beat in self.beats if beat.rank not in self._left]

    def judge(self) -> str | None:
        """The verdict of now. Asked by the driver, too: where the rest has left, nobody beats."""
        if self.verdict is None and (self.remaining or not self._left):
            self.verdict = self._judge(self._clock())
        return self.verdict

    def _judge(self, now: float) -> str | None:
        stuck_seconds = now - self._advanced_at
        if stuck_seconds <= self._step_timeout_seconds:
            return None
        absent = self._absent(now)
        if absent:
            return f"{absent}: {self._limit(1.0)}"
        patience = max(PATIENCE[beat.phase] for beat in self.remaining)
        if stuck_seconds <= patience * self._step_timeout_seconds:
            return None
        behind = self._behind()
        names = ", ".join(map(_name, behind))
        if len(behind) == len(self._ranks) > 1:
            names = f"all {len(behind)} ranks"
        hang = "hangs" if len(behind) == 1 else "hang"
        return f"{names} {hang} after {behind[0].at}: {self._limit(patience)}"

    def _absent(self, now: float) -> str:
        """Who does not even beat; empty where all do."""
        known = self._ranks.keys() | self._left
        unheard = [f"rank {rank}" for rank in range(self._count) if rank not in known]
        if unheard:
            has = "has" if len(unheard) == 1 else "have"
            return f"{', '.join(unheard)} {has} not answered since the group began"
        return ", ".join(
            f"{_name(pulse.beat)} has not answered for {now - pulse.heard_at:.0f} s, last heard of "
            f"at {pulse.beat.at}"
            for rank, pulse in sorted(self._ranks.items())
            if rank not in self._left and now - pulse.heard_at > SILENT_SECONDS
        )

    def _behind(self) -> list[Beat]:
        """Those that the others wait for, as far as steps and what is done of a phase tell."""
        beats = self.remaining
        last = min(beat.step for beat in beats)
        behind = [beat for beat in beats if beat.step == last]
        if len(behind) == len(beats) and len({beat.phase for beat in beats}) == 1:
            least = min(beat.done for beat in beats)
            behind = [beat for beat in beats if beat.done == least]
        return behind

    def _limit(self, patience: float) -> str:
        times = "" if patience == 1.0 else f"{patience:g} times "
        return f"no progress within {times}--step-timeout {self._step_timeout_seconds:g} s"


def _name(beat: Beat) -> str:
    return f"rank {beat.rank} ({beat.where})"
