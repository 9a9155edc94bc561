"""A job's output, followed to its end."""

import asyncio
import time

from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.jobs.job_api import JobCluster, find_job
from trainer.base.screen import say

LOOK_SECONDS = 1.0
PENDING_SECONDS = (10.0, 60.0)
"""A job that has not begun is told of after the first, and again after each of the second."""
EXIT_STATUS = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 1, JobStatus.STOPPED: 130}


def first_line(message: str | None) -> str:
    """Ray appends the whole log to a failed job's message."""
    return (message or "").partition("\n")[0].partition(", last available logs")[0]


def told_of(cluster: JobCluster, command: str, job: str) -> list[str]:
    """The command that a user gives next."""
    return ["tandem", command, job, "--address", cluster.address]


def wait_for_start(client: JobSubmissionClient, job: str) -> None:
    """Until the job has begun; what it may wait for is said where that is long."""
    began = time.monotonic()
    say_after, again = PENDING_SECONDS
    while (details := find_job(client, job)).status is JobStatus.PENDING:
        if (waited := time.monotonic() - began) >= say_after:
            say(
                f"job {job} has waited {waited:.0f} s to be started: {first_line(details.message)} "
                "`ray status` on the head says what is free and what is asked for"
            )
            say_after += again
        time.sleep(LOOK_SECONDS)


def follow(cluster: JobCluster, job: str) -> int:
    """Print the job's output until its end. Ctrl-C leaves the job running."""

    async def tail() -> None:
        async for lines in cluster.client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        wait_for_start(cluster.client, job)
        asyncio.run(tail())
    except KeyboardInterrupt:
        say()
        say(f"job {job} goes on; end it with:", command=told_of(cluster, "stop", job))
        return 130
    details = find_job(cluster.client, job)
    if details.status not in EXIT_STATUS:
        say(f"the connection ended while job {job} is {details.status.value}")
        return 1
    if details.status is not JobStatus.SUCCEEDED:
        say(f"job {job} {details.status.value}: {first_line(details.message)}")
    return EXIT_STATUS[details.status]
