"""The trackers' own libraries, read by themselves: every line once, also across a resume."""

import json
import os
import pty
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.one_rank import STEPS, begun, checkpoints, resumed
from trainer.base.mistake import Mistake
from trainer.observe.trackers import mirror

STOPPED = 6
"""Step at which the first start ends; its checkpoint of step 4 is the one gone on with."""
pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trackers") / "data"
    make_dataset(path, users=60, items=40, rows=1400)
    return str(path)


def stopped_and_resumed(data: str, out: Path, tracker: str) -> dict[int, float]:
    """A run that trains two of its steps twice; the loss of each step by metrics.jsonl."""
    track = {"track": (tracker,)}
    said = begun(data, out, metrics=track, training={"epochs": 1, "max_steps": STOPPED})
    shutil.rmtree(checkpoints(out)[-1])
    said += resumed(data, out, metrics=track)
    assert not [line for line in said if "--track" in line]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def test_tensorboard(data: str, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: make test-trackers",
    )
    losses = stopped_and_resumed(data, tmp_path / "run", "tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "run/trackers/tensorboard"))
    events.Reload()
    told = {each.step: each.value for each in events.Scalars("loss")}
    assert len(events.Scalars("loss")) == STEPS == len(losses)
    assert told == pytest.approx(losses)


def test_mlflow(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: make test-trackers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "plays")
    losses = stopped_and_resumed(data, tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("plays")
    (run,) = client.search_runs([experiment.experiment_id])
    told = client.get_metric_history(run.info.run_id, "loss")
    assert len(told) == STEPS
    assert {metric.step: metric.value for metric in told} == pytest.approx(losses)
    assert run.data.params["loss.name"] == "ssm" and run.info.status == "FINISHED"


def test_wandb_offline(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: make test-trackers")
    monkeypatch.setenv("WANDB_MODE", "offline")
    losses = stopped_and_resumed(data, tmp_path / "run", "wandb")
    files = sorted((tmp_path / "run/trackers/wandb").glob("offline-run-*/run-*.wandb"))
    known = json.loads((tmp_path / "run/trackers/wandb.json").read_text())["id"]
    assert [file.stem for file in files] == [f"run-{known}"] * 2
    told: dict[int, float] = {}
    for file in files:
        told |= losses_of(file)
    assert told == pytest.approx(losses)


NO_KEY = """
import sys
from pathlib import Path
from trainer.observe.trackers.mirror import Mirrors
from trainer.observe.trackers.tracker import Tracked

mirrors = Mirrors(("wandb",), Tracked("RUN", Path(sys.argv[1]), 0, {}), print)
mirrors.log("", {"step": 1, "loss": 2.0})
mirrors.close()
"""


def test_wandb_without_a_key_is_one_line_and_no_question(tmp_path: Path) -> None:
    """On a terminal it would ask for one, in the midst of training."""
    pytest.importorskip("wandb", reason="wandb is not installed: make test-trackers")
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", NO_KEY, str(tmp_path)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=kept | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")},
        timeout=100,
    )
    os.close(theirs)
    os.close(ours)
    (line,) = done.stdout.decode().splitlines()
    assert line.startswith("--track wandb: UsageError: No API key configured.")


def losses_of(file: Path) -> dict[int, float]:
    """Step and loss of W&B's own file."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for data in framed(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or item.nested_key[0]: json.loads(item.value_json)
                for item in record.history.item
            }
            found[int(values["_step"])] = values["loss"]
    return found


def framed(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB; checksum, length and kind before a piece."""
    block, header, begun = 1 << 15, struct.Struct("<IHB"), b""
    at = header.size  # W&B's own mark
    while at < len(data):
        left = block - at % block
        if left < header.size:
            at += left
            continue
        _, length, kind = header.unpack_from(data, at)
        at += header.size
        piece, at = data[at : at + length], at + length
        if kind in (1, 4):  # whole, or the last piece
            yield begun + piece
            begun = b""
        else:
            begun += piece


def test_an_absent_library_leaves_no_run(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "find_spec", lambda module: None)
    with pytest.raises(Mistake, match=r"--track wandb: .* pip install wandb"):
        begun(data, tmp_path / "run", metrics={"track": ("wandb",)})
    assert not (tmp_path / "run").exists()
