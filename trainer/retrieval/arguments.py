"""Flags of the commands that use a trained run; no torch, so that --help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from trainer.base.mistake import Mistake
from trainer.base.ranges import MOST, check_given, check_range, check_ranges

IndexKind = Literal["flat", "ivf", "hnsw"]


@dataclass(frozen=True)
class EvaluateArguments:
    """Rank the whole catalog for every held-out user, seen items left out, and measure it."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a trained run."""
    split: Literal["validation", "test"] = "validation"
    """test is for the final figures; every choice is made on validation."""
    k: tuple[int, ...] | None = None
    """Cut-offs of the lists. Left out: 10 20 50, as far as there are items."""
    users: int | None = None
    """Evaluate a random sample of this many users, with confidence intervals. Left out: all."""
    groups: int = 5
    """Popularity groups of items, with equal shares of the train interactions; 0: none."""
    seed: int = 0
    """Chooses the sampled users."""
    workers: int | None = None
    """Workers that share the catalog. Left out: one a GPU, or one; on a cluster without GPUs one
    for every second CPU."""
    address: str | None = None
    """Ray cluster whose workers do it ("auto": the one of this machine). Left out: RAY_ADDRESS,
    else this machine."""
    data: str | None = None
    """The dataset's folder, where it is no longer where it was in training."""

    def __post_init__(self) -> None:
        check_given(self, ("data", "address"), ("run",))
        if self.k == ():
            raise Mistake("--k is empty: give at least one cut-off, or leave it out")
        for k in self.k or ():
            check_range("--k", k, 1)
        if self.users is not None:
            check_range("--users", self.users, 2, what="a sample; leave it out for all")
        check_ranges(self, groups=(0, 255), seed=(0, MOST))


@dataclass(frozen=True)
class RecommendArguments:
    """Recommend items to a user of the dataset, or to somebody new who liked some items."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a trained run."""
    user: str | None = None
    """Raw id of a user, as in the source."""
    items: str | None = None
    """Raw ids of liked items, oldest first, separated by commas: for somebody not seen in
    training. An id that holds a comma is quoted, as in '"Doe, Jane",i5'. Needs a model that reads
    histories."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Items recommended."""
    context: tuple[str, ...] = ()
    """NAME=VALUE of the moment (hour=20 device=phone), for models that read it. What is left out
    counts as missing."""
    data: str | None = None
    """The dataset's folder, where it is no longer where it was in training."""

    def __post_init__(self) -> None:
        if (self.user is None) == (self.items is None):
            raise Mistake("give either --user ID or --items ID,ID,...")
        check_given(self, ("user", "items", "data"), ("run",))
        check_range("-k", self.k, 1)


@dataclass(frozen=True)
class SimilarArguments:
    """The items whose embeddings have the largest cosine with an item's."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a trained run."""
    item: str
    """Raw id of an item, as in the source."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Items listed."""
    data: str | None = None
    """The dataset's folder, where it is no longer where it was in training."""

    def __post_init__(self) -> None:
        check_given(self, ("item", "data"), ("run",))
        check_range("-k", self.k, 1)


@dataclass(frozen=True)
class ExportArguments:
    """Write a run's item and user embeddings, its towers as programs, and an index."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a trained run."""
    out: Annotated[str, tyro.conf.Positional]
    """Folder or URI to write; it must not exist yet."""
    index: IndexKind | None = None
    """Also a FAISS index of the items: flat (exact), ivf or hnsw (approximate; their recall
    against exact search is printed)."""
    index_k: int = 10
    """Length of the lists by which the index is compared with exact search."""
    encoder_limit: int = 1 << 30
    """Bytes of tables up to which programs with the tables inside are written too."""
    users: bool = True
    """Write user embeddings."""
    workers: int | None = None
    """Workers that share the work. Left out: one a GPU, or one; on a cluster without GPUs one
    for every second CPU."""
    address: str | None = None
    """Ray cluster whose workers do it ("auto": the one of this machine). Left out: RAY_ADDRESS,
    else this machine. OUT must lie in a folder that all machines share."""
    data: str | None = None
    """The dataset's folder, where it is no longer where it was in training."""

    def __post_init__(self) -> None:
        check_given(self, ("data", "address"), ("run", "out"))
        check_ranges(self, index_k=(1, MOST), encoder_limit=(0, MOST))
        if self.index is not None and not self.users:
            raise Mistake("--index compares with exact search by users: leave out --no-users")
