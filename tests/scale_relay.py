"""What the driver's node takes of many workers: python -m tests.scale_relay 512

The relay is a real actor; the workers' beats come from this process, as fast as Ray sends them. A
beat every BEAT_SECONDS and rank is what a run asks for.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from typing import Any

import ray

from cluster.workers.pulses import BEAT_SECONDS, Beat
from cluster.workers.relay import Receipt, RelayLink, start_relay
from cluster.workers.service_discovery import ServiceDiscovery
from cluster.workers.session import ray_session
from trainer.base.stopping import Told

ROUNDS = 20
EVENTS = 5_000


def beats(count: int, step: int) -> list[Beat]:
    """Of each rank after `step`."""
    return [
        Beat(rank, step, "training", step, None, step, f"pid {rank} on node-{rank // 8}", "n" * 56)
        for rank in range(count)
    ]


def of_relay(count: int) -> dict[str, float]:
    """Beats and events a second into one actor, and how long the driver's look takes then."""
    with ray_session(None, min_cpus=2):
        relay = start_relay(30.0)
        link = RelayLink(relay)
        link.wait_until_up(Told())
        link.begin(1, count)
        started = time.monotonic()
        for step in range(ROUNDS):
            ray.get([relay.beat.remote(1, beat) for beat in beats(count, step)])
        beating = time.monotonic() - started
        started = time.monotonic()
        look = link.look(1, count)
        looking = time.monotonic() - started
        assert look is not None and len(look.beats) == count and look.verdict is None
        started = time.monotonic()
        for number in range(EVENTS):
            relay.put.remote(1, "message", f"message {number}")
        _, kept = ray.get(relay.take.remote(Receipt()))
        putting = time.monotonic() - started
        assert len(kept) == EVENTS
    return {
        "beats_a_second_asked": count / BEAT_SECONDS,
        "beats_a_second_taken": round(ROUNDS * count / beating),
        "look_seconds": round(looking, 4),
        "events_a_second_taken": round(EVENTS / putting),
    }


def of_discovery(count: int) -> dict[str, float]:
    """Bytes and seconds of the list that Prometheus asks for."""
    with ServiceDiscovery("/shared/runs/mine", port=0) as discovery:
        for rank in range(count):
            discovery.set_target(rank, f"10.0.{rank // 8}.7:{9500 + rank % 8}")
        started = time.monotonic()
        with urllib.request.urlopen(discovery.url) as answer:
            listed = answer.read()
        seconds = time.monotonic() - started
    assert len(json.loads(listed)) == count
    return {"list_bytes": len(listed), "list_seconds": round(seconds, 4)}


def measure(count: int) -> dict[str, Any]:
    """Of `count` ranks."""
    return {"ranks": count, **of_relay(count), **of_discovery(count)}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1])), indent=2))
