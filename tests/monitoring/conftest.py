"""A small trained run, and the system's Prometheus and Chromium where they are installed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.monitoring.two_ranks import Scraped, scraped_run
from tests.test_training import small_config, train
from trainer.run.folder import RunSpec

ROOT = Path(__file__).parents[2]


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip, with the package to install, where a program is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    reason = f"{', '.join(missing)} not installed (apt-get install prometheus chromium)"
    return pytest.mark.skipif(bool(missing), reason=reason)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("monitoring") / "data"
    make_dataset(path, users=80, items=60, rows=1500)
    return str(path)


@pytest.fixture(scope="session")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was resumed once, with an evaluation after each epoch."""
    out = tmp_path_factory.mktemp("monitoring") / "run-a"
    config = small_config(
        evaluation={"every_epochs": 1, "k": (20,)},
        checkpoint={"every_steps": 8},
        negatives={"log_q": "streaming"},
    )
    stopped = small_config(**{**_sections(config), "training": {"max_steps": 12}})
    train(RunSpec("ml-100k", stopped, data, str(out)), 1)
    train(RunSpec("ml-100k", config, data, str(out), resume=True), 1)
    return out


def _sections(config) -> dict[str, dict]:  # type: ignore[no-untyped-def]
    values = config.to_json()
    return {name: values[name] for name in ("evaluation", "checkpoint", "negatives")}


@pytest.fixture(scope="module")
def healthy(data: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Two ranks that train on and on, read by a Prometheus once a second."""
    with scraped_run(data, tmp_path_factory.mktemp("healthy")) as scraped:
        yield scraped
