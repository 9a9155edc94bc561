"""Words that a shell is offered, and the scripts that ask for them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster import cli
from cluster.commands.completion import FISH, ZSH, candidates, flags_of
from cluster.jobs.job_command import ARGUMENTS

NAMES = list(cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "among", "not_among"),
    [
        ([""], {"train", "--version"}, set()),
        (["train", ""], {"default", "gowalla"}, {"--data"}),
        (["train", "demo", "-"], {"--loss.name", "--workers", "--help-all"}, {"--config"}),
        (["train", "demo", "--loss.name", ""], {"ssm", "bsl"}, {"--data"}),
        (["train", "demo", "--data", ""], set(), {"default"}),
        (["evaluate", "run", "--split", ""], {"validation", "test"}, set()),
        (["evaluate", "-"], {"--split", "--k"}, {"--run"}),
        (["submit", "--", "train", ""], {"default"}, set()),
        (["bench", ""], set(), {"--data"}),
    ],
)
def test_what_can_stand_next(words: list[str], among: set[str], not_among: set[str]) -> None:
    found = set(candidates(words, NAMES))
    assert among <= found and not not_among & found


def test_every_flag_of_every_command_has_a_form_that_shells_take() -> None:
    for command in ARGUMENTS:
        assert all(flag.startswith("--") and " " not in flag for flag in flags_of(command))


def test_complete_prints_what_begins_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--complete", "ev"]) == 0
    assert capsys.readouterr().out == "evaluate\n"


@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", "data/bash-completion/completions/tandem"),
        ("zsh", "data/zsh/site-functions/_tandem"),
        ("fish", "config/fish/completions/tandem.fish"),
    ],
)
def test_the_script_is_written_where_the_shell_looks(
    shell: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    assert cli.main(["--install-completion"]) == 0
    assert "tandem --complete" in (tmp_path / file).read_text()


def test_an_unknown_shell_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--install-completion", "bsh"]) == 2
    assert "did you mean 'bash'" in capsys.readouterr().err


TANDEM = '#!/bin/sh\nshift\nfor word; do last=$word; done\necho "$last-$#"\n'
"""A stand-in that answers with the last word, and with how many there are."""


def test_bash_asks_for_the_word_under_the_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    cli.main(["--install-completion", "bash"])
    (tmp_path / "tandem").write_text(TANDEM)
    (tmp_path / "tandem").chmod(0o755)
    script = f"""
PATH={tmp_path}:$PATH
. {tmp_path}/bash-completion/completions/tandem
COMP_WORDS=(tandem train "de" rest); COMP_CWORD=2
_tandem
printf '%s\\n' "${{COMPREPLY[@]}}"
complete -p tandem
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "de-2"
    assert "-F _tandem tandem" in done.stdout


ZSH_ASKS = """
compadd() { print -l -- "${(@)found}"; }
_files() { print files; }
words=(tandem train "de" rest); CURRENT=3
"""
"""In place of zsh's own: what is asked for, and where it is shown."""


@pytest.mark.parametrize(
    ("shell", "before", "text", "after"),
    [
        ("zsh", ZSH_ASKS, ZSH, ""),
        ("fish", "", FISH, "complete -C 'tandem train de'"),
    ],
)
def test_the_other_shells_ask_so_too(
    shell: str, before: str, text: str, after: str, tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    (tmp_path / "tandem").write_text(TANDEM)
    (tmp_path / "tandem").chmod(0o755)
    (tmp_path / "script").write_text(before + text + after)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        [shell, "script"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[0] == "de-2", done.stderr
