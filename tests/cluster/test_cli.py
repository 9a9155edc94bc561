"""The command line: quick help, near names, one `error:` line, exit statuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster import cli
from trainer.base.usage import suggest


def modules_after(*commands: list[str]) -> tuple[set[str], str]:
    """Modules that a process has imported after these commands, and what they printed."""
    code = (
        "import sys\nfrom cluster.cli import main\n"
        f"for arguments in {commands!r}:\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: assert end.code == 0, (arguments, end.code)\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split()), done.stdout


def test_the_help_of_a_command_comes_without_importing_torch() -> None:
    """Torch and torchrec take four seconds to import; a user who asks for help waits for none."""
    asked = [[name, "--help"] for name in cli.COMMANDS if name not in ("bench", "tune")]
    imported, shown = modules_after(*asked)
    assert {"torch", "torchrec"} & imported == set()
    assert shown.count("usage: tandem") == len(asked)


def test_help_lists_every_command_without_importing_torch() -> None:
    imported, shown = modules_after(["--help"])
    assert {"torch", "ray", "duckdb"} & imported == set()
    for name, command in cli.COMMANDS.items():
        assert f"\n  {name:12}{command.summary}\n" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: unknown command 'trian': did you mean 'train'?"),
        (["xyzzy"], "error: unknown command 'xyzzy': there are doctor,"),
        (["doctor", "now"], "error: tandem doctor takes no arguments, not now"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_no_command_prints_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: tandem COMMAND" in capsys.readouterr().out


def test_train_names_near_presets_and_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("train", "gowala", "--data", "d", "--out", "o") == 2
    told = capsys.readouterr().err
    assert told == "error: unknown preset 'gowala': did you mean 'gowalla'?\n"
    assert ended("train", "demo", "--data", "d", "--out", "o", "--training.epoch", "3") == 2
    assert "--training.epochs" in capsys.readouterr().err
    assert ended("train", "demo", "--data", str(tmp_path / "none"), "--out", "o") == 1
    *waits, missing = capsys.readouterr().err.splitlines()
    assert missing.startswith("error: ")
    assert waits in ([], ["loading torch and Ray"])
    assert str(tmp_path / "none") in missing


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["similar", "R", "--item", "-Kx1_a"], "--item=-Kx1_a"),
        (["similar", "R", "--item", "--verbose"], "--item=VALUE"),
        (["recommend", "R", "--user", "-u0"], "--user=-u0"),
        (["recommend", "R", "--items", "-Kx1_a,i5"], "--items=-Kx1_a,i5"),
        (["evaluate", "R", "--data", "-D"], "--data=-D"),
    ],
)
def test_a_value_that_begins_with_a_dash_is_told_its_form(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"a value that begins with a dash is joined to its flag: {hint}"


def test_other_mistakes_get_no_such_hint(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["similar", "R", "--item", "--k", "3"], ["evaluate", "R", "--nope", "-x"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
    assert "joined" not in capsys.readouterr().err


def test_suggestions_list_what_there_is_where_nothing_is_near() -> None:
    assert suggest("part", "zzz", ["loss", "step"]) == "unknown part 'zzz': there are loss, step"


@pytest.mark.parametrize("command", ["evaluate", "similar", "export", "prepare", "synth", "report"])
def test_a_command_without_arguments_is_wrong_usage(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hints on dashes paired no arguments with one, which was called a bug of Tandem."""
    assert ended(command) in (1, 2)
    assert "bug" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "D", "--out=o", "--sections", "\x1b[2J"),
        ("prepare", "D", "o", "--threads", "\x1b]52;c;eA==\x07"),
        ("train", "demo", "--data=d", "--out=o", "--loss.name", "\x1b[2J"),
        ("plan", "demo", "--data=d", "--\x1b[2J"),
    ],
)
def test_refused_words_are_repeated_escaped(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser's box held them as they were: they could clear the screen of who reads a log."""
    assert ended(*arguments) == 2
    told = capsys.readouterr().err
    assert "\\x1b" in told and "\x1b" not in told and "\n" in told


def ended(*arguments: str) -> int:
    """Exit status; the parser ends wrong usage by itself."""
    try:
        return cli.main(list(arguments))
    except SystemExit as end:
        return int(str(end.code))
