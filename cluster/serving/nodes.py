"""Whether nodes have what replicas need: Ray Serve, and the bundle."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainer.base.mistake import Mistake
from trainer.bundle.opened_bundle import Bundle


def check_installed() -> None:
    """Raise Mistake where this process cannot import Ray Serve."""
    try:
        importlib.import_module("ray.serve")
    except ImportError as error:
        raise Mistake(
            f"Ray Serve is not installed ({error.msg}): pip install 'ray[serve]=={version('ray')}'"
        ) from error


def look(place: str) -> str | None:
    """What this node lacks, in one line; a task."""
    try:
        check_installed()
        Bundle(place)
    except Mistake as mistake:
        return str(mistake)
    return None


def check_nodes(place: str) -> None:
    """Raise Mistake for the first node with processors, so that it may have a replica, that lacks
    Ray Serve or the bundle."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]
    task: Any = ray.remote(look)
    asked = {
        node["NodeManagerAddress"]: task.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], False)
        ).remote(place)
        for node in nodes
    }
    for address, reference in asked.items():
        lacking = ray.get(reference)
        if lacking is not None:
            raise Mistake(f"node {address}: {lacking}")
