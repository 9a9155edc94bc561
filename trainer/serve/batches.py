"""Requests that arrive while others are answered are answered together, next.

One thread works; the queue is bounded. Nothing waits for a batch to fill: an idle server answers a
single request at once, a busy one as many as have come.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

Question = TypeVar("Question")
Reply = TypeVar("Reply")


class BusyError(Exception):
    """As many wait as may."""


class Batches(Generic[Question, Reply]):
    """A queue, and the thread behind it. Its methods are of the loop's thread.

    Args:
        work: replies to questions, one each, in the thread; an exception is a reply, too.
        at_once: questions of one call of `work`, at most.
        waiting: questions in the queue, at most.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Question]], Sequence[Reply | Exception]],
        at_once: int,
        waiting: int,
    ) -> None:
        self._work, self._at_once, self._most_waiting = work, at_once, waiting
        self._queue: deque[tuple[Question, asyncio.Future[Reply]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "tandem-answers")

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    async def ask(self, question: Question) -> Reply:
        """The reply, or what it raised. Raises BusyError where too many wait. Whoever is cancelled
        leaves the queue."""
        if len(self._queue) >= self._most_waiting:
            raise BusyError
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        asked = question, reply
        self._queue.append(asked)
        self._arrived.set()
        try:
            return await reply
        finally:
            if reply.cancelled():
                with suppress(ValueError):  # it is being answered
                    self._queue.remove(asked)

    async def run(self) -> None:
        """Answer until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            taken: list[tuple[Question, asyncio.Future[Reply]]] = []
            while self._queue and len(taken) < self._at_once:
                taken.append(self._queue.popleft())
            if not self._queue:
                self._arrived.clear()
            if not taken:
                continue
            questions = [question for question, _ in taken]
            try:
                found = await loop.run_in_executor(self._thread, self._work, questions)
            except Exception as error:  # noqa: BLE001  told to each who asked
                found = [error] * len(taken)
            for (_, reply), each in zip(taken, found, strict=True):
                if reply.done():
                    continue
                if isinstance(each, Exception):
                    reply.set_exception(each)
                else:
                    reply.set_result(each)

    def close(self) -> None:
        """End the thread, once it is through with what it works at."""
        self._thread.shutdown(wait=True, cancel_futures=True)
