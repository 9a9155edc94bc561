"""A server under load: python -m tests.serve.load FOLDER REQUESTS [CLIENTS [BAD]]

`tandem serve` in a process of its own; CLIENTS of one connection each, whose every answer is held
to that of the bundle it says it is of; BAD more that send what is broken, huge, slow or gone, one
after the other until the end; the link changes to another bundle at half of the requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bundle.made import make_bundle
from tests.serve.running import asked, wait_until_up
from trainer.bundle.answers import recommend
from trainer.bundle.asked import Ask, Filters
from trainer.bundle.opened_bundle import Bundle

HEAD = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHEAP = "price < 50"
USERS, ASKED_USERS = 40, 60
"""Of those that are asked for the last are nobody."""
K = 5
LOOK_SECONDS = 2.0
BAD_SECONDS = 0.5


def change(link: Path, target: Path) -> None:
    """Point a link elsewhere, at once."""
    new = link.with_name("new")
    new.symlink_to(target)
    new.rename(link)


@dataclass
class Told:
    """What the bundles answer, and what the clients were told.

    Args:
        bundles: any of them may answer.
    """

    bundles: tuple[Path, ...]
    statuses: Counter[int] = field(default_factory=Counter)
    digests: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """Of the bad clients: the status they got, or that they got none."""

    def __post_init__(self) -> None:
        self._wanted: dict[tuple[str, int, bool], list[Any]] = {}
        for path in self.bundles:
            bundle = Bundle(path)
            for user in range(USERS):
                for cheap in (False, True):
                    filters = Filters(CHEAP if cheap else None)
                    found = recommend(bundle, Ask(f"u{user}", k=K, filters=filters))
                    key = bundle.manifest.digest[:12], user, cheap
                    self._wanted[key] = [item.raw_id for item in found.items]

    @property
    def asked(self) -> int:
        return self.statuses.total()

    def check(self, user: int, cheap: bool, status: int, answer: dict[str, Any]) -> None:
        """Raise AssertionError where it is not as it must be."""
        assert status == (200 if user < USERS else 400), (status, answer)
        self.statuses[status] += 1
        if status == 200:
            digest = answer["bundle"]
            self.digests[digest] += 1
            wanted = self._wanted[digest, user, cheap]
            assert [each["item"] for each in answer["items"]] == wanted


async def one_client(port: int, requests: int, told: Told) -> None:
    """Requests over one connection, each answer as it must be."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for n in range(requests):
        user, cheap = n % ASKED_USERS, bool(n % 2)
        body = json.dumps({"user": f"u{user}", "k": K, **({"where": CHEAP} if cheap else {})})
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        told.check(user, cheap, int(head.split(b" ")[1]), answer)
    writer.close()


async def bad_client(port: int, kind: int, told: Told) -> None:
    """What is broken, huge, slow, or gone before it is answered."""
    status = "none"
    with suppress(OSError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = (
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n",
            b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{",
            HEAD + b'Content-Length: 14\r\n\r\n{"user": "u1"}',
        )[kind % 4]
        writer.write(sent)
        await writer.drain()
        if kind % 4 != 3:
            found = await reader.read()
            status = found.split(b" ", 2)[1].decode() if found else "none"
        writer.close()
    told.refused[status] += 1


async def load(port: int, clients: int, requests: int, bad: int, told: Told) -> None:
    """So many of each client; the bad ones come once."""
    good = [one_client(port, requests, told) for _ in range(clients)]
    await asyncio.gather(*good, *(bad_client(port, kind, told) for kind in range(bad)))


async def long_load(
    port: int, clients: int, requests: int, bad: int, told: Told, half: Callable[[], None]
) -> None:
    """As many altogether; bad ones come again as long as it lasts, `half` is called half-way."""
    share, more = divmod(requests, clients)
    good = [one_client(port, share + (place < more), told) for place in range(clients)]

    async def again(kind: int) -> None:
        while True:
            await bad_client(port, kind, told)
            await asyncio.sleep(BAD_SECONDS)

    async def turn() -> None:
        while told.asked < requests // 2:
            await asyncio.sleep(0.1)
        await asyncio.to_thread(half)

    beside: list[Awaitable[None]] = [again(kind) for kind in range(bad)]
    tasks = [asyncio.ensure_future(each) for each in (*beside, turn())]
    try:
        await asyncio.gather(*good)
    finally:
        for task in tasks:
            task.cancel()


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def measure(folder: Path, requests: int, clients: int, bad: int) -> dict[str, Any]:
    """The whole of it, and what is reported."""
    one = make_bundle(folder / "one", items=20_000, width=64)
    two = make_bundle(folder / "two", items=20_000, width=64, seed=1, step=2)
    link = folder / "current"
    link.symlink_to(one)
    told, memory = Told((one, two)), list[int]()
    words = [sys.executable, "-m", "cluster.cli", "serve", str(link), "--port=0"]
    log = folder / "log"
    with log.open("w") as writes:
        server = subprocess.Popen(
            [*words, "--client-seconds=2", "--answer-seconds=600"], stderr=writes
        )
    try:
        while not log.read_text().endswith("\n"):
            assert server.poll() is None
            time.sleep(0.1)
        port = int(log.read_text().rpartition(":")[2].partition("/")[0])
        wait_until_up(port)
        started = time.monotonic()

        async def run() -> None:
            async def look() -> None:
                while True:
                    memory.append(resident_bytes(server.pid))
                    await asyncio.sleep(LOOK_SECONDS)

            looking = asyncio.create_task(look())
            await long_load(port, clients, requests, bad, told, lambda: change(link, two))
            looking.cancel()

        asyncio.run(run())
        seconds = time.monotonic() - started
        memory.append(resident_bytes(server.pid))
        text = asked(port, "GET", "/metrics")[1]
        counted = [line for line in text.splitlines() if line.startswith("tandem_serve_")]
        kept = ("requests_total", "bundle_changes", "bundle_failures")
        spent = float(text.partition("\nprocess_cpu_seconds_total ")[2].partition("\n")[0])
    finally:
        server.terminate()
        server.wait(timeout=60)
    quarter = len(memory) // 4
    return {
        "statuses": dict(told.statuses),
        "bundles": dict(told.digests),
        "bad_clients": dict(told.refused),
        "server": [line for line in counted if any(f"serve_{name}" in line for name in kept)],
        "seconds": round(seconds, 1),
        "server_cpu_seconds": round(spent, 1),
        "resident_mb": [
            round(memory[place] / 2**20) for place in (0, quarter, 2 * quarter, 3 * quarter, -1)
        ],
        "load": os.getloadavg(),
    }


if __name__ == "__main__":
    counts = [int(text) for text in sys.argv[2:]] + [32, 8][len(sys.argv[3:]) :]
    figures = measure(Path(sys.argv[1]), counts[0], counts[1], counts[2])
    print(json.dumps(figures, indent=1))
