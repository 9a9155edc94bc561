"""Commands of the documentation: fences of `sh`, and the line above each that says how it is run.

<!-- run -->                        in its page's temporary folder, after those before it
<!-- run: slow -->                  what takes more than seconds
<!-- run: fails with 1 -->          with this exit status
<!-- run: slow, fails with 1 -->
<!-- skip: needs a cluster -->      not run, for this reason
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = re.compile(r"<!-- run(?:: (?P<slow>slow)?(?:, )?(?:fails with (?P<status>\d+))?)? -->")
SKIP = re.compile(r"<!-- skip: (?P<reason>.+) -->")
HEREDOC = re.compile(r"^(.*)<<'(\w+)'\n.*?^\2$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fence."""

    page: str
    line: int
    text: str
    reason: str | None = None
    """Why it is not run."""
    slow: bool = False
    status: int = 0
    """Exit status it ends with."""


def pages() -> list[Path]:
    """Every page that may hold commands."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: str, text: str) -> list[Block]:
    """The fences of a page. Raises ValueError for one that does not say how it is run."""
    return [
        _block(page, text[: match.start()].splitlines(), match[1]) for match in FENCE.finditer(text)
    ]


def _block(page: str, before: list[str], text: str) -> Block:
    line = len(before) + 1
    mark = before[-1] if before else ""
    if skip := SKIP.fullmatch(mark):
        return Block(page, line, text, reason=skip["reason"])
    if run := RUN.fullmatch(mark):
        return Block(page, line, text, slow=bool(run["slow"]), status=int(run["status"] or 0))
    raise ValueError(
        f"{page}:{line}: {mark!r} above a block of sh; it says <!-- run -->, <!-- run: slow -->, "
        "or <!-- skip: REASON --> (docs/site/README.md)"
    )


def run_all(blocks: list[Block], folder: Path) -> None:
    """Run blocks one after the other in a folder. AssertionError names the page and line."""
    beside = Path(sys.executable).parent  # `tandem`, and the `python` that has it
    environment = os.environ | {
        "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    for block in blocks:
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == block.status, (
            f"{block.page}:{block.line} ended with {done.returncode}, not {block.status}:\n"
            f"{block.text}\n{done.stdout}\n{done.stderr}"
        )


def tandem_lines(block: Block) -> list[list[str]]:
    """The words of each `tandem` command of a block, without the `tandem`."""
    text = HEREDOC.sub(r"\1", block.text).replace("\\\n", " ")
    words = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [line[1:] for line in words if line and line[0].removeprefix(".venv/bin/") == "tandem"]
