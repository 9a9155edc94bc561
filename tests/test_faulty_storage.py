"""A run whose data and folder lie in an object store that resets, throttles and tears answers."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.faulty_proxy import FAULTS, faulty
from tests.one_rank import Notes, spec_of
from tests.s3 import s3_server
from trainer.files.json_files import COMMIT_FILE, NOTED_FILE, committed, note_newest, write_json
from trainer.files.line_file import read_records
from trainer.files.storage import storage_path
from trainer.run.folder import RunFolder, RunSpec
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
            there = {path.name for path in (storage_path(spec.out) / "checkpoints").iterdir()}
            assert sorted(there - {NOTED_FILE}) == ["step-00000018", "step-00000020"]
    assert all(met[fault] for fault in FAULTS), met


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_listing_that_lags_hides_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run went on from what the listing had, an older checkpoint or none, and said nothing."""
    import s3fs

    data = tmp_path / "data"
    make_dataset(data, users=60, items=40, rows=1400)
    run_worker(spec_of(str(data), tmp_path / "here", **SETTINGS), Notes())
    with s3_server() as (bucket, variables):
        port = int(variables["AWS_ENDPOINT_URL"].rpartition(":")[2])
        with faulty(port, 0, lag=3600) as (proxy, met):
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy}")
            s3fs.S3FileSystem.clear_instance_cache()
            spec = replace(spec_of(str(data), tmp_path, **SETTINGS), out=f"{bucket}/run")
            run_worker(with_steps(spec, 7), Notes())
            folder = storage_path(spec.out) / "checkpoints"
            assert met["hidden"]
            assert [path.name for path in committed(folder)] == ["step-00000006", "step-00000007"]
            notes = Notes()
            run_worker(replace(with_steps(spec, 13), resume="auto"), notes)
            assert any("going on from step-00000007" in said for said in notes.said), notes.said
            assert [path.name for path in committed(folder)] == ["step-00000012", "step-00000013"]
            lines = read_records(RunFolder(spec.out).metrics_file)
            here = read_records(RunFolder(tmp_path / "here").metrics_file)[:13]
            assert [line["loss"] for line in lines] == [line["loss"] for line in here]
    s3fs.S3FileSystem.clear_instance_cache()


def with_steps(spec: RunSpec, steps: int) -> RunSpec:
    """The same, ended after so many."""
    training = replace(spec.config.training, max_steps=steps)
    return replace(spec, config=replace(spec.config, training=training))


@pytest.mark.parametrize(
    "noted", ["", "[]", '{"steps": 3}', '{"steps": [-1, 1e3, "../x", null, 18446744073709551616]}']
)
def test_a_note_of_steps_that_says_something_else_is_passed_over(
    noted: str, tmp_path: Path
) -> None:
    (tmp_path / NOTED_FILE).write_text(noted)
    assert committed(tmp_path) == []
    note_newest(tmp_path, 4)
    assert committed(tmp_path) == []  # noted, and not whole yet
    (tmp_path / "step-00000004").mkdir()
    write_json(tmp_path / "step-00000004" / COMMIT_FILE, {})
    assert [path.name for path in committed(tmp_path)] == ["step-00000004"]
