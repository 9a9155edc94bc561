"""Images and Compose, as far as they can be held to anything without a daemon."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.cli import COMMANDS
from cluster.commands.train_run import parse_train
from tests.deploy.chart import DEPLOY
from tests.deploy.conftest import ROOT

DOCKERFILES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_pinned_and_do_not_run_as_root(file: Path) -> None:
    text = file.read_text()
    kind = file.suffix.removeprefix(".")
    assert re.search(r"^FROM python:3\.11\.\d+-slim-\w+$", text, re.MULTILINE)
    assert f"-r /tmp/requirements/{kind}.txt" in text and "--no-deps" in text
    assert (ROOT / "requirements" / f"{kind}.txt").is_file()
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["1000:1000"]
    assert "useradd --create-home --uid 1000 tandem" in text
    for source in re.findall(r"^COPY (?:--\S+ )?(\S+) \S+$", text, re.MULTILINE):
        assert (ROOT / source).exists()


def test_every_requirement_is_pinned() -> None:
    for file in ("base.txt", "cpu.txt", "cuda.txt", "serve.txt"):
        lines = (ROOT / "requirements" / file).read_text().splitlines()
        named = [line for line in lines if line and not line.startswith(("#", "-r "))]
        assert all(re.search(r"==[\w.+]+$", line.split(";")[0].strip()) for line in named)


def test_compose_mounts_what_exists_and_is_open_to_this_machine_alone() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert {"ray-head", "ray-worker", "prometheus", "grafana"} == set(compose["services"])
    for service in compose["services"].values():
        assert ":latest" not in service["image"] and ":" in service["image"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            known = source in compose["volumes"] or (DEPLOY / source).exists()
            assert known, f"{source} is neither a volume nor a folder"
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_compose_is_accepted_by_docker() -> None:
    found = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("docker compose is not installed")
    file = str(DEPLOY / "compose.yaml")
    subprocess.run(["docker", "compose", "-f", file, "config", "-q"], check=True)


def test_composes_command_is_understood() -> None:
    text = re.sub(r"\\\n#\s+", " ", (DEPLOY / "compose.yaml").read_text())
    found = re.search(r"ray-head (tandem train [^\n]*)", text)
    assert found is not None
    program, subcommand, *flags = shlex.split(found.group(1))
    assert program == "tandem" and subcommand in COMMANDS
    _, parsed = parse_train(flags)
    assert parsed.config.metrics.host == parsed.discovery_host == "0.0.0.0"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_have_what_they_run_and_no_more(file: Path) -> None:
    (line,) = re.findall(r"--no-install-recommends(.*?)\n &&", file.read_text(), re.DOTALL)
    packages = set(line.replace("\\", " ").split())
    # A compiler for kernels; KubeRay asks the workers of a service for their health by wget.
    assert packages >= {"gcc", "libc6-dev", "wget"}
    rdma = {"libibverbs1", "ibverbs-providers", "librdmacm1"}
    assert packages - {"gcc", "libc6-dev", "wget"} == (rdma if "cuda" in file.name else set())


def test_an_image_holds_nothing_that_git_ignores() -> None:
    """Docker's patterns begin at the root, git's anywhere, unless they begin with a slash."""
    lines = (ROOT / ".gitignore").read_text().splitlines()
    patterns = [line.rstrip("/") for line in lines if line and not line.startswith("#")]
    kept_out = (ROOT / ".dockerignore").read_text().splitlines()
    wanted = [p.lstrip("/") if p.startswith("/") else f"**/{p}" for p in patterns]
    assert len(wanted) > 10 and set(wanted) <= set(kept_out)
    assert {".git", "tests", "docs"} <= set(kept_out)


def make_images(folder: Path, *flags: str, answers: bool) -> subprocess.CompletedProcess[str]:
    """`make images` with a docker that writes down what it is asked for."""
    docker = folder / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$1" = info ] && exit {0 if answers else 1}\necho "ran $*"\n')
    docker.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["make", "--no-print-directory", "-C", str(ROOT), "images", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_make_images_builds_what_the_files_name(tmp_path: Path) -> None:
    done = make_images(tmp_path, answers=True)
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert ran == [
        f"ran build -f deploy/docker/Dockerfile.{k} -t tandem:{k} ." for k in ("cpu", "cuda")
    ]
    tags = set(
        re.findall(r"docker build -f \S+ -t (\S+) \.", "".join(f.read_text() for f in DOCKERFILES))
    )
    assert tags == {"tandem:cpu", "tandem:cuda"}
    ours = make_images(tmp_path, "IMAGE=registry.example/team/tandem", "SETS=cuda", answers=True)
    assert (
        "ran build -f deploy/docker/Dockerfile.cuda -t registry.example/team/tandem:cuda ."
        in ours.stdout
    )


def test_make_images_says_that_there_is_no_daemon(tmp_path: Path) -> None:
    done = make_images(tmp_path, answers=False)
    assert done.returncode and "ran" not in done.stdout
    assert "error: no daemon answers `docker info`" in done.stdout
