"""What is said of a job while its output is waited for."""

from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster.jobs import job_output


class Clock:
    """Seconds pass where they are slept; a client whose job begins at one of them."""

    def __init__(self, begins: float) -> None:
        self.now, self.begins = 0.0, begins

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def get_job_info(self, job: str) -> JobDetails:
        return JobDetails(
            type=JobType.SUBMISSION,
            submission_id=job,
            entrypoint="python",
            status=JobStatus.PENDING if self.now < self.begins else JobStatus.RUNNING,
            message="Job has not started yet. It may be waiting for resources.\nMore.",
        )


@pytest.mark.parametrize(("begins", "said"), [(0, []), (9, []), (60, [10]), (140, [10, 70, 130])])
def test_a_job_that_is_not_started_says_what_it_waits_for(
    begins: float,
    said: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock(begins)
    monkeypatch.setattr(job_output, "time", clock)
    client: Any = clock
    job_output.wait_for_start(client, "job1")
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("waiting for resources. `ray status` on the head") == len(said), text
    for seconds in said:
        assert f"job job1 has waited {seconds} s to be started: Job has not started yet." in text
    assert clock.now == begins
