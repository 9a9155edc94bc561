"""A bundle, mapped: opening it reads its manifest and the ends of its files.

    items/{vectors,norms,known,counts,order}.npy, scales.npy, ids.arrow, attributes.parquet
    users/{known,counts,order}.npy, ids.arrow; vectors.npy and norms.npy unless they were left out
    users/{history,disliked,seen}.{values,offsets}.npy    what is known of users
    users/features/NAME.*           attributes of users that the query tower reads
    vocabularies.parquet            values of categories by row
    tables/NAME.safetensors         tables that the query tower reads
    {item,query}_{tower,encoder}.pt2, items.faiss, bundle.json
    beside/                         programs and tables of a second model, where there is one

Shapes: I items, D width.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.base.mistake import Mistake
from trainer.bundle.flat_arrays import mapped_as, mapped_lists
from trainer.bundle.fold_in import centre_of, folded_in
from trainer.bundle.manifest import Manifest, read_manifest
from trainer.bundle.names_file import NamesFile
from trainer.bundle.query_program import QueryPrograms
from trainer.bundle.quota import group_codes
from trainer.bundle.vectors.passing import Passing
from trainer.bundle.vectors.stored_vectors import StoredVectors
from trainer.bundle.vocabularies import Vocabularies
from trainer.data.jagged import Jagged
from trainer.files.filesystems import is_uri, local_path

if TYPE_CHECKING:
    from trainer.bundle.where import Where

LISTS = ("history", "disliked", "seen")


class Bundle:
    """What answers are given from. Raises Mistake where a file is not as the manifest says."""

    def __init__(self, path: str | Path, full: bool = False) -> None:
        """full: compare the digests of all files, which reads them."""
        if is_uri(path):
            raise Mistake(f"{path}: a bundle is mapped from a disk: copy it to a local folder")
        self.path = local_path(path).resolve()  # what a link names now, whatever it names later
        self.manifest: Manifest = read_manifest(self.path, full)
        said, items, users = self.manifest, self.path / "items", self.path / "users"
        self.items = StoredVectors.checked(items, said.precision, said.items, said.width)
        self.item_names = NamesFile(items, "item", said.items)
        self.user_names = NamesFile(users, "user", said.users)
        self.known_I = mapped_as(self.path / "items/known.npy", (said.items,), np.bool_)
        self.count_I = mapped_as(self.path / "items/counts.npy", (said.items,), np.int64)
        self.user_count_U = mapped_as(self.path / "users/counts.npy", (said.users,), np.int64)
        self.user_known_U = mapped_as(self.path / "users/known.npy", (said.users,), np.bool_)
        self.users = None
        if said.user_vectors:
            self.users = StoredVectors.checked(users, said.precision, said.users, said.width)
        self._lists = {name: mapped_lists(users, name) for name in LISTS}
        if any(len(lists.offsets) != said.users + 1 for lists in self._lists.values()):
            raise Mistake(f"{users}: its lists are not of {said.users:,} users: export again")
        self.vocabularies = Vocabularies(self.path / "vocabularies.parquet")
        self.program = QueryPrograms(self.path, said)
        self._codes: dict[str, np.ndarray] = {}

    def list_of(self, name: str, user: int) -> np.ndarray:
        """`history` and `disliked` (oldest first) or `seen` (ascending) of a user row, int64."""
        lists: Jagged = self._lists[name]
        begin, end = lists.offsets[user : user + 2]
        return lists.values[begin:end].astype(np.int64)

    @cached_property
    def where(self) -> Where:
        """Conditions on the items' attributes."""
        from trainer.bundle.where import Where  # DuckDB, which most answers do not need

        return Where(self.path, self.manifest.items)

    @cached_property
    def ranked(self) -> Passing:
        """The items that the model knows anything of: no other is in a ranking by score."""
        known = bool(self.known_I.all())
        return Passing(self.manifest.items, None if known else np.array(self.known_I))

    @cached_property
    def by_popularity(self) -> np.ndarray:
        """Rows by falling training interactions, the lower row first; without those of none."""
        order = np.argsort(-self.count_I, kind="stable")
        return order[: np.count_nonzero(self.count_I)]

    def query_from_items(self, rows: np.ndarray) -> np.ndarray:
        """Rows of items, int64 [n] -> a query of length 1, float32 [D], by fold_in.py. Items of
        which nothing is known are left out; zeros where none is left."""
        known = rows[np.asarray(self.known_I[rows])]
        return folded_in(self.items, self._centre_D, self.count_I, known)

    @cached_property
    def _centre_D(self) -> np.ndarray:
        return centre_of(self.items, self.known_I)

    def codes(self, column: str) -> np.ndarray:
        """A number a value of a column of the items, int32 [I]; -1 where it is missing."""
        if column not in self._codes:
            self._codes[column] = group_codes(self.path, column)
        return self._codes[column]
