"""A trained run in a notebook or a program: its model is read once and asked as often as one likes.

The model lies on this process' device, its first GPU where there is one. TorchRec's tables need a
process group, so one of this process alone is made with the first model, and ended at the
interpreter's end, after the models.
"""

from __future__ import annotations

import atexit
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from trainer.api.data_frames import Form, TableForm, quoted, records_as, table_as
from trainer.api.filters import FilterOptions, filters_from
from trainer.api.own_group import end_group, own_ranks
from trainer.api.side_tables_given import side_table
from trainer.base.mistake import Mistake
from trainer.base.run_files import SUMMARY_FILE
from trainer.base.typed import read_as
from trainer.bundle.choices import Precision
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.files.filesystems import absolute
from trainer.files.json_files import read_json
from trainer.retrieval.arguments import (
    EvaluateArguments,
    ExportArguments,
    IndexKind,
    RecommendArguments,
    SimilarArguments,
)
from trainer.run.folder import RunFolder
from trainer.tools.ready import ready_for_torch

if TYPE_CHECKING:  # torch and torchrec take seconds: they come with the first question
    from trainer.bundle.asked import Recommendations
    from trainer.bundle.opened_bundle import Bundle
    from trainer.launch.launcher import Launcher
    from trainer.retrieval.opened import OpenedRun

    LauncherFor = Callable[[int | None, str | None], Launcher]
    """Of `workers` and `address`."""

_OPEN: weakref.WeakSet[Run] = weakref.WeakSet()


