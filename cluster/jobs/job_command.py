"""The command inside a job, checked before it is sent: as the user types it, paths included.

A job runs in a copy of the working directory, on some machine, and the copy is deleted with it.
What a command writes, and the runs and datasets that it works on, must be named so that every node
finds them: by an absolute path on shared storage, or by a URI. Sources may be files of the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from typing import Any

from trainer.base.usage import UsageError, parse, suggest
from trainer.files.filesystems import FILE_SCHEME, is_uri
from trainer.files.paths import LASTING, PathKind, paths_in

ARGUMENTS = {
    "prepare": "cluster.commands.prepare_run.PrepareAnywhere",
    "synth": "trainer.synth.synth.SynthArguments",
    "tune": "cluster.tune.search.TuneArguments",
    "plan": "trainer.command_line.PlanArguments",
    "train": "cluster.commands.train_run.TrainOnRay",
    "resume": "cluster.commands.train_run.ResumeArguments",
    "evaluate": "trainer.retrieval.arguments.EvaluateArguments",
    "compare": "trainer.compare.flags.CompareArguments",
    "recommend": "trainer.retrieval.arguments.RecommendArguments",
    "similar": "trainer.retrieval.arguments.SimilarArguments",
    "join": "trainer.retrieval.arguments.JoinArguments",
    "mine": "trainer.retrieval.arguments.MineArguments",
    "export": "trainer.retrieval.arguments.ExportArguments",
    "report": "trainer.report.report.ReportArguments",
}
"""What each command parses its arguments into."""
WITH_PRESET = ("tune", "plan", "train")
WITHOUT_PATHS = ("doctor", "bench")
STARTS_WORKERS = ("train", "resume", "evaluate", "export", "compare", "tune")
"""Their workers have CPUs of their own; what is left of the command itself is light."""


def check_command(command: Sequence[str], working_dir: Path) -> None:
    """Refuse, as the command itself would, what is wrong with its arguments; and relative paths.

    Raises:
        UsageError: where there is no command, or a path means nothing on another machine.
        SystemExit: as tyro ends a command with wrong flags, or with --help.
    """
    if not command:
        raise UsageError(
            "which command? tandem submit --address http://HEAD:8265 -- train PRESET ..."
        )
    name, *arguments = command
    if name in WITHOUT_PATHS:
        return
    if name not in ARGUMENTS:
        raise UsageError(suggest("command for a job", name, sorted([*ARGUMENTS, *WITHOUT_PATHS])))
    with chdir(working_dir if working_dir.is_dir() else "."):  # preset files are named from there
        parsed = _parse(name, [argument for argument in arguments if argument != "--verbose"])
    flags = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    for field, kind, path in paths_in(parsed):
        flag = f"--{field.replace('_', '-')}"
        named = flag if flag in flags or "." in field else field.upper()
        in_place = field == "source" and not parsed.out
        _check_path(named, LASTING if in_place else kind, path)


def driver_cpus(name: str, asked: int | None) -> int:
    """CPUs that a job's own process takes of a node.

    Ray runs a job that asks for none on the head, where a command that works by itself would take
    the cluster's own processes their memory.
    """
    if asked is not None:
        return asked
    return 0 if name in STARTS_WORKERS else 1


def arguments_of(name: str) -> type[Any]:
    """The dataclass of a command's arguments."""
    module, _, kind = ARGUMENTS[name].rpartition(".")
    found: type[Any] = getattr(import_module(module), kind)
    return found


def _parse(name: str, arguments: list[str]) -> Any:
    kind, program = arguments_of(name), f"tandem {name}"
    if name not in WITH_PRESET:
        return parse(kind, program, arguments)
    from trainer.base.usage import expect_preset
    from trainer.command_line import parse_preset
    from trainer.config.presets import PRESETS

    expect_preset(program, arguments, list(PRESETS))
    return parse_preset(arguments, program, kind)[1]


def _check_path(named: str, kind: PathKind, path: str) -> None:
    """Raise UsageError for a path that means nothing on another machine."""
    if is_uri(path) or Path(path.removeprefix(FILE_SCHEME)).is_absolute():
        return
    if kind == LASTING:
        raise UsageError(
            f"{named} {path}: a job runs in a copy of the working directory that is deleted "
            "with it; give an absolute path that every node sees, or a URI"
        )
    if ".." in Path(path).parts:
        raise UsageError(
            f"{named} {path}: a job is sent a copy of the working directory, and this is not in "
            "it; give an absolute path that every node sees, or a URI"
        )
