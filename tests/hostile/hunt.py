"""Cases drawn by hypothesis from a seed, run by servers of processes side by side, and judged."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import NonInteractiveExampleWarning

from tests.hostile.case import Case
from tests.hostile.commands import STRATEGIES
from tests.hostile.fixtures import make_fixtures
from tests.hostile.judge import Ended, judged, snapshot
from tests.hostile.servers import hostile_servers
from trainer.base.screen import shown

BATCH = 20
STRIDE = 3
"""hypothesis varies an example some times before it draws the next: each third is run."""
SECONDS_A_CASE, SECONDS_ALONE = 120.0, 300.0
"""After which a command hangs: generous, for others may use the machine."""
ROOT = Path(__file__).parents[2]
WEIGHTS = {
    "prepare": 6,
    "train": 3,
    "synth": 2,
    "export": 1.2,
    "evaluate": 2,
    "resume": 2,
    "doctor": 0.3,
}
"""How often a command's turn comes, beside 1."""
ALONE = frozenset(
    (
        *("prepare", "synth", "plan", "doctor", "status", "logs", "stop", "submit", "report"),
        *("evaluate", "recommend", "similar", "export", "join", "mine"),
    )
)
"""Commands that start no cluster, and end: some of their cases are programs of their own."""
EACH_ALONE = 15


def draw_cases(command: str, number: int, root_seed: int) -> list[Case]:
    """Batch `number` of a command's cases; the seed alone decides it."""
    cases: list[Case] = []

    @seed(f"{root_seed}:{command}:{number}")
    @settings(
        max_examples=BATCH * STRIDE,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(STRATEGIES[command])
    def collect(case: Case) -> None:
        cases.append(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonInteractiveExampleWarning)
        collect()
    return cases[::STRIDE]


def start_servers(count: int, light: bool) -> tuple[subprocess.Popen[bytes], list[Server]]:
    """A process that imports everything once, and servers forked from it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"NO_COLOR": "1", "AWS_EC2_METADATA_DISABLED": "true"}
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "COLUMNS", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    pairs = [socket.socketpair() for _ in range(count)]
    theirs = [pair[1].fileno() for pair in pairs]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.hostile.child",
            "light" if light else "all",
            *map(str, theirs),
        ],
        stdin=subprocess.DEVNULL,
        pass_fds=theirs,
        cwd=ROOT,
        env=environment,
    )
    for _, their in pairs:
        their.close()
    return process, [Server(ours) for ours, _ in pairs]


class Server:
    """A process that forks one a command."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._lines = channel, channel.makefile("rw")

    def wait(self) -> None:
        """Until it has imported what commands need."""
        assert self._lines.readline() == "ready\n"

    def run(self, argv: list[str], folder: Path, case: Case, anew: bool) -> dict[str, Any]:
        """Run a command there: its exit status (None: ended for its time) and its seconds."""
        asked: dict[str, Any] = {
            "argv": argv,
            "folder": str(folder),
            "environment": dict(case.environment),
        }
        asked |= {"anew": anew, "seconds": SECONDS_ALONE if anew else SECONDS_A_CASE}
        self._lines.write(json.dumps(asked) + "\n")
        self._lines.flush()
        answer: dict[str, Any] = json.loads(self._lines.readline())
        return answer

    def close(self) -> None:
        self._lines.close()
        self._channel.close()


@dataclass
class Tally:
    """What was run, and what ended badly."""

    run: Counter[str] = field(default_factory=Counter)
    ok: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, int, list[str]]] = field(default_factory=list)


