"""Mistakes on the command line: the near name is suggested, the status is 2.

Commands parse with tyro; the user's mistakes inside a command are `Mistake`s, status 1.
"""

import difflib
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar, get_type_hints

from trainer.base.mistake import UsageError
from trainer.base.run_files import CONFIG_FILE
from trainer.base.screen import say, words_escaped

T = TypeVar("T")

VERBOSE = "--verbose"


def suggest(kind: str, name: str, known: Sequence[str]) -> str:
    """`unknown command 'trian': did you mean 'train'?`, else the names there are."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return f"unknown {kind} {name!r}: {hint}"


def parse(kind: type[T], program: str, arguments: Sequence[str]) -> T:
    """Parse flags into a frozen dataclass. tyro suggests near flags and exits with status 2.

    A Mistake of the dataclass' own checks passes through.
    """
    import tyro  # a fifth of a second, that `tandem` and its help do not wait for

    try:
        with words_escaped(arguments):
            return tyro.cli(kind, args=arguments, prog=program, description=kind.__doc__)
    except SystemExit as end:
        if end.code:
            for hint in dash_hints(kind, arguments):
                say(hint, file=sys.stderr)
        raise


def dash_hints(kind: type, arguments: Sequence[str]) -> list[str]:
    """How to give a value that begins with a dash, for flags of text that seem to lack theirs."""
    types = {f"--{name.replace('_', '-')}": each for name, each in get_type_hints(kind).items()}
    hints = []
    for flag, value in pairwise([*arguments, "-"]):
        if types.get(flag) in (str, str | None) and value.startswith("-") and value not in types:
            shown = "VALUE" if value == "-" else value
            hints.append(f"a value that begins with a dash is joined to its flag: {flag}={shown}")
    return hints


def expect_no_arguments(command: str, arguments: Sequence[str]) -> None:
    """Refuse flags where a command has none."""
    if arguments and arguments[0] in ("--help", "-h"):
        say(f"usage: tandem {command}")
        raise SystemExit(0)
    if arguments:
        raise UsageError(f"tandem {command} takes no arguments, not {' '.join(arguments)}")


def expect_preset(program: str, arguments: Sequence[str], presets: Sequence[str]) -> None:
    """Refuse an unknown preset as wrong usage; what a path names is looked at later. None named:
    it is `default`."""
    named = [argument for argument in arguments[:1] if not argument.startswith("-")]
    if named and named[0] not in presets and not named[0].endswith(".toml"):
        if named[0].endswith(".json"):
            raise UsageError(
                f"preset {named[0]}: a preset file is TOML; {program} RUN --print-config prints a "
                "run's settings as one"
            )
        if "://" not in named[0] and not Path(named[0], CONFIG_FILE).is_file():
            raise UsageError(suggest("preset", named[0], presets))
