"""How a command ends: one line for whatever went wrong, and its exit status.

0 done    1 failed    2 wrong usage    130 Ctrl-C    141 nobody reads on    143 SIGTERM
"""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import select
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from trainer.base.mistake import Mistake, ToldByFirst, UsageError
from trainer.base.screen import say, shown
from trainer.base.stopping import Terminated

FAILED = 1
USAGE = 2
STOPPED = 130
NOBODY_READS = 141
"""128 + SIGPIPE, as a shell reports a program that the signal ended."""

OURS = ("cluster", "trainer", "embeddings", "losses")
FOLDER = Path(__file__).parents[2]
OF_THE_WORLD = frozenset(
    (
        *("duckdb", "pyarrow", "fsspec", "s3fs", "botocore", "aiobotocore", "aiohttp"),
        *("requests", "urllib3", "ray", "grpc"),
    )
)
"""Packages whose errors tell of files, networks and clusters rather than of a bug."""
REMEDIES = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "free some space, or choose a folder on another disk",
    errno.EACCES: "choose a folder that this user may use, or change its rights",
    errno.EPERM: "choose a folder that this user may use, or change its rights",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.ENAMETOOLONG: "choose a shorter name",
}
NO_ALLOCATION = ("can't allocate memory", "out of memory", "unable to allocate", "bad_alloc")
LONGEST = 400
"""Characters of a foreign message that are shown."""


def guarded(command: Callable[[], int], doing: str, verbose: bool) -> int:
    """Run a command; whatever it raises becomes one `error:` line, and its exit status.

    Args:
        doing: what the line names as under way, such as `tandem export RUN OUT`.
        verbose: print the traceback, too.
    """
    atexit.register(_let_go)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII alone
    try:
        try:
            return _run(command, doing, verbose)
        finally:  # SystemExit of a parser that has printed its help comes by here, too
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS


def _open_closed_streams() -> None:
    """Who starts a program with `>&-` leaves its number to the next file that is opened, here or in
    a process that is started from here: what is printed would be written into that."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is not None:
            continue
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        os.set_inheritable(number, True)
        setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _let_go() -> None:
    """Python looks through all objects at its end, a second and a half of torch's; without that
    DuckDB prints that objects of its own were leaked."""
    if "duckdb" not in sys.modules:
        gc.freeze()


def _run(command: Callable[[], int], doing: str, verbose: bool) -> int:
    try:
        return command()
    except KeyboardInterrupt:
        say("stopped", file=sys.stderr)
        return STOPPED
    except Terminated as stop:
        if is_first_rank():
            say(stop, file=sys.stderr)
        return stop.status
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise
        if is_first_rank() or not isinstance(error, ToldByFirst):
            if verbose:
                sys.stderr.write(shown(traceback.format_exc(), keep="\n"))
            say(f"error: {error_line(error, doing)}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED


def is_first_rank() -> bool:
    """Whether this process speaks for its run: torchrun's others would say the same."""
    return os.environ.get("RANK", "0") == "0"


def error_line(error: BaseException, doing: str) -> str:
    """One line that says what went wrong, with what, and what to do."""
    cause = vars(error).get("cause")  # Ray's wrapping of what a worker raised
    if _package(error) == "ray" and isinstance(cause, BaseException):
        return error_line(cause, doing)
    if isinstance(error, Mistake) or _package(error) in OURS:
        return str(error)
    return f"{doing}: {foreign_line(error)}"


def foreign_line(error: BaseException) -> str:
    """What an error that is not the user's mistake comes to, in one line."""
    if _package(error) in OURS:
        return str(error)
    name, text = type(error).__name__, _first_line(str(error))
    told = f"{name}: {text}" if text else name
    if isinstance(error, MemoryError) or any(words in text.lower() for words in NO_ALLOCATION):
        return f"the memory does not suffice ({told}): use smaller sizes, or a larger machine"
    if isinstance(error, OSError):
        remedy = REMEDIES.get(error.errno or 0)
        return _of_system(error, text) + (f"; {remedy}" if remedy else "")
    if isinstance(error, ImportError):
        return f"{text}; `tandem doctor` says what is not installed as it should be"
    if _package(error) in OF_THE_WORLD:
        return told
    return (
        f"unexpected {told} ({_place(error)}); this is a bug of Tandem: the traceback, which "
        "--verbose shows, helps to mend it"
    )


def _of_system(error: OSError, text: str) -> str:
    """`No space left on device: OUT/items`; Python's own form where it knows less."""
    if error.strerror is None:
        return text or type(error).__name__
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([_first_line(str(error.strerror)), *names])


def _package(error: BaseException) -> str:
    """The package that an error's class is defined in, `duckdb` for `_duckdb` as well."""
    return type(error).__module__.partition(".")[0].lstrip("_")


def _first_line(text: str) -> str:
    """Native code appends its stack, Ray its logs."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:LONGEST] if lines else ""


def _place(error: BaseException) -> str:
    """File and line of the innermost frame in our own code, else of the innermost one."""
    places = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    ours = [each for each in places if each[0].parent.is_relative_to(FOLDER) and _is_ours(each[0])]
    file, line = (ours or places)[-1]
    return f"{file.name}:{line}"


def _is_ours(file: Path) -> bool:
    return file.relative_to(FOLDER).parts[0] in OURS


def _nobody_reads() -> bool:
    """Whether the reader of our standard output has gone."""
    try:
        watched = select.poll()
        watched.register(sys.stdout.fileno())
        return any(event & select.POLLERR for _, event in watched.poll(0))
    except (OSError, ValueError):  # no file behind it
        return False