class Hunt:
    """Everything that cases share: fixtures, servers, addresses that answer wrongly."""

    def __init__(self, root_seed: int, work: Path, servers: int = 2, light: bool = False) -> None:
        self._seed, self._work = root_seed, work
        self._process, self._servers = start_servers(servers, light)
        self._fixtures = make_fixtures(work / "fixtures", with_run=not light)
        self._shows = "HOSTILE_SHOW" in os.environ
        self._lock, self.tally = threading.Lock(), Tally()
        self._batches: dict[tuple[str, int], list[Case]] = {}

    def case(self, command: str, number: int) -> Case | None:
        """A command's case by its number; batches may be a little short."""
        batch, place = divmod(number, BATCH)
        key = command, batch
        with self._lock:
            if key not in self._batches:
                self._batches = {k: v for k, v in self._batches.items() if k[0] != command}
                self._batches[key] = draw_cases(command, batch, self._seed)
            cases = self._batches[key]
        return cases[place] if place < len(cases) else None

    def turns(self, only: Collection[str]) -> Iterator[tuple[str, int]]:
        """Commands and numbers, in turns by WEIGHTS, without end."""
        done = {name: 0 for name in STRATEGIES if not only or name in only}
        while True:
            name = min(done, key=lambda each: done[each] / WEIGHTS.get(each, 1))
            yield name, done[name]
            done[name] += 1

    def run(self, seconds: float, only: Collection[str] = (), most: int | None = None) -> int:
        """Until the time is up, or `most` cases were run; the number of failures, at most 1."""
        for server in self._servers:
            server.wait()
        before = snapshot(self._fixtures)
        ends, turns = time.monotonic() + seconds, self.turns(only)
        left = [most]

        def work(server: Server) -> None:
            while time.monotonic() < ends:
                with self._lock:
                    if left[0] is not None:
                        if left[0] == 0:
                            return
                        left[0] -= 1
                    command, number = next(turns)
                self.one(server, command, number)

        with hostile_servers() as self._addresses, ThreadPoolExecutor(len(self._servers)) as pool:
            list(pool.map(work, self._servers))  # which raises what one of them has raised
        self.close()
        after = snapshot(self._fixtures)
        changed = [name for name in {*before, *after} if before.get(name) != after.get(name)]
        changed = [name for name in changed if not name.startswith(("R/", "D/.derived"))]
        if changed:
            self.tally.failures.append(("fixtures", 0, [f"FILES: changed: {changed}"]))
        self.report()
        return int(bool(self.tally.failures))

    def close(self) -> None:
        for server in self._servers:
            server.close()
        self._process.wait()

    def repeat(self, command: str, number: int) -> int:
        """One case again, in a folder that stays; what it says is shown."""
        folder = Path(f"{self._work}-{command}-{number}")
        for server in self._servers:
            server.wait()
        with hostile_servers() as self._addresses:
            wrong = self.one(self._servers[0], command, number, folder)
        self.close()
        for name in ("out", "err"):
            print(shown(Path(f"{folder}.{name}").read_text(errors="replace"), keep="\n"))
        kept = folder.with_name(f"{folder.name}-fixtures")
        shutil.copytree(self._fixtures, kept)
        print(f"folder {folder}\nfixtures {kept}")
        return int(bool(wrong))

    def one(
        self, server: Server, command: str, number: int, folder: Path | None = None
    ) -> list[str]:
        """Lay a case, run it, judge it, clear it away."""
        case = self.case(command, number)
        if case is None:
            return []
        keep, folder = folder is not None, folder or self._work / f"{command}-{number}"
        folder.mkdir()
        case.lay(folder, self._fixtures)
        before = snapshot(folder)
        argv = [self._filled(word) for word in case.arguments]
        anew = command in ALONE and number % EACH_ALONE == EACH_ALONE - 1
        answer = server.run(argv, folder, case, anew)
        texts = [Path(f"{folder}.{name}").read_text(errors="replace") for name in ("out", "err")]
        wrong = judged(case, folder, before, Ended(answer["status"], *texts))
        self._note(case, number, wrong, answer, texts[1])
        if not keep:
            _clear(folder)
        return wrong

    def _filled(self, word: str) -> str:
        word = word.replace("{fixtures}", str(self._fixtures))
        for name, address in self._addresses.items():
            word = word.replace(f"{{server:{name}}}", address)
        return word

    def _note(
        self, case: Case, number: int, wrong: list[str], answer: dict[str, Any], errors: str
    ) -> None:
        with self._lock:
            self.tally.run[case.command] += 1
            self.tally.ok[case.command] += answer["status"] == 0
            self.tally.seconds[case.command] += answer["seconds"]
            if self._shows:
                line = " | ".join(errors.strip().splitlines()[-1:])
                print(f"{answer['status']} {number} {shown(shlex.join(case.arguments))[:300]}")
                print(f"      {answer['seconds']:.2f} s  {shown(line)[:300]}", flush=True)
            if not wrong:
                return
            self.tally.failures.append((case.command, number, wrong))
            typed = shown(shlex.join(["tandem", *case.arguments]))
            print(f"\n{'; '.join(wrong)}\n  {typed[:600]}")
            last = [line for line in errors.splitlines() if line.strip()][-3:]
            print("\n".join(f"  | {shown(line)[:400]}" for line in last))
            print(
                f"  again: .venv/bin/python -m tests.hostile --seed {self._seed} "
                f"--only {case.command}:{number}",
                flush=True,
            )

    def report(self) -> None:
        tally = self.tally
        print(f"\nseed {self._seed}: {tally.run.total()} commands, {len(tally.failures)} failures")
        for name, count in sorted(tally.run.items()):
            seconds = tally.seconds[name] / max(count, 1)
            print(f"  {name:10} {count:5} run, {tally.ok[name]:4} succeeded, {seconds:.2f} s each")


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(f"{folder}.tmp", ignore_errors=True)
    for name in ("out", "err"):
        Path(f"{folder}.{name}").unlink(missing_ok=True)
