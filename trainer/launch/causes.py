"""Why work on several ranks failed: the first cause, not what followed from it on other ranks."""

from __future__ import annotations

import re
from enum import IntEnum

from trainer.distributed.agreement import ElsewhereError
from trainer.launch.shared_memory import is_full

# What a rank says when *another* one went away.
CONSEQUENCES = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket (timeout|closed)|"
    r"timed out|timeout|unhealthy|remote process exited|NCCL|watchdog|TCPStore|store->",
    re.IGNORECASE,
)


class WorkFailedError(RuntimeError):
    """What a rank met that is not the user's mistake; a note holds the rank's traceback."""


class Gravity(IntEnum):
    """Which of the ranks' ends is told: the lowest, the likeliest first cause."""

    MISTAKE = 0
    FAULT = 1
    DEATH = 2
    CONSEQUENCE = 3


def is_consequence(error: BaseException) -> bool:
    """Whether it tells of another rank."""
    if is_full(str(error)):  # NCCL's words for it are about this rank's machine
        return False
    return isinstance(error, ElsewhereError) or bool(CONSEQUENCES.search(str(error)))
