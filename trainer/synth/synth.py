"""`tandem synth OUT`: a prepared dataset of any size with planted preferences.

    users in parts of about a million rows -> threads draw, split, attach histories, write files
    -> items, users, queries, vocabularies -> dataset.json, truth.json (the best possible recall)

Memory follows the part and the number of items, not the interactions. Seed and sizes alone decide
the output: neither the number of threads nor the machine does. With --raw the same interactions are
written as a source that `tandem prepare` takes.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from trainer.base.machine import usable_cpus
from trainer.base.mistake import Mistake
from trainer.base.ranges import MOST_THREADS
from trainer.base.screen import say
from trainer.data.feature_types import LARGEST_VECTOR
from trainer.data.schema import MAX_HISTORY_LENGTH, Dataset
from trainer.files.filesystems import check_text
from trainer.files.paths import LastingPath
from trainer.files.whole_folder import whole_folder
from trainer.observe.progress import Progress, TerminalProgress
from trainer.prepare.summary import print_summary
from trainer.synth.planted import PlantedModel
from trainer.synth.planted_eras import EraModel
from trainer.synth.planted_extras import Extras, ItemFeatures
from trainer.synth.planted_files import DatasetWriter
from trainer.synth.planted_rows import PartRows, make_part
from trainer.synth.planted_source import RawWriter
from trainer.synth.planted_truth import (
    CUTOFFS,
    HELD_OUT,
    NEW,
    BestPossible,
    best_possible,
    write_truth,
)

ROWS_PER_PART = 1 << 20
TRUTH_USERS = 20_000
MAX_LENGTH = 1000
MAX_ZIPF_EXPONENT = 10
MIN_CLUSTERS, MAX_CLUSTERS = 8, 2000
MOST_WINDOWS, MOST_NEW = 1000, 0.9


@dataclass(frozen=True)
class SynthArguments:
    """Generate a dataset with planted preferences, its best possible recall beside it."""

    out: Annotated[LastingPath, tyro.conf.Positional]
    """Folder or URI of the dataset; it must not exist yet."""
    users: int = 5_000
    """Number of users."""
    items: int = 3_000
    """Number of items."""
    interactions: int = 150_000
    """Interactions, about: users' numbers of interactions are drawn around the mean."""
    seed: int = 0
    """Seed: sizes and seed alone decide every byte."""
    history_length: int = 20
    """Items in a history at most."""
    clusters: int | None = None
    """Clusters of items; left out: half the root of the number of items, 8 to 2000."""
    zipf_exponent: float = 0.8
    """Popularity inside a cluster falls as 1 / rank^exponent; over all items it comes out
    likewise."""
    noise: float = 0.1
    """Share of positives that follow no preference: any item alike. No model can predict them."""
    disliked: float = 0.05
    """Share of interactions that are explicit dislikes (feedback -1)."""
    held_out: int = 1
    """Interactions of a held-out user in the test part, and as many in the validation part."""
    held_out_users: int = 100_000
    """Users with a test and a validation part, about; all if there are fewer."""
    vectors: Annotated[int, tyro.conf.arg(metavar="WIDTH")] = 0
    """Width of the items' vectors (column text), which tell clusters and popularity; 0: none."""
    numbers: bool = False
    """Numbers of items (price, tempo) and users (age), which tell popularity and clusters."""
    context: bool = False
    """Context of events (device, minutes), which shifts what the user likes."""
    kinds: bool = False
    """Kinds of events (buy, cart, view, dislike); carts and views follow preferences less, and
    buys alone are held out."""
    weights: bool = False
    """A weight of each event: the chance that it follows any preference."""
    windows: int = 1
    """Days, each a window; what is held out ends the last one."""
    new_items: float = 0.0
    """Share of the catalog that is new on each day but the first, and as much again in the held-out
    part, of which training never sees anything."""
    drift: float = 0.0
    """Share of users whose tastes change from one day to the next."""
    raw: bool = False
    """Write a source for `tandem prepare` in place of a prepared dataset."""
    threads: int | None = None
    """Threads; all cores where left out."""

    def __post_init__(self) -> None:
        check_text(self.out, "OUT")
        for name, least, most in (
            ("users", 1, 1 << 40),
            ("items", 2 * MIN_CLUSTERS, (1 << 31) - 1),
            ("interactions", 1, 1 << 50),
            ("seed", 0, (1 << 63) - 1),
            ("history_length", 0, MAX_HISTORY_LENGTH),
            ("held_out", 1, MAX_LENGTH),
            ("held_out_users", 0, 1 << 40),
            ("threads", 1, MOST_THREADS),
            ("zipf_exponent", 0, MAX_ZIPF_EXPONENT),
            ("vectors", 0, LARGEST_VECTOR),
            ("windows", 1, MOST_WINDOWS),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                flag = name.replace("_", "-")
                bound = f"at least {least}" if value < least else f"at most {most:,}"
                raise Mistake(f"--{flag} {value} must be {bound}")
        if not MIN_CLUSTERS // 2 <= self.num_clusters <= self.items // 2:
            raise Mistake(
                f"--clusters {self.num_clusters} must be from {MIN_CLUSTERS // 2} to "
                f"{self.items // 2}, half the items"
            )
        for name in ("noise", "disliked", "new_items", "drift"):
            if not 0 <= getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise Mistake(f"--{flag} {getattr(self, name):g} must be from 0 to below 1")
        if self.new_items * self.windows > MOST_NEW:
            raise Mistake(
                f"--new-items {self.new_items:g} on {self.windows} days make "
                f"{self.new_items * self.windows:.2f} of the catalog: at most {MOST_NEW} may be new"
            )
        if self.drift and self.windows == 1:
            raise Mistake(f"--drift {self.drift:g} goes from day to day: give --windows 2 or more")
        mean = self.mean_length
        if not self.shortest < mean <= min(MAX_LENGTH, self.items / 4):
            raise Mistake(
                f"--interactions {self.interactions} make {mean:.1f} a user: take more than "
                f"{self.shortest} and at most {min(MAX_LENGTH, self.items // 4)} a user"
            )

    @property
    def num_clusters(self) -> int:
        if self.clusters is not None:
            return self.clusters
        return int(np.clip(round(self.items**0.5 / 2), MIN_CLUSTERS, MAX_CLUSTERS))

    @property
    def mean_length(self) -> float:
        """Interactions of a user on average."""
        return self.interactions / self.users

    @property
    def shortest(self) -> int:
        """Interactions of a user at least: one stays in train whatever is held out."""
        return 2 * self.held_out + 1

    @property
    def extras(self) -> Extras:
        """What the data have beyond ids and categories."""
        return Extras(**{each.name: getattr(self, each.name) for each in fields(Extras)})

    @property
    def users_per_part(self) -> int:
        return max(1, round(ROWS_PER_PART / self.mean_length))


def synth(
    arguments: SynthArguments, progress: Progress | None = None, *, show: bool = True
) -> None:
    """Generate the dataset; print its size, rate and best possible recall if `show`."""
    started = time.monotonic()
    shown = progress or TerminalProgress()
    try:
        with whole_folder(arguments.out) as folder:
            rows, best = _build(arguments, folder, shown)
    except MemoryError as error:
        raise Mistake(
            f"--items {arguments.items} and --users {arguments.users} do not fit in memory "
            f"({error}): take fewer, or --threads 1"
        ) from error
    finally:
        shown.close()
    if show:
        _print(arguments, rows, best, time.monotonic() - started)


def _print(
    arguments: SynthArguments, rows: int, best: dict[str, BestPossible], seconds: float
) -> None:
    out = arguments.out
    if not arguments.raw:
        print_summary(Dataset.load(out), seconds)
    say(f"{out}: {rows:,} interactions in {seconds:.1f} s, {rows / seconds:,.0f} a second")
    for of, each in (("", best["test"]), (", new items", best[NEW])):
        if each.users:
            summary = each.summary()
            possible = ", ".join(f"recall@{k} {summary[f'recall@{k}']:.4f}" for k in CUTOFFS)
            say(f"best possible on test{of} ({each.users:,} users): {possible}")


def _build(
    arguments: SynthArguments, folder: Path, progress: Progress
) -> tuple[int, dict[str, BestPossible]]:
    """Write all into `folder`; rows, and the best possible by split (NEW: new items)."""
    progress.message(f"planting {arguments.items:,} items")
    model = PlantedModel(
        items=arguments.items,
        clusters=arguments.num_clusters,
        zipf_exponent=arguments.zipf_exponent,
        noise=arguments.noise,
        disliked=arguments.disliked,
        seed=arguments.seed,
    )
    extras = arguments.extras
    features = ItemFeatures(model, extras, arguments.seed)
    sizes = (arguments.users, arguments.history_length)
    writer: Any = (
        RawWriter(folder, model, arguments.seed, extras, features)
        if arguments.raw
        else DatasetWriter(folder, model, arguments.seed, *sizes, extras, features)
    )
    eras = EraModel(model, extras, features) if extras.changes_events else None
    is_new_I = features.birth_I == extras.windows
    best = {name: BestPossible() for name in (*HELD_OUT, NEW)}
    rows = users = 0

    def make(first_user: int) -> tuple[int, Any, dict[str, BestPossible]]:
        part, random = _draw_part(arguments, model, eras, first_user)
        tables = writer.write_part(first_user // arguments.users_per_part, part, random)
        asked = math.ceil(TRUTH_USERS * len(part.is_held_U) / arguments.users)
        truth = {name: best_possible(model, part, split, asked) for name, split in HELD_OUT.items()}
        if extras.new_items:
            truth[NEW] = best_possible(model, part, HELD_OUT["test"], asked, is_new_I)
        return len(part.item_M), tables, truth

    threads = arguments.threads or usable_cpus()
    progress.update("users", 0, arguments.users, rows=0)
    with ThreadPoolExecutor(threads) as pool:
        first_users = range(0, arguments.users, arguments.users_per_part)
        for part_rows, tables, truth in pool.map(make, first_users):
            writer.append(tables)
            for name, each in truth.items():
                best[name].merge(each)
            rows += part_rows
            users = min(users + arguments.users_per_part, arguments.users)
            progress.update("users", users, arguments.users, rows=rows)
    progress.message("writing items and attributes")
    settings = _settings(arguments)
    if arguments.raw:
        writer.finish()
    else:
        dataset = writer.finish(settings, threads)
        (folder / "dataset.json").write_text(dataset.to_json())
    write_truth(folder, settings, best)
    return rows, best


def _draw_part(
    arguments: SynthArguments, model: PlantedModel, eras: EraModel | None, first_user: int
) -> tuple[PartRows, np.random.Generator]:
    """The part that begins with `first_user`, from its own stream of random numbers."""
    number = first_user // arguments.users_per_part
    users = min(arguments.users_per_part, arguments.users - first_user)
    key = np.random.SeedSequence((arguments.seed, 1, number))
    random = np.random.Generator(np.random.SFC64(key))
    # Rounding to the next integer keeps the mean of an exponential, nearly.
    spread = arguments.mean_length - arguments.shortest
    length_U = arguments.shortest + (random.exponential(spread, users) + 0.5).astype(np.int64)
    length_U = np.minimum(length_U, MAX_LENGTH)
    held_share = 1.0 if arguments.raw else min(1.0, arguments.held_out_users / arguments.users)
    asked: dict[str, Any] = {
        "held_out": arguments.held_out,
        "held_share": held_share,
        "first_user": first_user,
    }
    if eras is not None:
        return eras.part(random, length_U, **asked), random
    drawn = model.draw(random, length_U)
    part = make_part(drawn, row_of_slot_I=model.row_of_slot_I, random=random, **asked)
    return part, random


def _settings(arguments: SynthArguments) -> dict[str, Any]:
    """What decides the data: not where it lies nor how many threads made it."""
    settings = {**asdict(arguments), "clusters": arguments.num_clusters}
    del settings["out"], settings["threads"]
    for name in {each.name for each in fields(Extras)} - arguments.extras.set_fields.keys():
        del settings[name]
    return settings
