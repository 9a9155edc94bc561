"""`tandem.train` on workers of Ray: the same run, opened in this process."""

from pathlib import Path

import pytest

import tandem
from tests.datasets import make_dataset
from tests.retrieval.test_commands import tiny_config
from trainer.api.run import close_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_two_workers_train_and_this_process_asks(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", users=50, items=40, rows=900)
    run = tandem.train(tiny_config(), data=data, out=tmp_path / "run", workers=2, discovery_port=0)
    assert run.summary["workers"] == 2 and run.step == 4
    assert len(run.recommend(user=1007, k=3)) == 3
    close_all()
