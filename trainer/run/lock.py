"""One run at a time in a RUN folder, whichever node or storage it is on.

RUN/owner.json says who writes the folder: which start, on which machine, when it last gave a sign,
and what it was at. A thread renews it; an owner silent for SILENT_SECONDS has none, and another
start takes over: one that finds itself replaced writes no more. On a file system there is RUN/.lock
as well, where it has such locks: the kernel frees it in the moment its process dies, so that a run
killed on this machine can be resumed at once. Clocks of the nodes need not agree: files/signs.py.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from trainer.base.mistake import Mistake
from trainer.base.typed import read_as
from trainer.distributed.hooks import RunPhase
from trainer.distributed.pauses import SignPauses
from trainer.files import signs
from trainer.files.json_files import read_json, write_json
from trainer.files.storage import StoragePath, modified_at

logger = logging.getLogger(__name__)
SETTLE_SECONDS = 1.0
"""Where nothing but owner.json tells two starts apart, the later one to write it wins."""
NAMELESS_SECONDS = 5.0
"""So long a holder of the lock may be without owner.json: it is written and removed under it."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""A file system without locks (NFS without lockd, Lustre without -o flock): owner.json does."""
MOST_BYTES = 1 << 16


class TakenOverError(OSError):
    """Another start holds the folder now; this one must not write."""


@dataclass(frozen=True)
class Owner:
    """What owner.json says."""

    run_id: str
    token: str
    host: str
    machine: str
    pid: int
    renewed: float
    """When it last gave a sign, in seconds since 1970, by the clock of `host`."""
    phase: RunPhase = "starting"
    done: int = 0
    total: int | None = None
    """How far it is with the phase."""


