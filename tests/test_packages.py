"""Our packages win over foreign ones of the same name (`trainer` and `losses` are common names)."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tandem
from tandem import PACKAGES, find_package, is_ours
from tests.strangers import fill_with_strangers

ROOT = Path(__file__).resolve().parent.parent
WHERE = "import importlib.util as i; print(*(i.find_spec(n).origin for n in {names}), sep='\\n')"


@pytest.mark.parametrize(
    "name", ["cluster", "trainer", "trainer.data", "trainer.retrieval", "embeddings", "losses"]
)
def test_package_is_ours(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    expected = ROOT.joinpath(*name.split("."), "__init__.py")
    assert Path(module.__file__).resolve() == expected


def python(code: str, cwd: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Python on `code` in a folder, which is first on its path; `path` comes next."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("first", ["tandem", "trainer.base.usage", "trainer.base.mistake"])
def test_ours_win_over_the_folder_and_the_path(first: str, tmp_path: Path) -> None:
    """`tandem` is nobody else's name; `trainer` of `python -m trainer.train` must be ours."""
    own_name = first.partition(".")[0]
    here, before = tmp_path / "project", tmp_path / "installed"
    for folder in (here, before):
        fill_with_strangers(folder, but=own_name)
    done = python(f"import {first}\n" + WHERE.format(names=PACKAGES), here, before, ROOT)
    expected = [str(ROOT / name / "__init__.py") for name in PACKAGES]
    assert done.stdout.splitlines() == expected, done.stderr


def test_packages_in_folders_of_their_own(tmp_path: Path) -> None:
    """As Ray unpacks them on a node, behind the folder of a job."""
    job = fill_with_strangers(tmp_path / "job")
    unpacked = [tmp_path / f"_ray_pkg_{number}" for number in range(len(PACKAGES) + 1)]
    for folder, name in zip(unpacked, PACKAGES, strict=False):
        (folder / name).mkdir(parents=True)
        shutil.copy(ROOT / name / "__init__.py", folder / name)
    unpacked[-1].mkdir()
    shutil.copy(ROOT / "tandem.py", unpacked[-1])
    code = "import tandem\n" + WHERE.format(names=PACKAGES)
    done = python(code, job, job, *unpacked)
    expected = [
        str(folder / name / "__init__.py") for folder, name in zip(unpacked, PACKAGES, strict=False)
    ]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize("stranger", ["trainer.py", "losses/__init__.py"])
def test_one_that_was_imported_before_is_named(stranger: str, tmp_path: Path) -> None:
    file = tmp_path / stranger
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    name = stranger.partition("/")[0].removesuffix(".py")
    code = f"import {name}\ntry: import tandem\nexcept ImportError as e: print(e)"
    done = python(code, tmp_path, ROOT)
    assert f"the module {name!r} of " in done.stdout, done.stderr
    assert "import Tandem first" in done.stdout


def test_a_package_installed_over_ours_is_one_line(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tandem.py", tmp_path)
    for name in ("cluster", "trainer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("# somebody's\n")
    code = "import sys, tandem\nsys.path[:] = [p for p in sys.path if 'lib' in p]\n"
    done = python(code + "sys.exit(tandem.main())", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Tandem's package 'cluster' is not in "), done.stderr
    assert done.stderr.count("\n") == 1


def test_every_package_bears_the_mark() -> None:
    """And there is no other code folder at the root, and no other file than the facade."""
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders - {"tests"} == set(PACKAGES)
    assert {path.name for path in ROOT.glob("*.py")} == {"tandem.py"}
    assert all(is_ours(ROOT / name / "__init__.py") for name in PACKAGES)
    assert [find_package(name) for name in PACKAGES] == [ROOT / name for name in PACKAGES]
    assert Path(tandem.__file__).parent == ROOT


def test_starting_as_a_module_is_the_command_line() -> None:
    command = [sys.executable, "-m", "tandem", "trian"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: unknown command 'trian': did you mean 'train'?\n"
