"""Flags of compare, tune, plan and dashboard, and the exit status of a plan that does not fit."""

from pathlib import Path
from typing import Any

import pytest

from cluster import cli
from cluster.tune.search import TuneArguments
from cluster.tune.search import main as tune
from tests.datasets import make_dataset
from trainer.base.mistake import Mistake
from trainer.bench.worker_processes import Group, Workload
from trainer.command_line import PlanArguments, TrainArguments
from trainer.compare.flags import CompareArguments
from trainer.config.presets import find_preset
from trainer.launch.causes import WorkFailedError
from trainer.live.dashboard import DashboardArguments
from trainer.live.server import LivePage
from trainer.tools.planned_gpus import device_bytes

HUGE = 1 << 70
DEMO = find_preset("demo")


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (CompareArguments, {"seeds": 0}, "--seeds 0: must be from 1 to 1,000"),
        (CompareArguments, {"epochs": HUGE}, "--epochs 1180591620717411303424: must be"),
        (CompareArguments, {"uniform": -1}, "--uniform -1: must be from 1"),
        (CompareArguments, {"workers": 1000}, "--workers 1000: must be from 1"),
        (CompareArguments, {"tuning_trials": 7}, "--tuning-trials 7: must be from 1 to 6"),
        (CompareArguments, {"losses": ()}, "--losses is empty"),
        (CompareArguments, {"out": ""}, "--out is empty"),
        (CompareArguments, {"data": ""}, "DATA is empty"),
        (TuneArguments, {"trials": 10**9}, "--trials 1000000000: must be from 1 to 10,000"),
        (TuneArguments, {"at_once": 0}, "--at-once 0: must be from 1"),
        (TuneArguments, {"seed": -1}, "--seed -1: must be at least 0"),
        (TuneArguments, {"address": ""}, "--address is empty"),
        (PlanArguments, {"gpus": 0}, "--gpus 0: must be from 1"),
        (PlanArguments, {"gpus_a_node": -8}, "--gpus-a-node -8: must be from 1"),
        (PlanArguments, {"gpus": HUGE}, "--gpus 1180591620717411303424: must be"),
        (DashboardArguments, {"host": ""}, "--host is empty"),
        (DashboardArguments, {"port": 99999}, "--port 99999: must be from 0 to 65,535"),
        (DashboardArguments, {"port": -1}, "--port -1: must be from 0"),
        (DashboardArguments, {"prometheus_port": 0}, "--prometheus-port 0: must be from 1"),
        (DashboardArguments, {"storage": ""}, "--storage is empty"),
        (DashboardArguments, {"run": ""}, "RUN is empty"),
        (TrainArguments, {"data": ""}, "--data is empty"),
        (TrainArguments, {"out": ""}, "--out is empty"),
    ],
)
def test_values_out_of_range_are_refused(kind: type, given: dict[str, Any], words: str) -> None:
    needed: dict[type, dict[str, Any]] = {
        CompareArguments: {"data": "d", "out": "o"},
        TuneArguments: {"data": "d", "out": "o", "config": DEMO},
        PlanArguments: {"data": "d", "config": DEMO},
        DashboardArguments: {"run": "r"},
        TrainArguments: {"data": "d", "out": "o", "config": DEMO},
    }
    with pytest.raises(Mistake, match=f"^{words}"):
        kind(**needed[kind] | given)


def test_a_plan_that_does_not_fit_says_so_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path / "data", users=80, items=60, rows=1500)
    plan = ["plan", "demo", "--data", str(tmp_path / "data"), "--gpus", "2", "--gpu-memory"]
    for more in ([], ["--json"]):
        assert cli.main([*plan, "2MiB", *more]) == 3
        assert cli.main([*plan, "80GB", *more]) == 0
    shown = capsys.readouterr().out
    assert shown.count("it does not fit: ") == shown.count("What helps:") == 1
    assert shown.count("it fits") == 1
    assert shown.count('"fits": false') == shown.count('"fits": true') == 1


@pytest.mark.parametrize("memory", ["", "much", "1e400GB", "0GB", "999999999999999TB"])
def test_memory_of_a_gpu_is_named_by_its_flag(memory: str) -> None:
    with pytest.raises(Mistake, match=f"^--gpu-memory '{memory}' is "):
        device_bytes(memory)


@pytest.mark.parametrize(
    ("part", "flags", "words"),
    [
        ("step", ["--dim=0"], "--dim 0: must be from 1"),
        ("step", ["--rounds=0"], "--rounds 0: must be from 1"),
        ("step", ["--items=-1"], "--items -1: must be from 10"),
        ("step", ["--users=9223372036854775808"], "--users 9223372036854775808: must be from 1"),
        ("loss", ["--temperature=nan"], "--temperature nan: must be a number above 0"),
        ("loss", ["--repeats=10000"], "--repeats 10000: must be from 1 to 1,000"),
        ("data", ["--extra-candidates=-1"], "--extra-candidates -1: must be from 0"),
        ("data", ["--data="], "--data is empty"),
        ("eval", ["--seen=-1"], "--seen -1: must be from 0"),
        ("eval", ["--k=61", "--items=60"], "--k 61: must be from 1 to 60, of --items 60"),
        ("eval", ["--threads=-1"], "--threads -1: must be from 1"),
        ("sequence", ["--heads=3"], "--heads 3 does not divide --dim 64"),
    ],
)
def test_benchmarks_refuse_what_they_cannot_measure(
    part: str, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = usage(["bench", part, *flags])
    assert status in (1, 2) and words in " ".join(capsys.readouterr().err.replace("│", "").split())


def usage(arguments: list[str]) -> int:
    """Exit status of a command line; tyro ends wrong usage by itself."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return int(str(end.code))


@pytest.mark.slow  # a process that imports torchrec
def test_a_rank_of_a_benchmark_that_fails_ends_it() -> None:
    """The parent held the other end of the rank's pipe open, and waited for ever."""
    work = Workload(users=10, items=10, dim=0, global_batch_size=4, precision="fp32")
    with pytest.raises(WorkFailedError, match=r"rank 0: .*dim=0"):
        Group(1, work, threads=1)


def test_tune_writes_into_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Mistake, match="file exists already"):
        tune(["demo", "--data", "none", "--out", str(tmp_path / "file")], verbose=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_the_live_page_is_told_by_an_address_that_opens(host: str, tmp_path: Path) -> None:
    live = LivePage(tmp_path, host, 0)
    live.close()
    assert "0.0.0.0" not in live.url and live.url.startswith("http://")


def test_a_host_that_is_not_this_machines_is_named(tmp_path: Path) -> None:
    for host in ("192.0.2.7", "no such host", "a" * 300):
        with pytest.raises(Mistake, match="--host, --port: cannot listen on"):
            LivePage(tmp_path, host, 0)