def this_machine() -> str:
    """The same in all processes that see one another's pids, different anywhere else."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def read_owner(folder: StoragePath) -> Owner | None:
    """Who writes a folder; None: nobody.

    An owner.json that cannot be understood is somebody's, as long as it is fresh.
    """
    file = folder / "owner.json"
    if not file.is_file():
        return None
    try:
        return read_as(Owner, read_json(file, MOST_BYTES))
    except FileNotFoundError:  # removed meanwhile
        return None
    except Mistake as mistake:
        logger.warning("%s says nothing of its owner: %s", file, mistake)
        return Owner("", "", "a machine that cannot be read", "", 0, modified_at(file))


def write_owner(
    folder: StoragePath, run_id: str, token: str, phase: RunPhase, done: int, total: int | None
) -> None:
    """Write owner.json for this process, whole."""
    owner = Owner(
        run_id=run_id,
        token=token,
        host=socket.gethostname(),
        machine=this_machine(),
        pid=os.getpid(),
        renewed=time.time(),
        phase=phase,
        done=done,
        total=total,
    )
    write_json(folder / "owner.json", asdict(owner))


class RunLock:
    """Held by rank 0 from `take` to `release`."""

    def __init__(self, folder: StoragePath) -> None:
        self._folder = folder
        self._owner_file = folder / "owner.json"
        self._silence = signs.Silence(self._owner_file)
        self._token = uuid.uuid4().hex
        self._file: IO[str] | None = None
        self._pauses = SignPauses()
        self._lost = threading.Event()
        self._thread: threading.Thread | None = None
        self._patience = 0.0
        self._said = False

    @property
    def is_lost(self) -> bool:
        """Whether another start has taken the folder over since."""
        return self._lost.is_set()

    def confirm(self) -> None:
        """Raise TakenOverError where the folder is another start's by now."""
        owner = read_owner(self._folder)
        if owner is not None and owner.token != self._token:
            self._lost.set()
        if self.is_lost:
            by = f" on {owner.host}" if owner is not None else ""
            raise TakenOverError(
                f"{self._folder} was taken over by another start of the run{by}; this one writes "
                "no more"
            )

    def is_held_by(self, run_id: str) -> bool:
        """Whether owner.json, as this machine sees it, names this start."""
        owner = read_owner(self._folder)
        return owner is not None and owner.run_id == run_id

    def note_phase(self, phase: RunPhase, done: int, total: int | None) -> None:
        """What the next sign of life says the run is at: cheap, it only stores them. That it has
        started is said at once."""
        self._pauses.note(phase, done, total)

    def take(self, run_id: str, waits: bool = False) -> None:
        """Raise Mistake where another run holds the folder.

        Args:
            run_id: of this start; an earlier attempt of the same start is no stranger.
            waits: for whoever holds it to go, as long as one that was killed may seem to hold it.
        """
        self._patience = signs.SILENT_SECONDS + 2 * signs.RENEW_SECONDS if waits else 0.0
        try:
            self._take(run_id)
        except BaseException:
            self._close_file()
            raise
        self._thread = threading.Thread(
            target=self._renew, args=(run_id,), name="tandem-lock", daemon=True
        )
        self._thread.start()

    def _take(self, run_id: str) -> None:
        self._lock_file(run_id)
        started = time.monotonic()
        while (owner := self._owner_elsewhere(run_id)) is not None:
            silent = self._silence.seconds(owner)
            if time.monotonic() - started >= self._patience:
                raise Mistake(
                    f"{self._folder} is in use by another run, on {owner.host} (its last sign: "
                    f"{silent:.0f} s ago); wait for it, stop it, or choose another --out. "
                    f"A run that was killed is given up after {signs.SILENT_SECONDS:.0f} s"
                )
            self._say_waiting(f"on {owner.host}, its last sign {silent:.0f} s ago")
            time.sleep(signs.LOOK_SECONDS)
        self._write(run_id)
        if self._file is None:
            time.sleep(SETTLE_SECONDS)
            owner = read_owner(self._folder)
            if owner is None or owner.token != self._token:
                raise Mistake(
                    f"{self._folder} was taken by another run in this moment; choose another --out"
                )

    def _owner_elsewhere(self, run_id: str) -> Owner | None:
        """A stranger that still writes the folder. On this machine the kernel has just said that
        its process is gone."""
        owner = read_owner(self._folder)
        if owner is None or owner.run_id == run_id:
            return None
        if self._file is not None and owner.machine == this_machine():
            return None
        try:
            silent = self._silence.seconds(owner)
        except FileNotFoundError:  # it has just gone
            return None
        return owner if silent < signs.SILENT_SECONDS else None

    def _say_waiting(self, who: str) -> None:
        """Say once that another start holds the folder, and how long it is waited for."""
        if not self._said:
            logger.warning(
                "%s is held by another start (%s); it is waited for up to %.0f s",
                self._folder,
                who,
                self._patience,
            )
        self._said = True

    def release(self, forget: bool = False) -> None:
        """Let the next run in.

        Args:
            forget: take the kernel's lock's file away, too: nothing came of this start.
        """
        self._pauses.end()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            owner = read_owner(self._folder)
            if owner is not None and owner.token == self._token:
                self._owner_file.unlink(missing_ok=True)
        if self._file is not None and forget:
            (self._folder / ".lock").unlink(missing_ok=True)  # while it is ours
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lock_file(self, run_id: str) -> None:
        """Take the kernel's lock, where the folder is on a file system that has them.

        An earlier attempt of this start may live a little longer, on a node that was cut off. One
        that holds the lock without a name has just come or is about to go.
        """
        if not isinstance(self._folder, Path):
            return
        path = self._folder / ".lock"
        self._file = path.open("w")
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._wait_for_holder(run_id, started, error)
                continue
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                logger.info("%s: no locks there (%s): owner.json does alone", path, error)
                self._close_file()
                return
            if path.exists() and os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
                return
            self._file.close()  # its holder took it away when it went
            self._file = path.open("w")

    def _wait_for_holder(self, run_id: str, started: float, error: OSError) -> None:
        """Wait a moment for the holder of the kernel's lock to go, or raise Mistake."""
        owner = read_owner(self._folder)
        ours = owner is not None and owner.run_id == run_id
        patience = signs.SILENT_SECONDS if ours else NAMELESS_SECONDS if owner is None else 0.0
        if time.monotonic() - started >= max(patience, self._patience):
            raise Mistake(
                f"{self._folder} is in use by another run; wait for it, stop it, or choose "
                "another --out"
            ) from error
        if not ours and self._patience:
            self._say_waiting("on this machine")
        time.sleep(signs.LOOK_SECONDS)

    def _write(self, run_id: str) -> None:
        write_owner(self._folder, run_id, self._token, *self._pauses.phase)

    def _renew(self, run_id: str) -> None:
        while self._pauses.take(signs.RENEW_SECONDS):
            try:
                self.confirm()
                self._write(run_id)
            except TakenOverError as error:
                logger.error("%s", error)
                return
            except OSError as error:  # a full disk; the next sign may get through
                logger.warning("%s cannot be renewed: %s", self._owner_file, error)