class Run:
    """A trained run. `tandem.load` and `tandem.train` make one.

    Each question raises a Mistake where the user, the item or a setting is not as it must be.
    """

    def __init__(
        self, path: str | Path, data: str | Path | Dataset | None, launcher_for: LauncherFor
    ) -> None:
        self._launcher_for = launcher_for
        self.path = absolute(path)
        self._data = None if data is None else path_of(data)
        self._facts = RunFolder(self.path).read_config()
        self._opened: OpenedRun | None = None
        self._bundle: Bundle | None = None
        self._held = ExitStack()

    def __repr__(self) -> str:
        return f"tandem.load({self.path!r})"

    @property
    def config(self) -> Config:
        """The settings it was trained with."""
        return self._facts.config

    @property
    def dataset(self) -> Dataset:
        """The dataset that it reads."""
        return self._open().trained.dataset

    @property
    def step(self) -> int:
        """Training steps of the checkpoint that is open."""
        return self._open().trained.step

    @property
    def summary(self) -> dict[str, Any]:
        """How the training ended, in how many steps and seconds, as in RUN/summary.json; {} before
        its end."""
        file = RunFolder(self.path).path / SUMMARY_FILE
        found: dict[str, Any] = read_json(file) if file.is_file() else {}
        return found

    def evaluate(
        self,
        split: str = "validation",
        *,
        k: Sequence[int] | None = None,
        users: int | None = None,
        groups: int = 5,
        seed: int = 0,
        workers: int | None = None,
        address: str | None = None,
    ) -> dict[str, Any]:
        """Exact measures over the whole catalog, seen items left out; also RUN/evaluation.json.

        Args:
            split: validation; test is for the final figures.
            k: cut-offs of the lists; None: 10, 20, 50, as far as there are items.
            users: a random sample of so many, with intervals; None: all.
            groups: popularity groups of items; 0: none.
            seed: chooses the sampled users.
            workers: processes that share the catalog; with `address`, workers of Ray. Neither:
                this process, and its model in memory.
            address: a Ray cluster ("auto": the one of this machine).

        Returns:
            `recall@20`, `ndcg@20` and so on; `popularity` has the same of the popularity ranking,
            `interval_95`, `users`, `seconds` and more stand beside.
        """
        from trainer.retrieval.evaluate_run import evaluate_by, evaluate_from

        given = {
            "run": self.path,
            "split": split,
            "k": None if k is None else tuple(k),
            "users": users,
            "groups": groups,
            "seed": seed,
            "workers": workers,
            "address": address,
            "data": self._data,
        }
        arguments = read_as(EvaluateArguments, given)
        if workers is None and address is None:
            return evaluate_from(self._open(), arguments)
        ready_for_torch()
        return evaluate_by(self._launcher_for(workers, address), arguments).kept_record()

    def recommend(
        self,
        user: str | int | None = None,
        *,
        items: Sequence[str | int] | None = None,
        k: int = 10,
        context: Mapping[str, str | float] | None = None,
        to: Form = "list",
        **filters: Unpack[FilterOptions],
    ) -> Any:
        """Items for a user of the dataset, or for somebody new who liked some items.

        Answers come from the run's bundle, which is made with the first of them.

        Args:
            user: raw id, as in the source.
            items: raw ids of liked items, oldest first; a model that reads no histories answers
                by the mean of their vectors.
            k: items recommended.
            context: of the moment, by name ({"hour": 20}), for models that read it.
            to: "list", "pandas" or "pyarrow".
            filters: `where`, `exclude`, `only`, `max_per`: see FilterOptions.

        Returns:
            list of Recommendation, best first; or a table of `item`, `title`, `score`.
        """
        from trainer.retrieval.recommend import recommend_from

        name, liked = user if user is None else str(user), items if items is None else quoted(items)
        said = tuple(f"{key}={value}" for key, value in (context or {}).items())
        passing = filters_from(filters)
        arguments = RecommendArguments(self.path, name, liked, k, said, filters=passing)
        return self._listed(recommend_from(self._answering(), arguments), to)

    def similar(
        self,
        item: str | int,
        *,
        k: int = 10,
        to: Form = "list",
        **filters: Unpack[FilterOptions],
    ) -> Any:
        """The items whose embeddings have the largest cosine with that of raw id `item`."""
        from trainer.retrieval.recommend import similar_from

        arguments = SimilarArguments(self.path, item=str(item), k=k, filters=filters_from(filters))
        return self._listed(similar_from(self._answering(), arguments), to)

    def items(self, *, to: TableForm = "pyarrow") -> Any:
        """The catalog: `item` (its row), `raw_id`, `title`, `count`, `known` (false where the model
        knows nothing of an item, which then has the mean embedding), `embedding`."""
        return table_as(side_table(self._answering(), "item"), to)

    def users(self, *, to: TableForm = "pyarrow") -> Any:
        """All users as they are today: `user`, `raw_id`, `count`, `known`, `embedding`."""
        return table_as(side_table(self._answering(), "user"), to)

    def encode_queries(
        self,
        users: Sequence[str | int] | None = None,
        *,
        histories: Sequence[Sequence[str | int]] | None = None,
    ) -> np.ndarray:
        """Query embeddings, to score against those of `items()`.

        Args:
            users: raw ids of users of the dataset.
            histories: for people without an id: raw ids of liked items, oldest first.

        Returns:
            float32 [n, D]; zeros for those of whom the model knows nothing.
        """
        from trainer.api.encode_queries import encode_histories, encode_users

        if (users is None) == (histories is None):
            raise Mistake("encode_queries: give either users or histories")
        if users is not None:
            return encode_users(self._open(), [str(each) for each in users])
        assert histories is not None
        return encode_histories(self._open(), [[str(i) for i in each] for each in histories])

    def export(
        self,
        out: str | Path,
        *,
        index: IndexKind | None = None,
        precision: Precision = "float32",
        users: bool = True,
        workers: int | None = None,
        address: str | None = None,
    ) -> dict[str, Any]:
        """Write a bundle, as `tandem export` does: vectors, programs, an index.

        Args:
            workers: processes that share the work; with `address`, workers of Ray.
            address: a Ray cluster ("auto": the one of this machine).

        Returns:
            The contents of OUT/bundle.json.
        """
        from trainer.retrieval.export import export

        ready_for_torch()
        given = ExportArguments(
            *(self.path, str(out)),
            index=index,
            precision=precision,
            users=users,
            workers=workers,
            address=address,
            data=self._data,
        )
        return export(given, self._launcher_for(workers, address))

    def close(self) -> None:
        """Let go of the model and the bundle; the next question opens them again."""
        self._opened = None
        self._bundle = None
        self._held.close()

    def _open(self) -> OpenedRun:
        if self._opened is None:
            ready_for_torch()
            from trainer.retrieval.opened import OpenedRun

            self._opened = OpenedRun(self.path, own_ranks(), self._data)
            _OPEN.add(self)
        return self._opened

    def _answering(self) -> Bundle:
        """The bundle of the run; that of a run which has trained on is another one."""
        if self._bundle is None:
            ready_for_torch()
            from trainer.retrieval.run_bundle import opened_bundle

            self._bundle = self._held.enter_context(opened_bundle(self.path, self._data))
            _OPEN.add(self)
        return self._bundle

    def _listed(self, found: Recommendations, to: Form) -> Any:
        from trainer.bundle.asked import Recommendation

        if found.note is not None:
            warnings.warn(found.note, stacklevel=3)
        return records_as(found.listed(), Recommendation, to)


def path_of(data: str | Path | Dataset) -> str:
    """The folder of a dataset that is named or given."""
    return data.path if isinstance(data, Dataset) else str(data)


@atexit.register
def close_all() -> None:
    """Let go of every model, and of the process group that they need."""
    for run in list(_OPEN):
        run.close()
    end_group()
