"""What must hold of every command, whatever it was given."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tests.hostile.case import Case
from tests.hostile.child import REACHED
from trainer.base.mistake import Mistake
from trainer.base.screen import shown
from trainer.data.schema import Dataset
from trainer.files.storage import storage_path
from trainer.files.whole_folder import PREFIX

STATUSES = {"plan": (0, 1, 2, 3)}
FOREIGN = re.compile(
    r"\b(Binder|Conversion|Parser|Catalog|Invalid ?Input|IO|OutOfMemory|Internal)"
    r"(Exception| Error)\b|\bArrow[A-Z]\w+\b|\b(Type|Key|Index|Attribute|Unicode\w+|Overflow)"
    r"Error\b|\b(Recursion|Assertion|Value|Runtime)Error\b|maximum recursion depth"
)
"""Errors of libraries that reach the user as they are."""
BOX = ("╭─", "usage: ")
FLAG_AT_FAULT = re.compile(r"error: --[a-z][a-z0-9-]*(\.[a-z0-9-]+)?[ =:,]")
"""A message whose subject is a flag: also of one at its default that the input does not go
with. A flag later in the line is a remedy, and names nothing."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int | None
    output: str
    errors: str


Entry = tuple[str, int, int, str]
Snapshot = dict[str, Entry]


def snapshot(folder: Path) -> Snapshot:
    """Each entry below a folder: kind and rights, size, time of its last change, contents."""
    found: Snapshot = {}
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(above, name)
            state = path.lstat()
            key = os.path.relpath(path, folder)
            if path.is_symlink():
                found[key] = ("link", 0, state.st_mtime_ns, str(path.readlink()))
            elif path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[key] = ("file", state.st_size, state.st_mtime_ns, digest)
            else:
                found[key] = (oct(state.st_mode), 0, 0, "")
    return found


def judged(case: Case, folder: Path, before: Snapshot, ended: Ended) -> list[str]:
    """What is wrong with the way a command ended; empty where nothing is."""
    wrong = _of_status(case, ended)
    wrong += _of_words(case, ended)
    after = snapshot(folder)
    ok = ended.status == 0
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name) and not _may_change(case, name, ok, before):
            told = "is gone" if name not in after else "is new" if name not in before else "changed"
            wrong.append(f"FILES: {shown(name)} {told}")
    leftover = folder.with_name(f"{folder.name}.tmp")
    wrong += [f"FILES: {each.name} is left in TMPDIR" for each in leftover.glob("*tandem*")]
    if ok and REACHED not in ended.output and not wrong:
        wrong += _of_result(case, folder, ended)
    return wrong


def _of_status(case: Case, ended: Ended) -> list[str]:
    if ended.status is None:
        return ["HANG: it did not end in the time given"]
    if ended.status not in STATUSES.get(case.command, (0, 1, 2)):
        return [f"STATUS: {ended.status}"]
    return []


def _of_words(case: Case, ended: Ended) -> list[str]:
    """One line for a failure, that names what it is about; nothing that only we understand."""
    both, wrong = ended.output + ended.errors, []
    if "Traceback (most recent call last)" in both:
        wrong.append("TRACEBACK")
    if "this is a bug of Tandem" in both:
        wrong.append("BUG: the message calls itself a bug")
    if "\x1b[2J" in both or "\x07" in both:
        wrong.append("ESCAPE: an escape sequence of the user's words reaches the terminal")
    if (
        ended.status in (0, None)
        or ended.status < 0
        or (case.command == "plan" and ended.status == 3)
    ):
        return wrong
    lines = [line for line in both.splitlines() if line.startswith("error: ")]
    boxed = any(mark in ended.errors for mark in BOX) or any(mark in ended.output for mark in BOX)
    if len(lines) > 1 or (not lines and not (ended.status == 2 and boxed)):
        if not _speaks_by_status(case, ended):
            wrong.append(f"LINES: {len(lines)} lines of error")
    elif lines and FOREIGN.search(lines[0]) and not wrong:
        wrong.append("FOREIGN: a library's own error is the message")
    if lines and case.named and not _names(lines[0], (*case.named, *_values(case))):
        wrong.append(f"UNNAMED: none of {', '.join(map(repr, map(shown, case.named[:8])))}")
    return wrong


