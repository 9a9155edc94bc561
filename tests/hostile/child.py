"""One process a command: forked from a server that has imported what is slow.

    python -m tests.hostile.child light|all SOCKET...

On each socket a line of JSON asks for a command, and a line answers.

What would start a cluster ends where it would, or trains two steps on one rank of this process:
hostile input is what is looked at here, and a command that comes so far has taken it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import tandem
from cluster import cli

assert tandem
LIGHT_MODULES = ("cluster.commands.prepare_run", "trainer.synth.synth")
MODULES = (
    *LIGHT_MODULES,
    *(
        "cluster.commands.train_run",
        "cluster.workers.ray_workers",
        "cluster.tune.search",
        "cluster.jobs.submit",
        "trainer.synth.synth",
    ),
    *(
        "trainer.train",
        "trainer.compare.comparison",
        "trainer.live.dashboard",
        "trainer.report.report",
    ),
    *("trainer.retrieval.evaluate_run", "trainer.retrieval.recommend", "trainer.retrieval.export"),
    *("trainer.tools.plan", "trainer.bench.loss", "trainer.bench.step", "trainer.bench.data"),
    *("trainer.bench.eval", "pyarrow.dataset"),
)
MOST_BYTES = 14 * 2**30
"""Address space of a command; torch and Ray map four gigabytes of it."""
MOST_FILE_BYTES = 2**31
REACHED = "REACHED"
"""Printed where a command is about to start what is not started here."""


class Reached(SystemExit):
    """The command has taken its input."""


def reached(*_: Any, **__: Any) -> Any:
    print(REACHED, flush=True)
    raise Reached(0)


@contextmanager
def reaching(*_: Any, **__: Any) -> Iterator[Any]:
    yield reached()


def run_here(launcher: Any, work: Any, spec: Any, resumable: Any = None) -> dict[str, Any]:
    """`RayWorkers.run`: of a training, a few steps on the one rank of this process."""
    if resumable is None:
        reached()
    from trainer.observe.progress import SilentProgress
    from trainer.run.state import read_state
    from trainer.train import run_worker

    done = (read_state(spec.out).checkpoint_step or 0) if spec.resume else 0
    most = min(spec.config.training.max_steps or done + 2, done + 2)
    training = replace(spec.config.training, max_steps=most, threads=1)
    config = replace(spec.config, training=training)
    return {"workers": 1, **run_worker(replace(spec, config=config), SilentProgress())}


def prepare_process() -> None:
    """Import what commands import, and put in place what they do not start here."""
    for name in MODULES:
        import_module(name)
    from cluster.commands import prepare_tasks
    from cluster.tune import search as tune
    from cluster.workers.ray_workers import RayWorkers
    from trainer.bench import step
    from trainer.compare import comparison as run
    from trainer.live import dashboard

    RayWorkers.run = run_here
    tune.ray_session = reaching
    run.run_trials = reached
    step.Group = reached
    prepare_tasks.run_tasks = reached
    ended = threading.Event()
    ended.set()
    dashboard._stopped_by_signal = lambda: ended


def run(argv: list[str], folder: str, environment: dict[str, str], anew: bool) -> None:
    """In the child: the command, with its output in folder.out and folder.err. Does not return.

    Args:
        anew: as a program of its own, which imports everything and has nothing in the way.
    """
    os.setsid()
    status = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        os.environ |= {"TMPDIR": f"{folder}.tmp", **environment}
        tempfile.tempdir = None
        if anew:
            os.execv(sys.executable, [sys.executable, "-m", "tandem", *argv])
        sys.stdout, sys.stderr = _stream(1), _stream(2)
        status = _status(argv)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _stream(number: int) -> TextIO:
    return os.fdopen(os.dup(number), "w", encoding="utf-8")


def _status(argv: list[str]) -> int:
    sys.argv = ["tandem", *argv]
    try:
        return cli.main(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  this is what a traceback is
        traceback.print_exc(file=sys.stderr)
        return 1


def waited(process: int, seconds: float) -> tuple[int | None, float]:
    """Exit status (negative: a signal's), None where the time was up; its processor seconds."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        ended, state, usage = os.wait4(process, os.WNOHANG)
        if ended:
            _kill(process)
            return os.waitstatus_to_exitcode(state), usage.ru_utime + usage.ru_stime
        time.sleep(0.005)
    _kill(process)
    os.waitpid(process, 0)
    return None, seconds


def _kill(process: int) -> None:
    """The command and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def serve(channel: socket.socket) -> None:
    """Run a command for each line that is asked, until nobody asks."""
    with channel, channel.makefile("rw") as lines:
        lines.write("ready\n")
        lines.flush()
        while line := lines.readline():
            asked = json.loads(line)
            Path(f"{asked['folder']}.tmp").mkdir()
            process = os.fork()
            if process == 0:
                run(asked["argv"], asked["folder"], asked["environment"], asked["anew"])
            status, seconds = waited(process, asked["seconds"])
            lines.write(json.dumps({"status": status, "seconds": seconds}) + "\n")
            lines.flush()


def main(light: bool, channels: list[int]) -> None:
    """Import once, then serve each channel from a process of its own.

    Args:
        light: import what needs no torch alone; other commands are not asked for.
    """
    if light:
        for name in LIGHT_MODULES:
            import_module(name)
    else:
        prepare_process()
    servers = []
    for number in channels:
        server = os.fork()
        if server == 0:
            serve(socket.socket(fileno=number))
            os._exit(0)
        os.close(number)
        servers.append(server)
    for server in servers:
        os.waitpid(server, 0)


if __name__ == "__main__":
    main(sys.argv[1] == "light", [int(word) for word in sys.argv[2:]])
