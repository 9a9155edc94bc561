"""Reading ahead: windows on a small pool, finished batches in a bounded queue.

    readers: windows read, permuted, joined -> loader thread: batches -> queue -> consumer

An exception anywhere ends the stream and is raised in the consumer. The loader thread is a daemon
that a finalizer stops and joins: when the stream is closed, collected, or the process ends.
"""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from trainer.loader.assemble import Window
from trainer.loader.batch import Batch
from trainer.loader.epoch_plan import WindowUse
from trainer.loader.order import EpochOrder

POLL_SECONDS = 0.1


class WindowCache:
    """Windows read ahead in the order of their first use, and dropped after their last.

    read: (order, window) -> Window, run on the pool's threads.
    uses: all uses to come, by first step.
    ahead: windows held beyond those that the present step needs.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        read: Callable[[EpochOrder, int], Window],
        uses: Iterator[WindowUse],
        ahead: int,
    ) -> None:
        self._pool, self._read, self._uses, self._ahead = pool, read, uses, ahead
        self._next = next(uses, None)
        self._held: dict[tuple[int, int], tuple[Future[Window], int, int]] = {}

    def advance(self, step: int) -> None:
        """Drop what no step from `step` on needs, and start reading ahead."""
        done = [key for key, (_, _, last) in self._held.items() if last < step]
        for key in done:
            del self._held[key]
        waiting = sum(first > step for _, first, _ in self._held.values())
        while (use := self._next) is not None and (use.first <= step or waiting < self._ahead):
            key = (use.order.epoch, use.window)
            if key in self._held:
                future, first, last = self._held[key]
                self._held[key] = (future, first, max(last, use.last))
            else:
                future = self._pool.submit(self._read, use.order, use.window)
                self._held[key] = (future, use.first, use.last)
                waiting += use.first > step
            self._next = next(self._uses, None)

    def get(self, epoch: int, window: int) -> Window:
        """A window that the present step needs, waiting until it is read."""
        return self._held[epoch, window][0].result()


class BatchStream(Iterator[Batch]):
    """Batches built by a background thread; close it, or let it go out of scope.

    batches: generator run in that thread; closed there at the end.
    ahead: finished batches that wait in the queue at most.
    """

    def __init__(self, batches: Iterator[Batch], ahead: int) -> None:
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(ahead)
        self._ended = False
        self.wait_seconds = 0.0
        """Time the consumer spent waiting for batches so far."""
        stop = threading.Event()
        thread = threading.Thread(
            target=_fill, args=(batches, self._queue, stop), name="tandem-loader", daemon=True
        )
        self._finalizer = weakref.finalize(self, _stop, stop, thread, self._queue)
        thread.start()

    def __next__(self) -> Batch:
        if self._ended:
            raise StopIteration
        begin = time.perf_counter()
        item = self._queue.get()
        self.wait_seconds += time.perf_counter() - begin
        if isinstance(item, Batch):
            return item
        self.close()
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        """Stop and join the background thread. Can be called again."""
        self._ended = True
        self._finalizer()


def _fill(
    batches: Iterator[Batch],
    out: "queue.Queue[Batch | BaseException | None]",
    stop: threading.Event,
) -> None:
    """Body of the builder thread. Knows the queue, not the stream: that may be collected."""
    item: Batch | BaseException | None
    while not stop.is_set():
        try:
            item = next(batches, None)
        except BaseException as error:  # noqa: BLE001  raised again in the consumer
            item = error
        while not stop.is_set():
            try:
                out.put(item, timeout=POLL_SECONDS)
                break
            except queue.Full:
                continue
        if not isinstance(item, Batch):
            break
    batches.close()  # type: ignore[attr-defined]  # a generator: ends its pool


def _stop(
    stop: threading.Event,
    thread: threading.Thread,
    out: "queue.Queue[Batch | BaseException | None]",
) -> None:
    stop.set()
    while not out.empty():
        out.get_nowait()
    if thread is not threading.current_thread():
        thread.join()