def _speaks_by_status(case: Case, ended: Ended) -> bool:
    """`status` of a run that stopped, doctor's list of problems: told on standard output."""
    return case.command in ("status", "doctor") and ended.status == 1 and bool(ended.output)


def _values(case: Case) -> list[str]:
    """What was typed, without flags and what is too short to stand for itself in a message."""
    values = [word.partition("=")[2] or word for word in case.arguments[1:]]
    return [value for value in values if len(value) > 2 and not value.startswith("--")]


def _names(line: str, named: tuple[str, ...]) -> bool:
    if FLAG_AT_FAULT.match(line):
        return True
    bare = _bare(line)
    return any(_bare(shown(word))[:30] in bare for word in named if _bare(shown(word)))


def _bare(text: str) -> str:
    """Without blanks and frames, in which a long line is wrapped."""
    return "".join(text.replace("│", "").split())


def _may_change(case: Case, name: str, ok: bool, before: Snapshot) -> bool:
    """Whether an entry may be new, changed or gone."""
    if any(fnmatch(name, pattern) for pattern in case.writes):
        return True
    parts = name.split("/")
    if case.out is None or not ok or any(part.startswith(PREFIX) for part in parts):
        return _is_begun(case, name)
    out = os.path.normpath(case.out)
    within = name == out or name.startswith(f"{out}/") or out.startswith(f"{name}/")
    return within and (name not in before or "--extend" in case.arguments or case.out == "R")


def _is_begun(case: Case, name: str) -> bool:
    """What commands that go on with OUT leave there when they fail: the folder of a search."""
    if case.command not in ("compare", "tune") or case.out is None:
        return False
    out = os.path.normpath(case.out)
    return name == out or name.startswith(f"{out}/") or out.startswith(f"{name}/")


def _of_result(case: Case, folder: Path, ended: Ended) -> list[str]:
    """What a success must have made."""
    made = storage_path(_place(case, folder))
    if "memory://" in str(case.out):
        return []  # which went with the process
    try:
        match case.command:
            case "prepare":
                return _of_prepared(case, folder)
            case "synth" if "--raw" not in case.arguments:
                Dataset.load(_place(case, folder), verify="digest")
            case "export":
                json.loads((made / "bundle.json").read_text())
            case "report":
                if not made.read_text().rstrip().endswith("</html>"):
                    return ["RESULT: the page is cut"]
            case "train":
                return _of_trained(json.loads((made / "summary.json").read_text()))
            case "evaluate" | "recommend" | "similar":
                if re.search(r"\b(nan|inf)\b", ended.output):
                    return ["RESULT: nan or inf is shown as a figure"]
    except (OSError, ValueError, Mistake) as error:
        return [f"RESULT: {type(error).__name__}: {shown(error)}"]
    return []


def _place(case: Case, folder: Path) -> str:
    out = case.out or ""
    return out if "://" in out else str(folder / out)


def _of_prepared(case: Case, folder: Path) -> list[str]:
    dataset = Dataset.load(_place(case, folder), verify="digest")
    kept = sum(split.rows for split in dataset.splits.values())
    dropped, rows = sum(dataset.dropped.values()), dataset.source["rows"]
    wrong = []
    if kept + dropped != rows and "--extend" not in case.arguments:
        wrong.append(f"RESULT: {kept} rows kept + {dropped} dropped of {rows}")
    if case.rows is not None and rows != case.rows:
        wrong.append(f"RESULT: {rows} rows read of {case.rows}")
    return wrong


def _of_trained(summary: dict[str, Any]) -> list[str]:
    loss = summary.get("loss")
    finite = loss is None or math.isfinite(loss)
    return [] if finite else [f"RESULT: the loss is {loss}"]
