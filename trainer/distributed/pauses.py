"""The pauses between the signs that a thread gives of what its process is at."""

import threading

from trainer.distributed.hooks import RunPhase


class SignPauses:
    """One thread takes the pauses; others note what the process is at, which is cheap.

    That it has started is said at once: the pause ends. All else waits for the next sign.
    """

    def __init__(self) -> None:
        self.phase: tuple[RunPhase, int, int | None] = ("starting", 0, None)
        """What the next sign says: the phase, how much of it is done, of how much."""
        self._wake = threading.Event()
        self._over = threading.Event()

    def note(self, phase: RunPhase, done: int, total: int | None) -> None:
        """The process has got on with what it is at."""
        before, self.phase = self.phase[0], (phase, done, total)
        if before == "starting" != phase:
            self._wake.set()  # after the phase is there: it is what will be said

    def end(self) -> None:
        """There are no more signs."""
        self._over.set()
        self._wake.set()

    @property
    def are_over(self) -> bool:
        """Whether there are no more signs."""
        return self._over.is_set()

    def take(self, seconds: float) -> bool:
        """Wait for so long, or until it is cut short; whether there is another sign to give."""
        self._wake.wait(seconds)
        self._wake.clear()
        return not self.are_over
