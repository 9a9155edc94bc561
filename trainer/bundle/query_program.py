"""Query vectors of people as they are described: the exported tower over mapped tables.

torch is imported with the first query that needs it. The tables stay on disk, safetensors files
that are mapped: a look-up touches the pages of its rows.

Shapes: n queries, L ids of a key, F features, D columns of a table, W of a vector, O of the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.base.mistake import Mistake
from trainer.bundle.flat_arrays import mapped, mapped_lists
from trainer.bundle.manifest import BESIDE, Manifest, ModelFacts
from trainer.data.events.marks import items_of, mark_values, marks_of
from trainer.data.feature_types import Attribute
from trainer.data.jagged import Jagged

if TYPE_CHECKING:
    from torch import Tensor

LISTS = ("history", "disliked")
FEATURES = "users/features"
NEXT_TO_NOTHING = 1e-30
"""Zeros say that a place of a sequence holds no item."""


@dataclass(frozen=True)
class Query:
    """Somebody, as the query tower may read it."""

    user: int = -1
    """A user row; -1: nobody of the dataset."""
    history: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Rows of liked items, oldest first, with their marks or without them; with dislikes where the
    model reads those (trainer/data/events/marks.py)."""
    disliked: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    given: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By key ("user.country", "context.hour"), what was said: rows int64, a number, or a vector."""
    described: bool = False
    """Features of the user were given: those that were not are missing, not unknown."""


class QueryPrograms:
    """The query tower of a bundle; where it has two, their vectors stand side by side."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._each = [QueryProgram(folder, manifest, manifest)]
        if manifest.beside is not None:
            self._each.append(QueryProgram(folder, manifest, manifest.beside, BESIDE))

    @property
    def reads(self) -> frozenset[str]:
        """All keys that a tower reads."""
        return frozenset(key for each in self._each for key in each.reads)

    @property
    def can_encode(self) -> bool:
        """Whether queries can be made from features: the bundle has the tables that it takes."""
        return all(each.can_encode for each in self._each)

    def warm(self) -> None:
        """Load what the first query would wait for."""
        self.encode([Query()])

    def encode(self, queries: Sequence[Query]) -> np.ndarray:
        """float32 [n, O]; zeros for those of whom nothing is known.

        Raises:
            Mistake: where the bundle has no tables of a query tower.
        """
        return np.concatenate([each.encode(queries) for each in self._each], axis=1)


