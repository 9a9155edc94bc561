"""The commands of docs/kubernetes.md and docs/clusters.md: each is one that there is."""

import re
import shlex
from pathlib import Path

import pytest
import ray.scripts.scripts
import yaml
from torch.distributed.run import get_args_parser

from cluster.cli import COMMANDS
from cluster.commands.train_run import parse_train
from tests.deploy.chart import CHART, needs_helm, parsed, template
from tests.deploy.conftest import ROOT

PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("kubernetes", "clusters")}


def commands(page: str, program: str) -> list[list[str]]:
    """The words of each command of that program in the page's blocks."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].removeprefix(".venv/bin/") == program:
                found.append(words[1:])
    return found


def charts() -> list[list[str]]:
    return [words for words in commands("kubernetes", "helm") if "deploy/kuberay" in words]


@needs_helm
@pytest.mark.parametrize("words", charts(), ids=lambda words: words[1])
def test_releases_can_be_rendered(words: list[str]) -> None:
    if words[0] == "uninstall":
        return
    install, release, chart, *flags = words
    assert install == "install" and (ROOT / chart) == CHART
    at = flags.index("-f")
    flags[at + 1] = str(ROOT / flags[at + 1])
    done = template(*flags, release=release)
    assert done.returncode == 0 and parsed(done.stdout), done.stderr


@needs_helm
def test_flags_told_in_passing_are_taken() -> None:
    told = re.findall(r"`(?:--set \"?)?(command\.arguments=\{[^}]*\})\"?`", PAGES["kubernetes"])
    assert len(told) == 2
    for setting in told:
        done = template("--set=workload=command", f"--set={setting}")
        (job,) = parsed(done.stdout)
        assert job["spec"]["template"]["spec"]["containers"][0]["args"][0] in COMMANDS
    off = "monitoring.rules=false,monitoring.ray=false,monitoring.dashboards=false"
    assert (
        off in PAGES["kubernetes"]
        and "storage.data.claim=,storage.runs.claim=" in PAGES["kubernetes"]
    )


def test_values_that_are_named_are_there() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    sections = "|".join(values)
    named = set(re.findall(rf"`((?:{sections})\.[A-Za-z.]+)\b", PAGES["kubernetes"]))
    assert len(named) > 20
    for path in named:
        part = values
        for key in path.split("."):
            assert key in part, path
            part = part[key]
    for key in re.findall(
        r"`(shmGiB|rdma\.\w+|hostNetwork|interface|nccl|annotations)\b", PAGES["kubernetes"]
    ):
        part = values["worker"]
        for step in key.split("."):
            assert step in part, key
            part = part[step]


KNOWN = {"--split", "--workers", "--address"}
"""Flags of evaluate and export; tests/cluster/test_launched_on_ray.py runs them."""


@pytest.mark.parametrize("page", PAGES)
def test_tandems_commands_are_understood(page: str) -> None:
    lines = commands(page, "tandem")
    assert lines
    for subcommand, *flags in lines:
        assert subcommand in COMMANDS
        if "--" in flags:  # submit -- train ...
            subcommand, *flags = flags[flags.index("--") + 1 :]
        if subcommand == "train":
            _, parsed = parse_train(flags)
            assert parsed.resume == "auto" or "--resume" not in " ".join(flags)
        else:
            assert {flag.partition("=")[0] for flag in flags if flag.startswith("--")} <= KNOWN


def test_ray_start_has_these_flags() -> None:
    known = {flag for parameter in ray.scripts.scripts.start.params for flag in parameter.opts}
    lines = commands("clusters", "ray")
    assert [words[0] for words in lines] == ["start", "start"]
    told = re.findall(r"`(?:ray start )?(--(?:num|min|max|node|port)-[^`]*)`", PAGES["clusters"])
    for words in (*(line[1:] for line in lines), *(text.split() for text in told)):
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known
    head, worker = lines
    assert "--head" in head and f"--address={_value(head, 'node-ip-address')}:6379" in worker


def _value(words: list[str], name: str) -> str:
    (found,) = [w.partition("=")[2] for w in words if w.startswith(f"--{name}=")]
    return found


def test_torchrun_has_these_flags() -> None:
    (words,) = commands("clusters", "python")
    assert words[:2] == ["-m", "torch.distributed.run"]
    flags = get_args_parser().parse_args(words[2:])
    assert flags.rdzv_endpoint.startswith(f"{flags.local_addr}:")
    assert flags.rdzv_conf == "is_host=true" and flags.training_script == "trainer.train"


def test_batch_scripts_are_where_the_page_says() -> None:
    (words,) = commands("clusters", "sbatch")
    script = next(word for word in words if word.endswith(".sbatch"))
    assert (ROOT / script).is_file()
    text = (ROOT / "deploy" / "slurm" / "nodes.sh").read_text()
    for name in re.findall(r"`(TANDEM_\w+)", PAGES["clusters"]):
        assert name in text
    assert (
        "--signal=B:TERM@300" in (ROOT / script).read_text() and "300 seconds" in PAGES["clusters"]
    )


@pytest.mark.parametrize("page", PAGES)
def test_tests_and_pages_that_are_named_are_there(page: str) -> None:
    for path in re.findall(r"pytest (?:-m slow )?(tests/\S+\.py)", PAGES[page]):
        assert (ROOT / path).is_file(), path
    for link in re.findall(r"\]\((\S+\.md)\)", PAGES[page]):
        assert (ROOT / "docs" / link).is_file(), link
    for target in re.findall(r"^make (\w+)", PAGES[page], re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    assert Path("deploy/schemas.sh").name in PAGES["kubernetes"]
