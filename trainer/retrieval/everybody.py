"""`tandem recommend RUN --all --out OUT`: the k best items of every user, as Parquet.

    OUT/plan.json               what is asked of which bundle, and of how many users
    OUT/part-NNNNN.parquet      user (raw id), items (raw ids, best first), scores: a row a user
    OUT/recommendations.json    at the end: how many users and items

A part has a fixed range of the users and is there whole or not at all, so that a command that was
ended goes on where it stood, and each user is in one part once. Parts are made side by side by
processes that map the same bundle, or by workers of a cluster on shared storage.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.bundle.answers import prepare
from trainer.bundle.asked import Ask, Filters
from trainer.bundle.opened_bundle import Bundle
from trainer.files.filesystems import is_uri, local_path
from trainer.files.json_files import read_json, write_json
from trainer.files.writing import written
from trainer.launch.launcher import Launcher, Worker
from trainer.launch.processes import on_this_machine
from trainer.retrieval.search.everybody_batch import EverybodyBatch

PLAN, DONE = "plan.json", "recommendations.json"
USERS_A_PART = 8192
SHARES_ON_A_CLUSTER = 64


@dataclass(frozen=True)
class Plan:
    """What OUT holds, or will."""

    bundle: str
    """Digest."""
    k: int
    filters: Filters
    users: int
    users_digest: str
    """Of the users' rows, in order."""
    users_a_part: int = USERS_A_PART

    @property
    def num_parts(self) -> int:
        return -(-self.users // self.users_a_part)


@dataclass(frozen=True)
class Share:
    """What one process makes."""

    bundle: Path
    out: Path
    plan: Plan
    rows: np.ndarray | None
    """Of the users asked for; None: all."""
    parts: Sequence[int]


def recommend_everybody(
    bundle: Bundle, out: str, users: Sequence[str] | None, k: int, filters: Filters,
    workers: int | None = None, launcher: Launcher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write OUT, or what is missing of it; returns recommendations.json.

    Args:
        users: raw ids; None: all.
        launcher: of the processes that do it; None: on this machine.

    Raises:
        Mistake: where OUT holds something else, a user is not there, or a machine does not see the
            bundle or OUT.
    """
    rows = _rows(bundle, users)
    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    plan = Plan(bundle.manifest.digest, min(k, bundle.manifest.items), filters, len(rows), digest)
    # What cannot be answered is told before the work.
    prepare(bundle, Ask(user=str(bundle.user_names.id_of(0)), k=k, filters=filters))
    folder = _begun(out, plan)
    missing = _missing(folder, plan)
    if len(missing) < plan.num_parts:
        say(f"{plan.num_parts - len(missing):,} of {plan.num_parts:,} parts are there already")
    launcher = launcher or on_this_machine(workers)
    wanted = workers or 1
    if not launcher.is_here:  # several a worker, so that one that is slow or lost holds up little
        wanted = SHARES_ON_A_CLUSTER
    count = max(1, min(wanted, len(missing)))
    asked = None if users is None else rows
    shares = {
        f"{place + 1} of {count}": Share(bundle.path, folder, plan, asked, missing[place::count])
        for place in range(count)
    }
    there = plan.num_parts - len(missing)
    for ended, _ in launcher.each(make_parts, shares if missing else {}):
        there += len(shares[ended].parts)
        say(f"share {ended}: {there:,} of {plan.num_parts:,} parts are there")
    if _missing(folder, plan):
        raise Mistake(f"--out {out}: parts that other machines wrote are not seen from here: name "
                      "a folder on storage that all of them share")  # fmt: skip
    facts = {"users": plan.users, "parts": plan.num_parts, "k": plan.k, "bundle": plan.bundle}
    write_json(folder / DONE, facts)
    parts = "part" if plan.num_parts == 1 else "parts"
    say(f"{plan.users:,} users in {plan.num_parts:,} {parts}: {folder}")
    return facts


def part_file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.parquet"


def _missing(folder: Path, plan: Plan) -> list[int]:
    return [part for part in range(plan.num_parts) if not part_file(folder, part).is_file()]


def _rows(bundle: Bundle, users: Sequence[str] | None) -> np.ndarray:
    """Rows of the users, each once, in their order."""
    if users is None:
        return np.arange(len(bundle.user_names))
    rows = bundle.user_names.rows_of(users)
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        bundle.user_names.row_of(users[unknown[0]])  # says what is like it
    return rows[np.sort(np.unique(rows, return_index=True)[1])]


def _begun(out: str, plan: Plan) -> Path:
    """The folder OUT with its plan."""
    if is_uri(out):
        raise Mistake(f"--out {out}: parts are written to a folder of this machine")
    folder = local_path(out)
    if folder.exists() and not folder.is_dir():
        raise Mistake(f"--out {out} is a file: name a folder")
    if (folder / PLAN).is_file():
        if read_json(folder / PLAN) != _as_json(plan):
            raise Mistake(
                f"{out} holds recommendations of another bundle, of other users or settings: "
                "name another folder, or remove it"
            )
        return folder
    if folder.is_dir() and any(folder.iterdir()):
        raise Mistake(f"{out} holds something else: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLAN, _as_json(plan))
    return folder


def _as_json(plan: Plan) -> Any:
    filters = plan.filters
    ids = {"only": filters.only, "exclude": filters.exclude}
    lists = {name: None if each is None else list(each) for name, each in ids.items()}
    return {**asdict(plan), "filters": {**asdict(filters), **lists}}


def make_parts(share: Share, worker: Worker) -> int:
    """The parts of a share that nobody has made; their number."""
    for place in (share.bundle, share.out):
        if not place.is_dir():
            raise Mistake(
                f"{place} is not there on {socket.gethostname()}: RUN and OUT have to lie on "
                "storage that all machines share"
            )
    batch = EverybodyBatch(Bundle(share.bundle), share.plan.k, share.plan.filters)
    rows = np.arange(share.plan.users) if share.rows is None else share.rows
    made = 0
    for part in share.parts:
        file = part_file(share.out, part)
        if file.is_file():
            continue
        first = part * share.plan.users_a_part
        table = batch.table(rows[first : first + share.plan.users_a_part])
        unfinished = file.with_name(f".{file.name}-{socket.gethostname()}-{os.getpid()}")
        try:
            with written(unfinished) as stream:
                pq.write_table(table, stream)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
        made += 1
    return made
