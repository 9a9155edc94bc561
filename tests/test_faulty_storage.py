"""A run whose data and folder lie in an object store that resets, throttles and tears answers."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.faulty_proxy import FAULTS, faulty
from tests.one_rank import Notes, spec_of
from tests.s3 import s3_server
from trainer.files.line_file import read_records
from trainer.files.storage import storage_path
from trainer.run.folder import RunFolder
from trainer.run.state import read_state
from trainer.train import run_worker

SETTINGS = {"training": {"epochs": 2}, "checkpoint": {"every_steps": 2, "keep": 2}}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", [50, 5])
def test_one_request_in_so_many_fails(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    data = tmp_path / "data"
    make_dataset(data, users=60, items=40, rows=1400)
    run_worker(spec_of(str(data), tmp_path / "here", **SETTINGS), Notes())
    with s3_server() as (bucket, variables):
        port = int(variables["AWS_ENDPOINT_URL"].rpartition(":")[2])
        with faulty(port, every) as (proxy, met):
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy}")
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().put(str(data), f"{bucket}/data", recursive=True)
            spec = replace(spec_of(f"{bucket}/data", tmp_path, **SETTINGS), out=f"{bucket}/run")
            run_worker(spec, Notes())
            lines = read_records(RunFolder(spec.out).metrics_file)
            here = read_records(RunFolder(tmp_path / "here").metrics_file)
            assert [line["loss"] for line in lines] == [line["loss"] for line in here]
            assert read_state(spec.out).phase == "finished"
            kept = sorted(path.name for path in (storage_path(spec.out) / "checkpoints").iterdir())
            assert kept == ["step-00000018", "step-00000020"]
    assert all(met[fault] for fault in FAULTS), met
