"""What a job is made of, without a cluster: its command, its folder, its end."""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin

import pytest

from cluster.cli import COMMANDS
from cluster.jobs.job_command import (
    ARGUMENTS,
    STARTS_WORKERS,
    WITHOUT_PATHS,
    arguments_of,
    check_command,
    driver_cpus,
)
from cluster.jobs.job_package import STOP_SECONDS, refusal_message, runtime_env, variables_of
from cluster.jobs.submit import SubmitArguments, what_stopping_takes
from cluster.workers.ray_private import LARGEST_PACKAGE_BYTES
from tandem import PACKAGES
from trainer.base.mistake import Mistake
from trainer.base.typed import fields_of
from trainer.base.usage import UsageError
from trainer.config.preset_file import field_helps
from trainer.files.paths import LASTING, kind_of_path
from trainer.train import parse

ROOT = Path(__file__).resolve().parents[2]
RUN = "/shared/run"
TRAIN = ("train", "demo", "--data", "/shared/data", "--out", RUN)


@pytest.mark.parametrize(
    "command",
    [
        TRAIN,
        ("train", "demo", "--data=s3://bucket/data", "--out=s3://bucket/run", "--workers", "4"),
        ("prepare", "plays.csv", "/shared/data", "--items", "films.csv"),
        ("synth", "/shared/data", "--seed", "2"),
        ("evaluate", RUN),
        ("report", RUN, "/shared/other"),
        ("export", RUN, "/shared/vectors"),
        ("resume", RUN, "--verbose"),
        (*TRAIN, "--negatives.mined", "s3://bucket/hard.parquet"),
        ("evaluate", RUN, "--against", "/shared/a", "/shared/b"),
        ("prepare", "plays.csv", "/shared/data", "--features", "types.toml"),
        ("prepare", "/shared/data", "--keep-windows", "30"),
        ("bench", "loss"),
        ("doctor",),
    ],
    ids=" ".join,
)
def test_commands_that_every_node_understands(command: tuple[str, ...], tmp_path: Path) -> None:
    check_command(command, tmp_path)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("train", "demo", "--data", "data", "--out", RUN), "--data data: "),
        (("train", "demo", "--data", "/d", "--out=runs/a"), "--out runs/a: "),
        ((*TRAIN, "--start-from", "runs/a"), "--start-from runs/a: "),
        ((*TRAIN, "--start_from", "runs/a"), "--start-from runs/a: "),
        ((*TRAIN, "--negatives.mined", "hard.parquet"), "--negatives.mined hard.parquet: "),
        (("train", "mine.toml", *TRAIN[2:]), "--negatives.mined of/file: "),
        (("evaluate", RUN, "--against", "/d", "b"), "--against b: "),
        (("plan", "demo", "--data", "d"), "--data d: "),
        (("mine", RUN, "hard.parquet"), "OUT hard.parquet: "),
        (("prepare", "DATA", "--keep-windows", "30"), "SOURCE DATA: "),
        (("prepare", "plays.csv", "DATA"), "OUT DATA: "),
        (("prepare", "/plays.csv", "/d", "--extend", "OLD"), "--extend OLD: "),
        (("synth", "SYN", "--users", "200"), "OUT SYN: "),
        (("evaluate", "runs/a"), "RUN runs/a: "),
        (("evaluate", RUN, "--data=d"), "--data d: "),
        (("recommend", "./a", "--user", "u1"), "RUN ./a: "),
        (("similar", "~/a", "--item", "i1"), "RUN ~/a: "),
        (("export", RUN, "VECTORS"), "OUT VECTORS: "),
        (("report", RUN, "b"), "RUNS b: "),
        (("report", RUN, "--out", "page.html"), "--out page.html: "),
        (("tune", "demo", "--data", "/d", "--out", "t"), "--out t: "),
        (("compare", "d", "--out", "/o"), "DATA d: "),
        (("resume", "a"), "RUN a: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_paths_that_end_with_the_job_are_refused(
    command: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text('[negatives]\nmined = "of/file"\n')
    with pytest.raises(UsageError, match="is deleted with it; give an absolute path") as raised:
        check_command(command, tmp_path)
    assert str(raised.value).startswith(told)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("prepare", "../plays.csv", "/d"), "SOURCE ../plays.csv: "),
        (("prepare", "/plays.csv", "/d", "--items=a/../../b.csv"), "--items a/../../b.csv: "),
        (("prepare", "/d", "--forget-users", "../gone"), "--forget-users ../gone: "),
        (("recommend", RUN, "--all", "--out", "/o", "--users", "../u"), "--users ../u: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_files_outside_of_what_is_sent_are_refused(
    command: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="this is not in it") as raised:
        check_command(command, tmp_path)
    assert str(raised.value).startswith(told)