class QueryProgram:
    """One query tower of a bundle.

    Args:
        model: how it is called.
        place: what stands before the name of its program.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, model: ModelFacts, place: str = ""
    ) -> None:
        self.folder, self.manifest, self.model, self.place = folder, manifest, model, place
        self.reads = (*model.query_dense, *model.query_keys)
        self.can_encode = bool(model.tables)
        self._columns: dict[str, np.ndarray | Jagged] = {}

    def encode(self, queries: Sequence[Query]) -> np.ndarray:
        """float32 [n, O]; zeros for those of whom nothing is known.

        Raises:
            Mistake: where the bundle has no tables of the query tower.
        """
        if not self.can_encode:
            raise Mistake(
                f"{self.folder} has no tables of its query tower: it answers users of the "
                "dataset as they were then, not items, features or a context; export the run again"
            )
        import torch

        dense = {key: self._dense(key, queries) for key in self.model.query_dense}
        dense |= self._marks(queries)
        with torch.inference_mode():
            features = self.model.query_features
            pooled_nFD = torch.stack([self._pooled(key, queries) for key in features], dim=1)
            given = (pooled_nFD, dense) if dense else (pooled_nFD,)
            query_nO: np.ndarray = self._tower(*given).numpy()
        return query_nO

    @cached_property
    def _tower(self) -> Any:
        import torch

        path = self.folder / f"{self.place}query_tower.pt2"
        try:
            return torch.export.load(path).module()
        except (RuntimeError, ValueError) as error:
            raise Mistake(f"{path} cannot be loaded ({error!s:.200}): export again") from error

    @cached_property
    def _tables(self) -> dict[str, Tensor]:
        """By query key; mapped."""
        from safetensors import safe_open

        found = {}
        for key, table in self.model.tables.items():
            with safe_open(self.folder / table.file, framework="pt") as file:
                found[key] = file.get_tensor(table.tensor)
        return found

    def _pooled(self, key: str, queries: Sequence[Query]) -> Tensor:
        """[n, D]: the sum of the rows of each query's ids, or their mean where the model takes it;
        zeros for none."""
        import torch
        from torch.nn.functional import embedding_bag, pad

        ids = [self._ids(key, query) for query in queries]
        name = key if key in self.model.tables else key.partition("@")[0]
        table = self._tables[name]
        id_V = np.concatenate(ids)
        row_V = torch.from_numpy(self._rows(name, id_V))
        # Only the rows looked up leave the mapped file.
        rows_VD = pad(table[row_V].float(), (0, self.model.dim - table.size(1)))
        if name != key:  # a place of a sequence that holds an item, whatever is known of it
            rows_VD[:, 0] += (rows_VD == 0).all(1) * NEXT_TO_NOTHING
        length_n = torch.tensor([len(each) for each in ids])
        offset_n = length_n.cumsum(0) - length_n
        mode = "mean" if key in self.model.mean_keys else "sum"
        if not len(id_V):
            return rows_VD.new_zeros((len(queries), self.model.dim))
        return embedding_bag(torch.arange(len(id_V)), rows_VD, offset_n, mode=mode)

    def _rows(self, key: str, id_V: np.ndarray) -> np.ndarray:
        """Rows of the key's table, int64."""
        facts = self.model.tables[key]
        row_V = id_V
        if facts.row_of is not None:
            row_of = mapped(self.folder / facts.row_of)
            known_V = id_V < len(row_of)
            row_V = np.full(len(id_V), facts.unknown_row)
            row_V[known_V] = row_of[id_V[known_V]]
        rows: np.ndarray = np.where(row_V < facts.known_rows, row_V, facts.unknown_row)
        return rows.astype(np.int64)

    def _ids(self, key: str, query: Query) -> np.ndarray:
        """What a query's key is looked up by, int64."""
        name, _, place = key.partition("@")
        if name in LISTS:
            items = items_of(getattr(query, name))
            if not place:
                limit = self.model.history_length
                return items if limit is None else items[max(len(items) - limit, 0) :]
            back = int(place) + 1
            return items[len(items) - back :][:1] if back <= len(items) else items[:0]
        if key in query.given:
            return query.given[key]
        missing = np.zeros(1, dtype=np.int64)
        if key == "user":
            return np.array([query.user]) if query.user >= 0 else missing[:0]
        if key.startswith("context."):
            return missing
        if query.user >= 0:
            return self._stored(key, query.user)
        several = self._attribute(key).kind == "multi"
        return missing if query.described and not several else missing[:0]

    def _marks(self, queries: Sequence[Query]) -> dict[str, Tensor]:
        """int64 [n, places of the sequence], the most recent last; 0 where nothing is said."""
        import torch

        keys = self.model.history_marks
        if not keys:
            return {}
        places = sum(key.startswith("history@") for key in self.model.query_features)
        mark_nL = np.zeros((len(queries), places), dtype=np.int64)
        for row, query in enumerate(queries):
            marks = marks_of(query.history)[-places:]
            mark_nL[row, places - len(marks) :] = marks
        return {key: torch.from_numpy(each) for key, each in mark_values(mark_nL, keys).items()}

    def _dense(self, key: str, queries: Sequence[Query]) -> Tensor:
        """Numbers [n, 1], NaN where missing, or vectors [n, W], zeros where missing."""
        import torch

        width = max(self._attribute(key).width, 1)
        empty = np.full(width, np.nan if self._attribute(key).kind == "number" else 0, np.float32)
        rows = []
        for query in queries:
            if key in query.given:
                rows.append(query.given[key])
            elif query.user >= 0 and not key.startswith("context."):
                rows.append(self._stored(key, query.user))
            else:
                rows.append(empty)
        return torch.from_numpy(np.stack(rows).astype(np.float32).reshape(len(rows), width))

    def _attribute(self, key: str) -> Attribute:
        side, _, name = key.partition(".")
        return self.manifest.attributes(side)[name]

    def _stored(self, key: str, user: int) -> np.ndarray:
        """What the dataset has of a user."""
        if key not in self._columns:
            self._columns[key] = stored_column(self.folder, self._place(key), self._attribute(key))
        column = self._columns[key]
        if isinstance(column, Jagged):
            begin, end = column.offsets[user : user + 2]
            return column.values[begin:end].astype(np.int64)
        kind = np.float32 if self._attribute(key).is_dense else np.int64
        return np.atleast_1d(column[user]).astype(kind)

    def _place(self, key: str) -> int:
        names = [each.name for each in self.manifest.user_attributes]
        return names.index(key.partition(".")[2])


def stored_column(folder: Path, place: int, attribute: Attribute) -> np.ndarray | Jagged:
    """An attribute of users, by its place among them: names may be no names of files."""
    if attribute.kind == "multi":
        return mapped_lists(folder / FEATURES, str(place))
    return mapped(folder / FEATURES / f"{place}.npy")
