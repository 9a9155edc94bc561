"""The batch scripts of deploy/slurm, run with a Slurm that only says what it is asked."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray.scripts.scripts
from torch.distributed.run import get_args_parser

from cluster.commands.train_run import parse_train
from tests.deploy.conftest import ROOT
from tests.deploy.fake_slurm import SCRIPTS, FakeSlurm, Node

TRAIN = ("default", "--data=/data/mine", "--out=/runs/mine")
TWO = {
    "n1": Node("10.0.0.1", {"eth0": "10.0.0.1"}),
    "n2": Node("10.0.0.2", {"eth0": "10.0.0.2"}),
}
# Slurm knows names alone, and each machine's own means 127.0.1.1 to it.
DEBIAN = {
    "n1": Node("n1", {"eno1": "10.0.0.1"}),
    "n2": Node("n2", {"eno1": "10.0.0.2"}),
}
CARDS = {
    "n1": Node("10.1.0.1", {"docker0": "172.17.0.1", "eno1": "10.1.0.1", "ib0": "10.2.0.1"}),
    "n2": Node("10.1.0.2", {"docker0": "172.17.0.1", "eno2": "10.1.0.2", "ib1": "10.2.0.2"}),
}


def torchrun_flags(arguments: list[str]) -> dict:
    assert arguments[:2] == ["-m", "torch.distributed.run"]
    return vars(get_args_parser().parse_args(arguments[2:]))


def test_torchrun_starts_a_task_a_node(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path, TWO, {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "96"})
    status, said = slurm.run("torchrun.sbatch", *TRAIN)
    assert status == 0, said
    assert "2 nodes meet at 10.0.0.1:30123" in said
    for node, host, address in (("n1", "true", "10.0.0.1"), ("n2", "false", "10.0.0.2")):
        arguments, environment = slurm.said(f"python-{node}")
        flags = torchrun_flags(arguments)
        assert (flags["nnodes"], flags["nproc_per_node"]) == ("2", "8")
        assert flags["rdzv_endpoint"] == "10.0.0.1:30123" and flags["rdzv_id"] == "70123-0"
        assert flags["rdzv_conf"] == f"is_host={host}" and flags["local_addr"] == address
        assert flags["module"] and flags["training_script"] == "trainer.train"
        assert flags["training_script_args"] == [*TRAIN, "--resume", "auto"]
        assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == "eth0"
        assert environment["OMP_NUM_THREADS"] == "12"
        assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) > 30
    assert slurm.requeued == []


def test_one_rank_a_node_where_there_are_no_gpus(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path, TWO, {"SLURM_CPUS_PER_TASK": "4"})
    slurm.run("torchrun.sbatch", *TRAIN)
    arguments, environment = slurm.said("python-n2")
    assert torchrun_flags(arguments)["nproc_per_node"] == "1"
    assert environment["OMP_NUM_THREADS"] == "4"
    slurm.environment["TANDEM_RANKS"] = "8"
    slurm.run("torchrun.sbatch", *TRAIN)
    arguments, environment = slurm.said("python-n2")
    assert torchrun_flags(arguments)["nproc_per_node"] == "8"
    assert environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("script", "nodes", "settings", "head", "interfaces"),
    [
        ("torchrun.sbatch", DEBIAN, {}, "10.0.0.1", ("eno1", "eno1")),
        ("torchrun.sbatch", CARDS, {}, "10.1.0.1", ("eno1", "eno2")),
        ("torchrun.sbatch", CARDS, {"TANDEM_INTERFACE": "ib0"}, "10.2.0.1", ("ib0", "ib1")),
        ("ray.sbatch", CARDS, {"TANDEM_INTERFACE": "ib0"}, "10.2.0.1", ("ib0", "ib1")),
    ],
    ids=["own name is 127.0.1.1", "several cards", "the fast card", "the fast card, Ray"],
)
def test_nodes_meet_where_others_reach_them(
    tmp_path: Path,
    script: str,
    nodes: dict[str, Node],
    settings: dict[str, str],
    head: str,
    interfaces: tuple[str, str],
) -> None:
    slurm = FakeSlurm(tmp_path, nodes, settings)
    status, said = slurm.run(script, *TRAIN)
    assert status == 0 and f"{head}:30123" in said, said
    program = "python" if script == "torchrun.sbatch" else "ray"
    for node, interface in zip(nodes, interfaces, strict=True):
        arguments, environment = slurm.said(f"{program}-{node}")
        assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == interface
        own = nodes[node].cards[interface]
        assert {f"--local-addr={own}", f"--node-ip-address={own}"} & set(arguments)


def test_an_interface_that_the_user_chose_stays(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path, CARDS, {"NCCL_SOCKET_IFNAME": "ib", "GLOO_SOCKET_IFNAME": "bond0"})
    slurm.run("torchrun.sbatch", *TRAIN)
    _, environment = slurm.said("python-n2")
    assert environment["NCCL_SOCKET_IFNAME"] == "ib"
    assert environment["GLOO_SOCKET_IFNAME"] == "bond0"


def test_an_interface_without_an_address_is_said(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path, TWO, {"TANDEM_INTERFACE": "ib7"})
    status, said = slurm.run("torchrun.sbatch", *TRAIN)
    assert status != 0 and "n1 has no address on TANDEM_INTERFACE=ib7" in said
    assert not (tmp_path / "python-n1.json").exists()


PROGRAMS = {"torchrun.sbatch": ("python-n1", "python-n2"), "ray.sbatch": ("tandem-n1",)}


@pytest.mark.parametrize("script", PROGRAMS)
def test_time_that_is_nearly_over_becomes_a_checkpoint_and_a_place_in_the_queue(
    tmp_path: Path, script: str
) -> None:
    slurm = FakeSlurm(tmp_path, TWO, {"FAKE_ENDLESS": "", "SLURM_RESTART_COUNT": "19"})
    job = slurm.start(script, *TRAIN)
    status, said = slurm.stop_when(job, *PROGRAMS[script])
    assert all(slurm.stopped(name) for name in PROGRAMS[script])
    assert slurm.requeued == ["70123"] and status == 143
    assert "job 70123 goes back into the queue" in said


@pytest.mark.parametrize("script", PROGRAMS)
def test_a_run_that_ends_in_its_last_minutes_is_not_started_again(
    tmp_path: Path, script: str
) -> None:
    slurm = FakeSlurm(tmp_path, TWO, {"FAKE_ENDLESS": "", "FAKE_STATUS": "0"})
    status, said = slurm.stop_when(slurm.start(script, *TRAIN), *PROGRAMS[script])
    assert (status, slurm.requeued) == (0, []), said


@pytest.mark.parametrize("script", PROGRAMS)
def test_a_mistake_is_not_tried_again(tmp_path: Path, script: str) -> None:
    slurm = FakeSlurm(tmp_path, TWO, {"FAKE_STATUS": "2"})
    status, said = slurm.run(script, *TRAIN)
    assert (status, slurm.requeued) == (2, []), said


def test_requeues_have_a_limit(tmp_path: Path) -> None:
    settings = {"FAKE_ENDLESS": "", "SLURM_RESTART_COUNT": "3", "TANDEM_REQUEUES": "3"}
    slurm = FakeSlurm(tmp_path, TWO, settings)
    status, said = slurm.stop_when(slurm.start("torchrun.sbatch", *TRAIN), "python-n2")
    assert (status, slurm.requeued) == (143, []) and "TANDEM_REQUEUES" in said


def ray_flags() -> set[str]:
    return {flag for parameter in ray.scripts.scripts.start.params for flag in parameter.opts}


def test_ray_is_on_every_node_and_tandem_on_the_first(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path, TWO, {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "96"})
    status, said = slurm.run("ray.sbatch", *TRAIN)
    assert status == 0, said
    head, environment = slurm.said("ray-n1")
    worker, same = slurm.said("ray-n2")
    assert head[0] == worker[0] == "start" and "--head" in head and "--port=30123" in head
    assert "--address=10.0.0.1:30123" in worker and "--head" not in worker
    for flags in (head, worker):
        assert {flag.partition("=")[0] for flag in flags[1:]} <= ray_flags()
        assert {"--num-cpus=96", "--num-gpus=8", "--block"} <= set(flags)
    assert "--dashboard-host=127.0.0.1" in head
    command, driver = slurm.said("tandem-n1")
    assert len({e["RAY_AUTH_TOKEN"] for e in (environment, same, driver)}) == 1
    assert len(driver["RAY_AUTH_TOKEN"]) == 64 and driver["RAY_AUTH_MODE"] == "token"
    subcommand, *flags = command
    assert subcommand == "train"
    _, parsed = parse_train(flags)
    assert parsed.resume == "auto"
    assert parsed.address == "10.0.0.1:30123" and str(parsed.workers) == "16"
    assert parsed.config.metrics.host == parsed.discovery_host == "0.0.0.0"
    # The job's end is the cluster's.
    assert slurm.stopped("ray-n1") and slurm.stopped("ray-n2")


def test_workers_may_be_given_and_ray_is_started_again_on_a_busy_node(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path, TWO, {"FAKE_BUSY": ""})
    status, said = slurm.run("ray.sbatch", *TRAIN, "--workers=1..2")
    assert status == 0 and "Ray on n2 ended (start 1 of 3)" in said, said
    command, _ = slurm.said("tandem-n1")
    assert [flag for flag in command if flag.startswith("--workers")] == ["--workers=1..2"]


def test_scripts_are_without_reproach() -> None:
    """shellcheck on every shell script of deploy/."""
    files = [*SCRIPTS.iterdir(), *(ROOT / "deploy").glob("*.sh")]
    hook = ROOT / "deploy" / "kuberay" / "files" / "stop-drivers.sh"
    shellcheck = str(Path(sys.executable).with_name("shellcheck"))
    for command in ([*map(str, files)], ["--shell=bash", str(hook)]):
        done = subprocess.run([shellcheck, "-x", *command], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")
