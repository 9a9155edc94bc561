"""The pause between two turns of a thread, which can be cut short."""

import threading


class Pauses:
    """One thread takes them, any other cuts them short."""

    def __init__(self) -> None:
        self._wake = threading.Event()
        self._over = threading.Event()

    def cut(self) -> None:
        """End the present one, or else the next, at once: there is news."""
        self._wake.set()

    def end(self) -> None:
        """There are no more turns."""
        self._over.set()
        self._wake.set()

    @property
    def are_over(self) -> bool:
        """Whether there are no more turns."""
        return self._over.is_set()

    def take(self, seconds: float) -> bool:
        """Wait for so long, or until it is cut short; whether there is another turn."""
        self._wake.wait(seconds)
        self._wake.clear()
        return not self.are_over
