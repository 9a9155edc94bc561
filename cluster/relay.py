"""From the workers to the driver: progress, metrics addresses, heartbeats.

Workers run anywhere on the cluster and have no terminal. A small actor on the driver's node
gathers what they say; the driver reads it a few times a second and shows it.

    worker: RelayProgress --put--> Relay (actor) --take--> RelayReader (thread) :driver
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.heartbeat import Answer, Pulses

READ_SECONDS = 0.25
SEND_SECONDS = 0.2
MOST_EVENTS = 10_000

Event = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Name of a handler, and its arguments."""


class Relay:
    """The actor: a bounded queue of events, oldest dropped first, and the ranks' pulses."""

    def __init__(self, step_timeout_seconds: float) -> None:
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._pulses = Pulses(step_timeout_seconds)

    def put(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._pulses.advance()
        self._events.append((name, args, kwargs))

    def begin(self, group: int, count: int) -> None:
        self._pulses.begin(group, count)

    def ask_to_stop(self, group: int) -> None:
        self._pulses.ask_to_stop(group)

    def beat(self, group: int, rank: int, step: int, where: str, node: str) -> Answer:
        return self._pulses.beat(group, rank, step, where, node)

    def nodes(self) -> set[str]:
        """Ids of the nodes that the group's ranks are on."""
        return self._pulses.nodes

    def verdict(self) -> str | None:
        """Why the group was condemned, if it was."""
        return self._pulses.verdict

    def take(self) -> list[Event]:
        """Everything since the last call."""
        events = list(self._events)
        self._events.clear()
        return events


def start_relay(step_timeout_seconds: float) -> Any:
    """The relay's handle, on this node: it must not go away with a worker's node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Relay).options(num_cpus=0, scheduling_strategy=here).remote(step_timeout_seconds)
    )


class RelayProgress:
    """A worker's `Progress`: sends to the relay and never waits for it.

    Updates closer than SEND_SECONDS to the last one are dropped, apart from the final one.
    """

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._sent: dict[str, float] = {}

    def update(self, name: str, done: int, total: int | None = None, **values: float) -> None:
        now = time.monotonic()
        if done != total and now - self._sent.get(name, float("-inf")) < SEND_SECONDS:
            return
        self._sent[name] = now
        self._relay.put.remote("update", name, done, total, **values)

    def message(self, text: str) -> None:
        self._relay.put.remote("message", text)

    def close(self) -> None:
        """The driver ends its own display."""


class RelayLog(logging.Handler):
    """Sends a worker's own errors (a damaged checkpoint, for one) to the user's terminal."""

    def __init__(self, relay: Any) -> None:
        super().__init__(logging.ERROR)
        self._relay = relay

    def emit(self, record: logging.LogRecord) -> None:
        self._relay.put.remote("message", record.getMessage())


class RelayReader:
    """Reads the relay in a thread and calls the handler of each event, in order.

    A context manager; leaving it reads what is left.
    """

    def __init__(self, relay: Any, handlers: dict[str, Callable[..., None]]) -> None:
        self._relay = relay
        self._handlers = handlers
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tandem-relay", daemon=True)

    def __enter__(self) -> "RelayReader":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        self._read()

    def _run(self) -> None:
        while not self._stop.wait(READ_SECONDS):
            self._read()

    def _read(self) -> None:
        try:
            events = ray.get(self._relay.take.remote(), timeout=5)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return  # the cluster is going down; `fit` tells why
        for name, args, kwargs in events:
            self._handlers[name](*args, **kwargs)
