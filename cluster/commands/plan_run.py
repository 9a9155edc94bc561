"""`tandem plan`: for the GPUs of a cluster that is named, or of this machine."""

from __future__ import annotations

from cluster.workers.options import existing_address
from trainer.command_line import PlanArguments
from trainer.tools.plan import plan
from trainer.tools.planned_gpus import FoundGpus


def main(arguments: PlanArguments, verbose: bool) -> int:
    """Plan and print; returns the exit status."""
    joined = existing_address(arguments.address)
    if joined is None or arguments.gpus is not None:  # what is said needs no cluster to count it
        return plan(arguments)
    return plan(arguments, gpus_of_cluster(joined.text, verbose))


def gpus_of_cluster(address: str, verbose: bool) -> FoundGpus:
    """Of the nodes that are alive; their memory is not known to Ray."""
    from cluster.workers.session import gpus_by_node, ray_session

    with ray_session(address, verbose=verbose):
        counts = gpus_by_node()
    return FoundGpus(f"the cluster at {address}", sum(counts), max(counts, default=0), None)
