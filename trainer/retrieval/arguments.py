"""Flags of the commands that use a trained run; no torch, so that --help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from trainer.base.mistake import Mistake
from trainer.base.ranges import (
    LEAST_WEIGHT,
    MOST,
    MOST_WEIGHT,
    check_given,
    check_range,
    check_ranges,
)
from trainer.bundle.choices import Precision
from trainer.files.paths import LastingPath, SentPath

IndexKind = Literal["flat", "ivf", "hnsw"]
MOST_MINED = 10_000


@dataclass(frozen=True)
class EvaluateArguments:
    """Rank the whole catalog for every held-out user, seen items left out, and measure it."""

    run: Annotated[LastingPath, tyro.conf.Positional]
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
    explain: bool = False
    """Say below the table what each measure means."""
    workers: int | None = None
    """Workers that share the catalog. Left out: one a GPU, or one; on a cluster without GPUs one
    for every second CPU."""
    address: str | None = None
    """Ray cluster whose workers do it ("auto": the one of this machine). Left out: RAY_ADDRESS,
    else this machine."""
    data: LastingPath | None = None
    """The dataset's folder, where it is no longer where it was in training."""
    against: tuple[LastingPath, ...] = ()
    """Folders of runs on the same data that were evaluated on the split: how this one stands
    beside them, user by user, and whether that is more than chance."""

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
class FilterArguments:
    """Which items an answer may hold."""

    where: str | None = None
    """A condition on the items' attributes, in SQL: "genre = 'Jazz' AND price < 20". Columns are
    item (raw id), title, count (training interactions) and the attributes."""
    exclude: str | None = None
    """Raw ids of items that are left out, separated by commas, or a file with an id a line."""
    only: str | None = None
    """Raw ids of the items to choose from, or a file of them, likewise."""
    max_per: tuple[str, ...] = ()
    """COLUMN=N: at most N items of each value of an attribute (brand=2)."""

    def __post_init__(self) -> None:
        check_given(self, ("where", "exclude", "only"))


def check_page(html: str | None, images: str | None, json: bool) -> None:
    """Raise Mistake where flags of a page contradict each other."""
    if images is not None and html is None:
        raise Mistake("--images are of a page: give --html FILE, too")
    if html is not None and json:
        raise Mistake("--html writes a page, --json prints a line: leave one out")


@dataclass(frozen=True)
class RecommendArguments:
    """Recommend items to a user of the dataset, to somebody new who liked some items, or to all
    users."""

    run: Annotated[LastingPath, tyro.conf.Positional]
    """Folder of a trained run, or of a bundle that `tandem export` wrote."""
    user: str | None = None
    """Raw id of a user, as in the source."""
    items: str | None = None
    """Raw ids of liked items, oldest first, separated by commas: for somebody not seen in
    training. An id that holds a comma is quoted, as in '"Doe, Jane",i5'. A model that reads no
    histories answers by the mean of their vectors."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Items recommended."""
    context: tuple[str, ...] = ()
    """NAME=VALUE of the moment (hour=20 device=phone), for models that read it. What is left out
    counts as missing."""
    data: LastingPath | None = None
    """The dataset's folder, where it is no longer where it was in training."""
    filters: Annotated[FilterArguments, tyro.conf.arg(name="")] = FilterArguments()
    json: bool = False
    """Print one line of JSON in place of tables."""
    html: LastingPath | None = None
    """Write a page, the history beside, to this file in place of tables."""
    images: str | None = None
    """With --html: pictures of the items, by their addresses (https://cdn.example/{item}.jpg) or by
    a column of a table that holds them (items.csv:image_url). Left out: none, since whoever serves
    them learns who looks at what."""
    all: bool = False
    """Every user, into --out. A command that was ended goes on where it stood."""
    users: SentPath | None = None
    """With --all: of these users only, a file with a raw id a line."""
    out: LastingPath | None = None
    """With --all: folder for the Parquet files."""
    workers: int | None = None
    """With --all: processes that share the work. Left out: one; on a cluster as many as it has
    GPUs, or CPUs."""
    address: str | None = None
    """With --all: a running Ray cluster whose workers share the work (auto: the one that this
    machine is of). RUN and OUT lie on storage that all its machines share."""

    def __post_init__(self) -> None:
        if (self.user is not None) + (self.items is not None) + self.all != 1:
            raise Mistake("give either --user ID or --items ID,ID,..., or --all --out OUT")
        check_given(
            self, ("user", "items", "data", "users", "out", "html", "images", "address"), ("run",)
        )
        check_range("-k", self.k, 1)
        if self.all and (self.out is None or self.context):
            raise Mistake("--all: give --out OUT" if self.out is None else "--all: no --context")
        if self.all and (self.json or self.html):
            raise Mistake("--all writes Parquet: no --json, no --html")
        check_page(self.html, self.images, self.json)
        if not self.all and (self.users or self.out or self.workers or self.address):
            raise Mistake("--users, --out, --workers and --address belong to --all")