NO_PATHS = {"address", "exclude", "format", "only", "split"}
"""Fields whose help speaks of files or folders and that are none; `exclude` and `only` are ids, or
a file of them."""
SPEAKS_OF_ONE = re.compile(r"\b(file|folder|parquet)s?\b", re.IGNORECASE)


def texts(kind: type[Any]) -> Iterator[tuple[str, Any, str]]:
    """(field, annotation, help) of the fields that take a text."""
    for name, annotation in fields_of(kind).items():
        plain = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        if isinstance(plain, type) and is_dataclass(plain):
            yield from texts(plain)
        elif "str" in str(annotation):
            yield name, annotation, field_helps(kind).get(name, "")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_a_path_is_declared_one(name: str) -> None:
    """Whose help speaks of a file or folder."""
    for field, annotation, told in texts(arguments_of(name)):
        if SPEAKS_OF_ONE.search(told) and field not in NO_PATHS:
            assert kind_of_path(annotation) is not None, (field, told)


def test_a_run_records_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers, and who goes on with it, stand elsewhere."""
    monkeypatch.chdir(tmp_path)
    flags = ["demo", "--data=d", "--out=r", "--start-from=a", "--negatives.mined=hard.parquet"]
    spec = parse(flags)[1].run_spec("demo")
    assert spec.config.negatives.mined == str(tmp_path / "hard.parquet")
    assert (spec.data, spec.out, spec.start_from) == tuple(str(tmp_path / x) for x in "dra")
    given = parse([*flags[:-1], "--negatives.mined=s3://b/hard"])[1].run_spec("demo")
    assert given.config.negatives.mined == "s3://b/hard"


@pytest.mark.parametrize(
    "command",
    [
        ("train", "demo", "--data", "/d", "--out", RUN, "--training.epoch", "3"),
        ("evaluate", RUN, "--slit", "test"),
        ("export", RUN),
    ],
    ids=" ".join,
)
def test_wrong_flags_are_told_here(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        check_command(command, tmp_path)
    assert raised.value.code == 2
    assert capsys.readouterr().err


def test_what_is_no_command_is_wrong_usage(tmp_path: Path) -> None:
    for command, told in ((), "which command?"), (("trian",), "'train'"), (("stop",), "there are"):
        with pytest.raises(UsageError, match=told):
            check_command(command, tmp_path)
    with pytest.raises(UsageError, match="unknown preset 'dmo'"):
        check_command(("train", "dmo", *TRAIN[2:]), tmp_path)


def test_preset_files_lie_in_the_folder_that_is_sent(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    check_command(("train", "mine.toml", *TRAIN[2:]), tmp_path)
    with pytest.raises(Mistake, match=r"absent\.toml"):
        check_command(("train", "absent.toml", *TRAIN[2:]), tmp_path)


def test_variables_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_HERE", "a=b")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert variables_of(["A=1", "B=", "C=x=y", "OF_HERE"]) == {
        "A": "1",
        "B": "",
        "C": "x=y",
        "OF_HERE": "a=b",
    }
    for given, told in (("NOWHERE", "it is not set here"), ("1A=2", "'1A' is no"), ("=2", "'' is")):
        with pytest.raises(Mistake, match=told):
            variables_of([given])


def test_flags_that_are_left_out_are_no_mistake() -> None:
    """--driver-cpus left out was compared with its limits: no job could be submitted without it."""
    assert SubmitArguments().driver_cpus is None
    with pytest.raises(Mistake, match="--driver-cpus -1: must be from 0"):
        SubmitArguments(driver_cpus=-1)


def test_a_command_that_works_by_itself_leaves_the_head_alone() -> None:
    """Ray runs a job that asks for no CPU on the head."""
    assert [driver_cpus(name, None) for name in ("train", "evaluate")] == [0, 0]
    assert [driver_cpus(name, None) for name in ("prepare", "report", "synth")] == [1, 1, 1]
    assert driver_cpus("prepare", 8) == 8 and driver_cpus("prepare", 0) == 0
    assert {*STARTS_WORKERS} <= set(ARGUMENTS)


def test_every_command_is_known_by_its_arguments() -> None:
    at_home = {"demo", "dashboard", "serve", "submit", "status", "logs", "stop"}
    assert {*ARGUMENTS, *WITHOUT_PATHS} == set(COMMANDS) - at_home
    for name in ARGUMENTS:
        kinds = [kind_of_path(each) for each in fields_of(arguments_of(name)).values()]
        assert LASTING in kinds, name


class TestFolder:
    def sparse(self, file: Path, size: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            opened.truncate(size)

    def test_a_large_folder_is_told_before_it_is_read(self, tmp_path: Path) -> None:
        self.sparse(tmp_path / "data/plays.parquet", LARGEST_PACKAGE_BYTES - 1000)
        self.sparse(tmp_path / "b.bin", 60 * 2**20)
        (tmp_path / "train.py").write_text("")
        with pytest.raises(Mistake, match=r"has 160 MiB to send, and a cluster takes 100 MiB") as e:
            runtime_env(tmp_path)
        text = str(e.value)
        assert str(tmp_path) in text and "--working-dir" in text and ".gitignore" in text
        assert "data/plays.parquet (100.0 MiB), b.bin (60.0 MiB), train.py" in text

    def test_what_is_ignored_does_not_count(self, tmp_path: Path) -> None:
        self.sparse(tmp_path / "data/plays.parquet", LARGEST_PACKAGE_BYTES + 1)
        (tmp_path / "data/.gitignore").write_text("*.parquet\n")
        (tmp_path / "broken").symlink_to("/nowhere")
        assert runtime_env(tmp_path)["working_dir"] == str(tmp_path)

    def test_ours_go_along_but_with_our_own_checkout(self, tmp_path: Path) -> None:
        (tmp_path / "cluster").mkdir()
        (tmp_path / "cluster" / "cli.py").write_text("")  # somebody else's
        modules = runtime_env(tmp_path)["py_modules"]
        assert all(Path(module).is_dir() for module in modules)  # files are refused by its client
        assert {Path(module).name for module in modules} == set(PACKAGES)
        assert "py_modules" not in runtime_env(ROOT)

    @pytest.mark.parametrize("name", ["tandem.py", "tandem/__init__.py"])
    def test_a_module_that_would_be_run_in_place_of_ours(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("print('mine')\n")
        with pytest.raises(Mistake, match=f"has {name}, which the job would run in place of"):
            runtime_env(tmp_path)

    def test_a_job_has_time_to_write_its_checkpoint(self, tmp_path: Path) -> None:
        environment = runtime_env(tmp_path)
        assert environment["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        assert f"in {STOP_SECONDS} seconds" in what_stopping_takes(details(environment))
        assert "in 3 seconds" in what_stopping_takes(details(None))  # not submitted by us

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(Mistake, match=r"--working-dir .*/none: no such folder"):
            runtime_env(tmp_path / "none")


def details(runtime_env: dict[str, Any] | None) -> Any:
    return SimpleNamespace(runtime_env=runtime_env)


def test_a_refusal_says_what_to_do() -> None:
    agent = RuntimeError("Request failed with status code 500: No available agent to submit job")
    assert "--dashboard-agent-listen-port=0" in refusal_message("http://h:8265", agent)
    large = RuntimeError("Request failed with status code 413: Maximum request body size 104857600")
    assert "--working-dir" in refusal_message("http://h:8265", large)
    other = refusal_message("http://h:8265", RuntimeError("no space left"))
    assert other == "the cluster at http://h:8265 refused the job: no space left"
