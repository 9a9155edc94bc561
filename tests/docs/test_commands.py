"""The documentation's commands are run, page by page; those that are not say why."""

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from cluster.cli import COMMANDS, main
from tests.docs.blocks import ROOT, Block, blocks_of, pages, run_all, tandem_lines

BLOCKS = {
    page: found
    for path in pages()
    if (found := blocks_of(page := str(path.relative_to(ROOT)), path.read_text()))
}


def to_run(page: str) -> list[Block]:
    return [block for block in BLOCKS[page] if block.reason is None]


def before_slow(page: str) -> list[Block]:
    """What of a page is cheap: nothing that comes after a slow block, which it may need."""
    blocks = to_run(page)
    return blocks[: next((i for i, block in enumerate(blocks) if block.slow), len(blocks))]


@pytest.mark.parametrize("page", [page for page in BLOCKS if before_slow(page)])
def test_cheap_commands(page: str, tmp_path: Path) -> None:
    run_all(before_slow(page), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [p for p in BLOCKS if before_slow(p) != to_run(p)])
def test_all_commands(page: str, tmp_path: Path) -> None:
    run_all(to_run(page), tmp_path)


@pytest.mark.parametrize(
    "block",
    [block for blocks in BLOCKS.values() for block in blocks if block.reason is not None],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_skipped(block: Block) -> None:
    """Shown among pytest's skips, with its reason."""
    pytest.skip(f"{block.page}:{block.line}: {block.reason}")


@pytest.mark.parametrize("page", BLOCKS)
def test_subcommands_and_flags_are_there(page: str) -> None:
    """Also of what is not run, or is run by slow tests alone."""
    for block in BLOCKS[page]:
        for words in tandem_lines(block):
            if block.status == 0:
                check_words(words, f"{page}:{block.line}")


def check_words(words: list[str], place: str) -> None:
    if "--" in words:  # submit ... -- train ...
        at = words.index("--")
        check_words(words[at + 1 :], place)
        words = words[:at]
    name, *rest = words
    assert name in COMMANDS, f"{place}: no command {name!r}"
    part = (rest[0],) if name == "bench" else ()
    for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
        assert flag in flags_of(name, *part), f"{place}: tandem {name} has no {flag}"


@cache
def flags_of(*words: str) -> frozenset[str]:
    """The flags that a command's help names."""
    shown = _help(*words, "--help")
    if "--help-all" in shown:
        shown += _help(*words, "--help-all")
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w.-]*", shown)) | {"--verbose"}


def _help(*words: str) -> str:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "400")
        with contextlib.suppress(SystemExit):
            main(list(words))
    return out.getvalue()


def test_a_flag_that_is_not_there_is_named() -> None:
    with pytest.raises(AssertionError, match="page:3: tandem evaluate has no --splits"):
        check_words(["evaluate", "RUN", "--splits", "test"], "page:3")
    with pytest.raises(AssertionError, match="no command 'evalute'"):
        check_words(["submit", "--address", "x", "--", "evalute"], "page:3")


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("<!-- run -->", (None, False, 0)),
        ("<!-- run: slow -->", (None, True, 0)),
        ("<!-- run: fails with 2 -->", (None, False, 2)),
        ("<!-- run: slow, fails with 1 -->", (None, True, 1)),
        ("<!-- skip: needs a cluster -->", ("needs a cluster", False, 0)),
    ],
)
def test_marks(mark: str, expected: tuple[str | None, bool, int]) -> None:
    (block,) = blocks_of("page", f"text\n\n{mark}\n```sh\ntrue\n```\n")
    assert (block.reason, block.slow, block.status) == expected
    assert block.line == 4 and block.text == "true\n"


@pytest.mark.parametrize("mark", ["", "<!-- skip -->", "<!-- skip: -->", "<!-- run: fast -->"])
def test_a_block_that_does_not_say_how_it_is_run_is_refused(mark: str) -> None:
    with pytest.raises(ValueError, match=r"^page:4: .* above a block of sh"):
        blocks_of("page", f"text\n\n{mark}\n```sh\ntrue\n```\n")


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    blocks = blocks_of(
        "page",
        "<!-- run -->\n```sh\necho a > file\n```\n\n<!-- run -->\n```sh\ncat file\nfalse\n```\n",
    )
    with pytest.raises(AssertionError, match="page:7 ended with 1, not 0"):
        run_all(blocks, tmp_path)
    assert (tmp_path / "file").read_text() == "a\n"
