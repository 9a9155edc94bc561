"""One run at a time in a RUN folder, whichever node or storage it is on.

RUN/owner.json says who writes the folder: which start, on which machine, when it last gave a sign,
and what it was at. A thread renews it; an owner silent for SILENT_SECONDS has none. On a file system there is
RUN/.lock as well: the kernel frees it in the moment its process dies, so that a run killed on this
machine can be resumed at once. Clocks of the nodes must agree to within some seconds.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import IO, Any

from trainer.mistake import Mistake
from trainer.run_files import write_json
from trainer.storage import StoragePath

logger = logging.getLogger(__name__)
RENEW_SECONDS = 10.0
SILENT_SECONDS = 60.0
LOOK_SECONDS = 0.5
SETTLE_SECONDS = 1.0
"""Where nothing but owner.json tells two starts apart, the later one to write it wins."""
NAMELESS_SECONDS = 5.0
"""So long a holder of the lock may be without owner.json: it is written and removed under it."""


def this_machine() -> str:
    """The same in all processes that see one another's pids, different anywhere else."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


class RunLock:
    """Held by rank 0 from `take` to `release`."""

    def __init__(self, folder: StoragePath) -> None:
        self._folder = folder
        self._owner_file = folder / "owner.json"
        self._token = uuid.uuid4().hex
        self._file: IO[str] | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._phase: dict[str, Any] = {"phase": "starting", "done": 0, "total": None}

    def note_phase(self, phase: str, done: int, total: int | None) -> None:
        """What the next sign of life says the run is at: cheap, it only stores them."""
        self._phase = {"phase": phase, "done": done, "total": total}

    def take(self, run_id: str) -> None:
        """Raise Mistake where another run holds the folder.

        Args:
            run_id: of this start; an earlier attempt of the same start is no stranger.
        """
        self._lock_file(run_id)
        owner = self._owner()
        if owner is not None and owner["run_id"] != run_id:
            # On this machine the kernel has just said that its process is gone.
            elsewhere = self._file is None or owner["machine"] != this_machine()
            silent = time.time() - owner["renewed"]
            if elsewhere and silent < SILENT_SECONDS:
                self.release()
                raise Mistake(
                    f"{self._folder} is in use by another run, on {owner['host']} (its last sign: "
                    f"{max(silent, 0):.0f} s ago); wait for it, stop it, or choose another --out. "
                    f"A run that was killed is given up after {SILENT_SECONDS:.0f} s"
                )
        self._write(run_id)
        if self._file is None:
            time.sleep(SETTLE_SECONDS)
            if (self._owner() or {}).get("token") != self._token:
                raise Mistake(
                    f"{self._folder} was taken by another run in this moment; choose another --out"
                )
        self._thread = threading.Thread(
            target=self._renew, args=(run_id,), name="tandem-lock", daemon=True
        )
        self._thread.start()

    def release(self) -> None:
        """Let the next run in."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if (self._owner() or {}).get("token") == self._token:
                self._owner_file.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lock_file(self, run_id: str) -> None:
        """Take the kernel's lock, where the folder is on a file system.

        An earlier attempt of this start may live a little longer, on a node that was cut off. One
        that holds the lock without a name has just come or is about to go.
        """
        if not isinstance(self._folder, Path):
            return
        self._file = (self._folder / ".lock").open("w")
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = self._owner()
                ours = owner is not None and owner["run_id"] == run_id
                patience = SILENT_SECONDS if ours else NAMELESS_SECONDS if owner is None else 0.0
                if time.monotonic() - started < patience:
                    time.sleep(LOOK_SECONDS)
                    continue
                self._file.close()
                self._file = None
                raise Mistake(
                    f"{self._folder} is in use by another run; wait for it, stop it, or choose "
                    "another --out"
                ) from error
            return

    def _owner(self) -> dict[str, Any] | None:
        return json.loads(self._owner_file.read_text()) if self._owner_file.is_file() else None

    def _write(self, run_id: str) -> None:
        owner = {
            "run_id": run_id,
            "token": self._token,
            "host": socket.gethostname(),
            "machine": this_machine(),
            "pid": os.getpid(),
            "renewed": time.time(),
            **self._phase,
        }
        write_json(self._owner_file, owner)

    def _renew(self, run_id: str) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                if (self._owner() or {}).get("token") != self._token:
                    logger.error("%s was taken over by another start of the run", self._folder)
                    return
                self._write(run_id)
            except (OSError, ValueError) as error:  # a full disk; the next sign may get through
                logger.warning("%s cannot be renewed: %s", self._owner_file, error)
