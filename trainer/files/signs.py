"""Whether whoever renews a file still does, told without comparing two machines' clocks.

owner.json says when it was renewed by the clock of the machine that wrote it. That of another
machine may be minutes off, so the two are never compared where it matters: who would take the
folder over asks the storage, by its own clock, how old the file is, and counts on by a clock of its
own. Who only reads watches whether the file changes, where the time in it leaves a doubt.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from trainer.files.storage import StoragePath, modified_at

RENEW_SECONDS = 10.0
SILENT_SECONDS = 60.0
DOUBT_SECONDS = 900.0
"""By so much clocks of two machines may differ for those that only read."""
LOOK_SECONDS = 0.5
CLOCK_FILE = ".clock"
"""Written, and removed again, to learn what time it is where the folder lies."""


class Silence:
    """How long a file has not been renewed, for a start that would take its writer's place."""

    def __init__(self, file: StoragePath) -> None:
        self._file = file
        self._seen: object = None
        self._before = self._seen_at = 0.0

    def seconds(self, owner: object) -> float:
        """Of the file, which was read just now as `owner`: another with each sign.

        Raises:
            OSError: where the folder cannot be written.
        """
        now = time.monotonic()
        if owner != self._seen:
            self._seen, self._seen_at = owner, now
            self._before = max(self._now() - modified_at(self._file), 0.0)
        return self._before + now - self._seen_at

    def _now(self) -> float:
        """By the clock that dates the folder's files."""
        probe = self._file.with_name(CLOCK_FILE)
        while True:
            probe.write_text("")
            try:
                return modified_at(probe)
            except FileNotFoundError:  # another start asked, too, and took it away
                continue
            finally:
                probe.unlink(missing_ok=True)


@dataclass(frozen=True)
class Sign:
    """What a reader knows of an owner."""

    is_alive: bool
    in_doubt: bool
    """Clocks alone do not tell: a few seconds more will, in which an owner that lives renews."""
    now: float
    """What the owner's clock shows now, to some seconds, if it lives: its times are told by it."""


class Signs:
    """For those that only read a folder, once or again and again."""

    def __init__(self) -> None:
        self._seen: object = None
        self._seen_at = 0.0
        self._changed = False

    def noted(self, owner: object, renewed: float) -> Sign:
        """owner.json was read just now: `owner`, renewed at `renewed` by its own clock."""
        if owner != self._seen:
            self._changed = self._seen is not None
            self._seen, self._seen_at = owner, time.monotonic()
        watched, age = time.monotonic() - self._seen_at, time.time() - renewed
        there = renewed + watched
        if self._changed:
            return Sign(watched < SILENT_SECONDS, False, there)
        if -RENEW_SECONDS <= age < SILENT_SECONDS or age > DOUBT_SECONDS:
            return Sign(age < SILENT_SECONDS, False, there)
        in_doubt = watched < RENEW_SECONDS + 4 * LOOK_SECONDS
        return Sign(in_doubt and age < 0, in_doubt, there)
