"""The wheel: all that a command needs is in it, and it works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tandem import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
NO_CODE = ("*.pyc", "*/__pycache__/*")


def files_of_packages() -> list[Path]:
    """What lies in our packages, relative to the root."""
    found = (file for name in PACKAGES for file in (ROOT / name).rglob("*") if file.is_file())
    relative = [file.relative_to(ROOT) for file in found]
    return [file for file in relative if not any(fnmatch(str(file), each) for each in NO_CODE)]


def test_every_file_that_is_no_module_is_named() -> None:
    """setuptools leaves out what package-data does not name."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    named = [f"{package.replace('.', '/')}/{each}" for package in data for each in data[package]]
    others = [str(file) for file in files_of_packages() if file.suffix != ".py"]
    assert "losses/kernels/stripe_kernel.c" in others and "trainer/live/rules/alerts.yml" in others
    assert [file for file in others if not any(fnmatch(file, each) for each in named)] == []


def test_every_folder_with_modules_is_a_package() -> None:
    """setuptools leaves out folders without an __init__.py."""
    folders = {file.parent for file in files_of_packages() if file.suffix == ".py"}
    assert [str(each) for each in folders if not (ROOT / each / "__init__.py").is_file()] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*PACKAGES, "deploy"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("tandem.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_has_every_file(wheel: Path) -> None:
    assert wheel.name.startswith("tandem_retrieval-0")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(["tandem.py", *map(str, files_of_packages())])


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment: the wheel, and the libraries of this one, not its code."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # A path in a .pth file is no site folder: its own .pth, this checkout's, is not followed.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install"]
    subprocess.run([*pip, "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RAY_"))}

    def run(program: str, *arguments: str) -> str:
        command = [str(installed / program), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    where = "import tandem, trainer.live.prometheus as p; print(tandem.__file__, p.RULES)"
    for told in map(Path, run("python", "-c", where).split()):
        assert told.is_relative_to(installed.parent) and told.exists()
    assert run("tandem", "--version") == "tandem 0.1.0\n"
    run("tandem", "synth", "data", "--users", "200", "--items", "100", "--interactions", "3000")
    small = ("--training.max-steps=5", "--evaluation.every-epochs=0", "--training.threads=1")
    run("tandem", "train", "demo", "--data=data", "--out=run", "--workers=1", *small)
    assert "popularity ranking" in run("tandem", "evaluate", "run", "--split=test")
    assert "recommended" in run("tandem", "recommend", "run", "--user=1")
    run("tandem", "report", "run", "--out=report.html")
    asked = "import tandem; print(len(tandem.load('run').recommend(user=1, k=7)))"
    assert run("python", "-c", asked) == "7\n"
