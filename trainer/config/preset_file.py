"""A preset as a file: TOML, a table a section, each setting with its help above it.

    [loss]
    # Which loss ...
    name = "bsl"

    [training]
    max_steps = "none"

What a file leaves out is as in `Config()`. "none" is None, where a setting may be None.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from typing_extensions import Doc

from trainer.base.mistake import Mistake
from trainer.base.run_files import CONFIG_FILE
from trainer.base.typed import fields_of
from trainer.config.sections import Config
from trainer.files.json_files import MOST_JSON_BYTES, read_json
from trainer.files.storage import StoragePath, file_size

NONE = "none"
WIDTH = 100
PLACE = re.compile(r"(?:unknown field )?([A-Za-z_][\w-]*(?:\.[\w-]+)*)")
TABLE = re.compile(r"\s*\[\s*([\w.-]+)\s*\]")
KEY = re.compile(r"\s*[\"']?([\w.-]+)[\"']?\s*=")


def is_path(preset: str) -> bool:
    """Whether a preset is named by a path or a URI: of a TOML file, or of a run."""
    return preset.endswith(".toml") or "/" in preset or Path(preset, CONFIG_FILE).is_file()


def read_preset(path: StoragePath) -> Config:
    """The settings of a TOML file, or those that a run's folder was trained with.

    Raises:
        Mistake: naming the file, and the first field in it that is unknown or wrong, by its line.
    """
    if not path.name.endswith(".toml"):
        return _of_run(path)
    text = ""
    try:
        text = _text(path)
        contents = _with_nones(tomllib.loads(text), Config)
        return Config.from_json(contents)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Mistake(f"preset file {path}: no TOML: {error}") from error
    except Mistake as mistake:
        line = line_of(text, str(mistake))
        where = f", line {line}" if line else ""
        raise Mistake(f"preset file {path}{where}: {mistake}") from mistake
    except (OSError, ValueError) as error:
        raise Mistake(f"preset file {path}: {error}") from error


def _of_run(path: StoragePath) -> Config:
    """The settings in a run's config.json."""
    file = path / CONFIG_FILE
    try:
        contents = read_json(file)
        return Config.from_json(contents["config"] if isinstance(contents, dict) else contents)
    except (OSError, KeyError, Mistake) as error:
        told = str(error).removeprefix(f"{file} ")
        raise Mistake(f"preset {path}: neither a .toml file nor a run: {file}: {told}") from error


def _text(path: StoragePath) -> str:
    size = file_size(path)
    if size < 0:  # a FIFO would be waited for, a device has no end
        raise Mistake("is no file" if path.exists() else "does not exist")
    if size > MOST_JSON_BYTES:
        raise Mistake(f"{size:,} bytes; at most {MOST_JSON_BYTES:,} are read")
    return path.read_bytes().decode()


def _with_nones(contents: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Values with None for "none", where a field may be None."""
    fields, found = fields_of(kind), {}
    for name, value in contents.items():
        known = fields.get(name)
        if isinstance(value, dict) and isinstance(known, type) and dataclasses.is_dataclass(known):
            value = _with_nones(value, known)
        elif value == NONE and _may_be_none(known):
            value = None
        found[name] = value
    return found


def _may_be_none(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return _may_be_none(get_args(kind)[0])
    return NoneType in get_args(kind)


def line_of(text: str, message: str) -> int | None:
    """The line of a file that a message speaks of, whose first words are a field's name."""
    named = PLACE.match(message)
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        heading, key = TABLE.match(line), KEY.match(line)
        table = heading.group(1) if heading else table
        here = ".".join(filter(None, (table, key.group(1) if key else "")))
        if named and (heading or key) and here == named.group(1):
            return number
    return None


def as_toml(config: Config, title: str) -> str:
    """A preset file of a config; `title`: its first comment."""
    lines = [*_comment(title), *_table(config, "")]
    return "\n".join(lines).rstrip() + "\n"


def _table(section: Any, name: str) -> Iterator[str]:
    """Values first, then the tables below it."""
    kind: type = type(section)
    values = {field: getattr(section, field) for field in fields_of(kind)}
    helps = field_helps(kind)
    for field, value in values.items():
        if not dataclasses.is_dataclass(value):
            yield from ("", *_comment(helps.get(field, "")), f"{field} = {_value(value)}")
    for field, value in values.items():
        if dataclasses.is_dataclass(value):
            below = f"{name}.{field}" if name else field
            yield from ("", f"[{below}]", *_comment((type(value).__doc__ or "").partition("\n")[0]))
            yield from _table(value, below)


def _value(value: Any) -> str:
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _comment(words: str) -> list[str]:
    return textwrap.wrap(
        " ".join(words.split()), WIDTH, initial_indent="# ", subsequent_indent="# "
    )


@cache
def field_helps(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those that it is made from."""
    helps: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
            assert isinstance(body, ast.ClassDef)
            for field, told in zip(body.body, body.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    helps[field.target.id] = _docstring(told)
    for name, annotation in fields_of(kind).items():
        for told in getattr(annotation, "__metadata__", ()):
            if isinstance(told, Doc):  # fields that are made of other dataclasses
                helps[name] = told.documentation
    return helps


def _docstring(told: ast.stmt) -> str:
    value = told.value if isinstance(told, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
