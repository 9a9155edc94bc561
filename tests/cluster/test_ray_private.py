"""What is taken from Ray's private modules is there, and is taken in one file alone."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cluster
from cluster.jobs.job_api import without_variables
from cluster.workers import ray_private

PACKAGE = Path(cluster.__file__).parent


def test_nothing_else_reaches_into_ray() -> None:
    private = re.compile(r"\bray(\.\w+)*\._\w+|from ray\S* import _|ray\.dashboard\.|\._internal")
    found = [
        f"{file.name}: {line.strip()}"
        for file in PACKAGE.rglob("*.py")
        if file.name != "ray_private.py"
        for line in file.read_text().splitlines()
        if private.search(line)
    ]
    assert found == []


def test_a_token_is_shown_where_the_environment_has_one() -> None:
    code = "from cluster.workers.ray_private import token_headers; print(token_headers())"
    modes = {"token": {"authorization": "Bearer " + "ab" * 32}, "disabled": {}}
    for mode, headers in modes.items():
        environment = os.environ | {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "ab" * 32}
        command = [sys.executable, "-c", code]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert told.stdout == f"{headers}\n"


def test_classes_of_ray_train() -> None:
    assert callable(ray_private.torch_backend().on_start)
    death = RuntimeError("died")
    assert ray_private.health_check_error()("checked", death).health_check_failure is death


def test_packed_files_are_those_that_nothing_ignores(tmp_path: Path) -> None:
    for name, text in (("a.py", "123"), ("b.log", "4"), ("sub/c.py", ""), ("sub/d.tmp", "5")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "sub/.rayignore").write_text("*.tmp\n")
    found = {path.name: size for path, size in ray_private.packed_files(tmp_path)}
    assert found["a.py"] == 3 and "c.py" in found
    assert not {"b.log", "d.tmp"} & set(found)
    assert ray_private.LARGEST_PACKAGE_BYTES == 100 * 2**20
    for name in ray_private.PACKING_LOGGERS:
        assert name in logging.root.manager.loggerDict


def test_no_cluster_on_this_machine_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: None)
    with without_variables("RAY_ADDRESS"), pytest.raises(ConnectionError):
        ray_private.running_cluster()
