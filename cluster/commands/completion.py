"""`tandem --install-completion [bash|zsh|fish]`: the shell asks `tandem --complete WORD ...`.

A script of a few lines a shell, which asks this for the words that can stand next, so that new
commands, flags and presets are completed without installing anything again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cluster.jobs.job_command import ARGUMENTS, WITH_PRESET, arguments_of
from trainer.base.screen import say
from trainer.base.typed import fields_of
from trainer.base.usage import UsageError, suggest
from trainer.files.paths import UNNAMED

BASH = """\
_tandem() {
  local IFS=$'\\n'
  COMPREPLY=($(tandem --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _tandem tandem
"""
ZSH = """\
#compdef tandem
_tandem() {
  local -a found
  found=("${(@f)$(tandem --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}
_tandem "$@"
"""
FISH = """\
function __tandem
  set -l words (commandline -opc) (commandline -ct)
  tandem --complete $words[2..] 2>/dev/null
end
complete -c tandem -a '(__tandem)'
"""
ZSH_REMEDY = "put this into ~/.zshrc, before compinit: fpath=({folder} $fpath)"


def install(arguments: Sequence[str]) -> int:
    """Write the shell's script where it looks for it, and say what is to do."""
    shell = arguments[0] if arguments else Path(os.environ.get("SHELL", "")).name
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    scripts = {
        "bash": (BASH, data / "bash-completion/completions/tandem"),
        "zsh": (ZSH, data / "zsh/site-functions/_tandem"),
        "fish": (FISH, config / "fish/completions/tandem.fish"),
    }
    if shell not in scripts:
        raise UsageError(suggest("shell", shell, list(scripts)))
    text, file = scripts[shell]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    say(f"wrote {file}; it holds in new shells")
    if shell == "zsh":
        say(ZSH_REMEDY.format(folder=file.parent))
    return 0


def complete(words: Sequence[str], commands: Sequence[str]) -> int:
    """Print what can stand in place of the last of `words`, which may be empty."""
    last = words[-1] if words else ""
    for word in candidates(list(words), commands):
        if word.startswith(last):
            say(word)
    return 0


def candidates(words: list[str], commands: Sequence[str]) -> list[str]:
    """Words for the place of the last; none where the shell should offer files."""
    if len(words) < 2:
        return [*commands, "--help", "--version", "--install-completion"]
    command, *before, last = words
    if command == "submit" and "--" in before:
        return candidates([*words[words.index("--") + 1 :]], commands)
    if command not in ARGUMENTS:
        return []
    flags = flags_of(command)
    if before and before[-1] in flags:
        return flags[before[-1]]
    if command in WITH_PRESET and not before and not last.startswith("-"):
        from trainer.config.presets import PRESETS

        return list(PRESETS)
    return [*flags, "--help", "--verbose"] if last.startswith("-") else []


def flags_of(command: str) -> dict[str, list[str]]:
    """Flags of a command, each with the words that it takes, where they are few."""
    flags = _flags(arguments_of(command), "")
    if command in WITH_PRESET:
        flags |= {"--help-all": [], "--print-config": []}
    return flags


def _flags(kind: type, before: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, annotation in fields_of(kind).items():
        plain: Any = _plain(annotation)
        if isinstance(plain, type) and dataclasses.is_dataclass(plain):
            found |= _flags(plain, before if name in UNNAMED else f"{before}{name}.")
        elif "Positional" not in str(annotation):
            flag = f"--{before}{name}".replace("_", "-")
            found[flag] = _choices(plain)
    return found


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _choices(kind: Any) -> list[str]:
    """The words of a Literal, wherever it stands in an annotation."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [word for arm in get_args(kind) for word in _choices(arm)]