@dataclass(frozen=True)
class SimilarArguments:
    """The items whose embeddings have the largest cosine with an item's."""

    run: Annotated[LastingPath, tyro.conf.Positional]
    """Folder of a trained run, or of a bundle that `tandem export` wrote."""
    item: str
    """Raw id of an item, as in the source; or its title, or a part that no other title has."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Items listed."""
    data: LastingPath | None = None
    """The dataset's folder, where it is no longer where it was in training."""
    filters: Annotated[FilterArguments, tyro.conf.arg(name="")] = FilterArguments()
    json: bool = False
    """Print one line of JSON in place of a table."""
    html: LastingPath | None = None
    """Write a page to this file in place of a table."""
    images: str | None = None
    """With --html: pictures, as with `tandem recommend`."""

    def __post_init__(self) -> None:
        check_given(self, ("item", "data", "html", "images"), ("run",))
        check_page(self.html, self.images, self.json)
        check_range("-k", self.k, 1)


@dataclass(frozen=True)
class ExportArguments:
    """Write a bundle: what answers are given from, without the run."""

    run: Annotated[LastingPath, tyro.conf.Positional]
    """Folder of a trained run."""
    out: Annotated[LastingPath, tyro.conf.Positional]
    """Folder or URI to write; it must not exist yet."""
    precision: Precision = "float32"
    """Of the item and user vectors: float16 halves them, int8 quarters them. What lists lose by it
    is printed."""
    width: int | None = None
    """The first so many columns of all vectors alone: one of the run's --model.widths."""
    index: IndexKind | None = None
    """Also a FAISS index of the items: flat (exact), ivf or hnsw (approximate; their recall
    against exact search is printed)."""
    index_k: int = 10
    """Length of the lists by which an index or a precision is compared with exact search."""
    encoder_limit: int = 1 << 30
    """Bytes of tables up to which programs with the tables inside are written too."""
    users: bool = True
    """Write user vectors; without them a user's is computed when it is asked for."""
    workers: int | None = None
    """Workers that share the work. Left out: one a GPU, or one; on a cluster without GPUs one
    for every second CPU."""
    address: str | None = None
    """Ray cluster whose workers do it ("auto": the one of this machine). Left out: RAY_ADDRESS,
    else this machine. OUT must lie in a folder that all machines share."""
    data: LastingPath | None = None
    """The dataset's folder, where it is no longer where it was in training."""

    def __post_init__(self) -> None:
        check_given(self, ("data", "address"), ("run", "out"))
        check_ranges(self, index_k=(1, MOST), encoder_limit=(0, MOST))
        if self.index is not None and not self.users:
            raise Mistake("--index compares with exact search by users: leave out --no-users")


@dataclass(frozen=True)
class JoinArguments:
    """Put another run's model beside a run's own: answers are of both from then on, their scores
    added. Both were trained on the same data."""

    run: Annotated[LastingPath, tyro.conf.Positional]
    """Folder of the run that answers, and that a copy of the other's model is put into."""
    other: Annotated[LastingPath, tyro.conf.Positional]
    """Folder of the other run, which is left as it is."""
    weight: float = 1.0
    """Of the other's scores; 1: they spread as far as the run's own."""

    def __post_init__(self) -> None:
        check_given(self, (), ("run", "other"))
        check_ranges(self, weight=(LEAST_WEIGHT, MOST_WEIGHT))


@dataclass(frozen=True)
class MineArguments:
    """Write hard negatives for each user: what a run ranks high that the user has not met."""

    run: Annotated[LastingPath, tyro.conf.Positional]
    """Folder of a trained run."""
    out: Annotated[LastingPath, tyro.conf.Positional]
    """Parquet file to write, for --negatives.mined; it must not exist yet."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 50
    """Items mined for each user."""
    skip: int = 0
    """Leave so many of the highest out: those a user may well like."""
    workers: int | None = None
    """Workers that share the work. Left out: one a GPU, or one; on a cluster without GPUs one
    for every second CPU."""
    address: str | None = None
    """Ray cluster whose workers do it ("auto": the one of this machine). Left out: RAY_ADDRESS,
    else this machine. OUT must lie in a folder that all machines share."""
    data: LastingPath | None = None
    """The dataset's folder, where it is no longer where it was in training."""

    def __post_init__(self) -> None:
        check_given(self, ("data", "address"), ("run", "out"))
        check_ranges(self, k=(1, MOST_MINED), skip=(0, MOST_MINED))
