"""`make setup`, with a stand-in for the new environment's Python that notes what pip is asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTORCH = "https://download.pytorch.org/whl/cpu"
# A package index: HAS_CPU_TORCH says whether it has the CPU build.
PIP = """#!/bin/sh
echo "$*" >> "$ASKED"
case "$*" in
  *extra-index-url*) exit 0 ;;
  *torch==*+cpu*) test "$HAS_CPU_TORCH" = yes || { echo "No matching distribution" >&2; exit 1; } ;;
  *requirements*) test "$HAS_THE_REST" = yes || { echo "No matching distribution" >&2; exit 1; } ;;
esac
exit 0
"""


class Setup:
    """What `make setup` did in a folder of its own."""

    def __init__(
        self, folder: Path, kernel: str = "Linux", target: str = "setup", **variables: str
    ) -> None:
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / "requirements", folder / "requirements")
        self._program(folder / ".venv/bin/python", PIP)
        self._program(folder / "bin/uname", f"#!/bin/sh\necho {kernel}\n")
        asked = folder / "asked"
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        defaults = {"HAS_CPU_TORCH": "yes", "HAS_THE_REST": "yes"}
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(
            ["make", target, "SET=cpu", f"PYTHON={sys.executable}"],
            cwd=folder,
            env=plain | {"ASKED": str(asked), "PATH": path} | defaults | variables,
            capture_output=True,
            text=True,
        )
        self.status, self.text = done.returncode, done.stdout + done.stderr
        self.asked = asked.read_text().splitlines() if asked.exists() else []

    def _program(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(0o755)

    @property
    def torch(self) -> list[str]:
        return [line for line in self.asked if "torch==" in line]


@pytest.fixture(autouse=True)
def need_make() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")


def test_an_index_that_has_everything_is_the_only_one_asked(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    assert setup.status == 0, setup.text
    assert len(setup.torch) == 1
    assert PYTORCH not in "".join(setup.asked)
    assert setup.asked[-2] == "-m trainer.tools.doctor"
    assert setup.asked[-1].endswith("-r requirements/dev.txt -r requirements/serve.txt")
    assert setup.text.splitlines() == [
        "Installing the cpu set into .venv (minutes, the first time)"
    ]


def test_a_demo_waits_for_nothing_that_tests_alone_need(tmp_path: Path) -> None:
    setup = Setup(tmp_path, target="doctor")
    assert "-m trainer.tools.doctor" in setup.asked
    assert not any("dev.txt" in line for line in setup.asked)
    text = (ROOT / "Makefile").read_text()
    assert "\ndemo: $(RUNS) " in text and "\ntest: $(KERNELS) " in text


def test_pytorchs_index_is_asked_where_the_configured_one_has_no_cpu_build(tmp_path: Path) -> None:
    """As on a plain laptop: PyPI has no +cpu."""
    setup = Setup(tmp_path, HAS_CPU_TORCH="no")
    assert setup.status == 0, setup.text
    assert len(setup.torch) == 2
    assert f"--extra-index-url {PYTORCH} " in setup.torch[1]
    assert all("--no-deps" in line for line in setup.asked if "pip install" in line)
    assert "No matching distribution" not in setup.text


def test_what_cannot_be_installed_is_told_with_the_indexes(tmp_path: Path) -> None:
    setup = Setup(tmp_path, HAS_THE_REST="no")
    assert setup.status != 0
    assert "PIP_INDEX_URL" in setup.text and PYTORCH in setup.text
    assert not any("trainer.tools.doctor" in line for line in setup.asked)


def test_other_systems_are_sent_to_a_container(tmp_path: Path) -> None:
    setup = Setup(tmp_path, kernel="Darwin")
    assert setup.status != 0 and setup.asked == []
    assert "docker build -f deploy/docker/Dockerfile.cpu" in setup.text


def test_nobodys_index_but_pytorchs_is_named() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in listed.stdout.split() if name.startswith(("requirements", "deploy"))]
    for file in filter(Path.is_file, (ROOT / name for name in [*names, "Makefile"])):
        for line in file.read_text(errors="replace").splitlines():
            if "index-url" in line:
                assert PYTORCH in line or "$(PYTORCH_CPU)" in line, f"{file}: {line}"
