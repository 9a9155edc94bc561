"""`tandem recommend RUN --all --out OUT`: the k best items of every user, as Parquet.

    OUT/plan.json               what is asked of which bundle, and of how many users
    OUT/part-NNNNN.parquet      user (raw id), items (raw ids, best first), scores: a row a user
    OUT/recommendations.json    at the end: how many users and items

A part has a fixed range of the users and is there whole or not at all, so that a command that was
ended goes on where it stood, and each user is in one part once. Parts are made side by side by
processes that map the same bundle, or by workers of a cluster on shared storage.

Tensor shapes: Q users of a block, P items that pass, D width, K items kept of each user.
"""

from __future__ import annotations

import hashlib
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.bundle.answers import prepare, recommend
from trainer.bundle.asked import Ask, Filters
from trainer.bundle.opened_bundle import Bundle
from trainer.bundle.query_program import Query
from trainer.files.filesystems import is_uri, local_path
from trainer.files.json_files import read_json, write_json
from trainer.files.writing import written
from trainer.launch.launcher import Launcher, Worker
from trainer.launch.processes import on_this_machine
from trainer.retrieval.search.filter import Filter
from trainer.retrieval.search.item_lists import ItemLists
from trainer.retrieval.search.item_rows import ItemRows
from trainer.retrieval.search.keys import decode_keys
from trainer.retrieval.search.topk import exact_topk

PLAN, DONE = "plan.json", "recommendations.json"
USERS_A_PART = 8192
USERS_AT_ONCE = 1024
SHARES_ON_A_CLUSTER = 64
DEEPER = 8
"""Times k that is searched for under `--max-per`; who needs more is searched for alone."""


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
    for ended, _ in launcher.each(make_parts, shares if missing else {}):
        say(f"share {ended}: {plan.num_parts - len(_missing(folder, plan)):,} of "
            f"{plan.num_parts:,} parts are there")  # fmt: skip
    if _missing(folder, plan):
        raise Mistake(f"--out {out}: parts that other machines wrote are not seen from here: name "
                      "a folder on storage that all of them share")  # fmt: skip
    facts = {"users": plan.users, "parts": plan.num_parts, "k": plan.k, "bundle": plan.bundle}
    write_json(folder / DONE, facts)
    say(f"{plan.users:,} users in {plan.num_parts:,} parts: {folder}")
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
    batch = EverybodyBatch(Bundle(share.bundle), share.plan)
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


class EverybodyBatch:
    """The search of many users over the items that pass, which are the same for all."""

    def __init__(self, bundle: Bundle, plan: Plan) -> None:
        self.bundle, self.plan = bundle, plan
        passing = prepare(bundle, self._ask(0)).passing.with_mask(bundle.ranked.mask_I)
        out = bundle.item_names.rows_of(plan.filters.exclude)
        mask_I = np.zeros(bundle.manifest.items, dtype=bool)
        mask_I[passing.row_P if passing.row_P is not None else slice(None)] = True
        if passing.mask_I is not None:
            mask_I &= passing.mask_I
        mask_I[out[out >= 0]] = False
        self.row_P = np.flatnonzero(mask_I)
        whole = len(self.row_P) == len(mask_I)
        vectors = bundle.items
        item_PD = vectors.at(slice(0, len(vectors)) if whole else self.row_P)
        self.items: ItemRows | None = None
        if len(self.row_P):
            with warnings.catch_warnings():  # mapped files are not written, which torch warns of
                warnings.simplefilter("ignore", UserWarning)
                self.items = ItemRows(torch.from_numpy(item_PD))
        self.how = Filter.best_for(torch.device("cpu"))

    def table(self, rows: np.ndarray) -> pa.Table:
        """user, items, scores of user rows."""
        found = [
            pair
            for first in range(0, len(rows), USERS_AT_ONCE)
            for pair in self._block(rows[first : first + USERS_AT_ONCE])
        ]
        lengths = np.array([len(row_k) for row_k, _ in found], dtype=np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        none = (np.empty(0, np.int64), np.empty(0, np.float32))
        row_V, score_V = (np.concatenate(each) for each in zip(none, *found, strict=True))
        names = self.bundle.item_names.raw_id.take(pa.array(row_V.astype(np.int64)))
        scores = pa.array(score_V.astype(np.float32))
        return pa.table(
            {
                "user": self.bundle.user_names.raw_id.take(pa.array(rows)),
                "items": pa.ListArray.from_arrays(offsets, _one(names)),
                "scores": pa.ListArray.from_arrays(offsets, scores),
            }
        )

    def _block(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(item rows, scores) of each user."""
        query_QD = self._queries(rows)
        known_Q = np.asarray(query_QD.any(axis=1))
        k = self.plan.k * (DEEPER if self.plan.filters.max_per else 1)
        ranked: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64),) * 2] * len(rows)
        if self.items is not None and known_Q.any():
            key_QK = exact_topk(
                self.items, torch.from_numpy(query_QD), self._seen(rows), min(k, len(self.items)),
                self.how,
            )  # fmt: skip
            score_QK, place_QK = (each.numpy() for each in decode_keys(key_QK))
            ranked = [
                (self.row_P[place_K[place_K >= 0]], score_K[place_K >= 0])
                for place_K, score_K in zip(place_QK, score_QK, strict=True)
            ]
        for row, known, (row_K, score_K) in zip(rows, known_Q, ranked, strict=True):
            if not known:
                yield self._alone(int(row))
            elif not self.plan.filters.max_per:
                yield row_K, score_K
            else:
                yield self._under_quota(int(row), row_K, score_K, k)

    def _queries(self, rows: np.ndarray) -> np.ndarray:
        """float32 [Q, D]; zeros for those of whom nothing is known."""
        bundle = self.bundle
        if bundle.users is not None:
            known = bundle.user_known_U[rows]
            return bundle.users.at(rows) * known[:, None].astype(np.float32)
        return bundle.program.encode(
            [
                Query(row, bundle.list_of("history", row), bundle.list_of("disliked", row))
                for row in rows.tolist()
            ]
        )

    def _seen(self, rows: np.ndarray) -> ItemLists:
        """Places among the items that pass of what users have seen."""
        lists = []
        for row in rows.tolist():
            seen = self.bundle.list_of("seen", row)
            place = np.searchsorted(self.row_P, seen)
            place = place[place < len(self.row_P)]
            lists.append(place[np.isin(self.row_P[place], seen)])
        offsets = np.cumsum([0, *map(len, lists)])
        values = np.concatenate([np.empty(0, np.int64), *lists])
        return ItemLists(torch.from_numpy(values), torch.from_numpy(offsets))

    def _under_quota(
        self, row: int, row_K: np.ndarray, score_K: np.ndarray, searched: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Down the ranking; a search of its own where it ends too early."""
        quota = prepare(self.bundle, self._ask(row)).quota
        assert quota is not None
        taken = [place for place, item in enumerate(row_K.tolist()) if quota.takes(item)]
        if len(taken) >= self.plan.k or len(row_K) < searched:
            return row_K[taken[: self.plan.k]], score_K[taken[: self.plan.k]]
        return self._alone(row)

    def _alone(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """As `tandem recommend` answers one user."""
        found = recommend(self.bundle, self._ask(row))
        rows = np.array([item.row for item in found.items], dtype=np.int64)
        return rows, np.array(found.scores, dtype=np.float32)

    def _ask(self, row: int) -> Ask:
        user = str(self.bundle.user_names.id_of(row))
        return Ask(user=user, k=self.plan.k, filters=self.plan.filters)


def _one(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
