"""A run whose data and folder lie in an object store that resets, throttles and tears answers."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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

    data, here = data_and_losses(tmp_path)
    with bucket_behind(monkeypatch, every) as (bucket, met):
        s3fs.S3FileSystem().put(data, f"{bucket}/data", recursive=True)
        spec = replace(spec_of(f"{bucket}/data", tmp_path, **SETTINGS), out=f"{bucket}/run")
        run_worker(spec, Notes())
        assert losses_of(spec.out) == here
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
    data, here = data_and_losses(tmp_path)
    with bucket_behind(monkeypatch, 0, lag=3600) as (bucket, met):
        spec = replace(spec_of(data, tmp_path, **SETTINGS), out=f"{bucket}/run")
        run_worker(with_steps(spec, 7), Notes())
        folder = storage_path(spec.out) / "checkpoints"
        assert met["hidden"]
        assert [path.name for path in committed(folder)] == ["step-00000006", "step-00000007"]
        notes = Notes()
        run_worker(replace(with_steps(spec, 13), resume="auto"), notes)
        assert any("going on from step-00000007" in said for said in notes.said), notes.said
        assert [path.name for path in committed(folder)] == ["step-00000012", "step-00000013"]
        assert losses_of(spec.out) == here[:13]


def data_and_losses(tmp_path: Path) -> tuple[str, list[float]]:
    """A dataset on this disk, and the curve of a run on it that meets no faults."""
    data = str(tmp_path / "data")
    make_dataset(Path(data), users=60, items=40, rows=1400)
    run_worker(spec_of(data, tmp_path / "here", **SETTINGS), Notes())
    return data, losses_of(tmp_path / "here")


def losses_of(run: str | Path) -> list[float]:
    return [line["loss"] for line in read_records(RunFolder(run).metrics_file)]


@contextmanager
def bucket_behind(
    monkeypatch: pytest.MonkeyPatch, every: int, lag: float = 0
) -> Iterator[tuple[str, Counter[str]]]:
    """A bucket behind the proxy with its faults, and those that it made."""
    import s3fs

    with s3_server() as (bucket, variables):
        port = int(variables["AWS_ENDPOINT_URL"].rpartition(":")[2])
        with faulty(port, every, lag=lag) as (proxy, met):
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy}")
            s3fs.S3FileSystem.clear_instance_cache()
            yield bucket, met
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
