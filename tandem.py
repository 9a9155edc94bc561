"""Tandem in Python: two-tower retrieval, from a table of interactions to recommendations.

    import tandem

    tandem.prepare("plays.parquet", "DATA", user_column="listener", item_column="track")
    run = tandem.train("default", data="DATA", out="RUN", overrides={"loss.name": "bsl"})
    print(run.evaluate("test")["recall@20"])
    run.recommend(user="4711", k=10)

What the user has to mend is a `Mistake` of one line, as on the command line. Importing this module
imports no library: each name brings what it needs when it is first used.

`trainer`, `cluster`, `losses` and `embeddings` are common names. A user's folder, or another
package that is installed, may have them too, and Python takes the first it finds on its path.
Whoever imports `tandem` has ours, by their place: beside this file, or wherever on the path one
lies that is ours (Ray unpacks each in a folder of its own). So every process starts here: `tandem`,
Ray's workers, a job (`python -m tandem`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from typing import Unpack

    from trainer.api.data_frames import Source
    from trainer.api.run import Run
    from trainer.api.start_options import PrepareOptions
    from trainer.base.mistake import Mistake
    from trainer.bundle.asked import Recommendation
    from trainer.config.sections import Config
    from trainer.data.schema import Dataset

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Dataset",
    "Mistake",
    "Recommendation",
    "Run",
    "__version__",
    "load",
    "prepare",
    "train",
]

PACKAGES = ("cluster", "trainer", "embeddings", "losses")
MARK = "Tandem"
"""Stands in the docstring of each of them."""
HOMES = {
    "Config": "trainer.config.sections",
    "Dataset": "trainer.data.schema",
    "Mistake": "trainer.base.mistake",
    "Recommendation": "trainer.bundle.asked",
    "Run": "trainer.api.run",
}
"""Where the classes are defined."""


def prepare(source: Source, out: str | Path, **options: Unpack[PrepareOptions]) -> Dataset:
    """Make a dataset of interactions, as `tandem prepare` does: splits, histories, attributes.

    Prints what was kept and what was dropped, and why.

    Args:
        source: a file, folder, glob or URI, or a table: pandas, polars, pyarrow, or whatever else
            gives its columns by Arrow's PyCapsule protocol.
        out: folder or URI of the dataset; it must not exist yet, unless it is extended.
        options: the flags of `tandem prepare` (`--user-column` is `user_column`), each as its
            help says. `items` and `users` take tables as well.

    Raises:
        Mistake: where the source, its columns or an option is wrong.
    """
    from trainer.api.prepare_tables import prepare

    return prepare(source, out, options)


def train(
    preset: str | Path | Config | None = None,
    *,
    data: str | Path | Dataset,
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    address: str | None = None,
    resume: bool | Literal["auto"] = False,
    start_from: str | Path | None = None,
    effort: Literal["quick", "normal", "best"] | None = None,
    **launch: Any,
) -> Run:
    """Train a model, and open it.

    Neither `workers` nor `address`: in this process, on its first GPU where there is one. Else on
    Ray, as `tandem train` does. Interrupting (Ctrl-C, a notebook's stop button) writes a checkpoint
    first.

    Args:
        preset: a preset's name, the path of a TOML file or of a run, or a `Config`. None: the
            settings of `start_from`, else "default".
        data: a dataset, or its folder.
        out: folder or URI of the run; it must not exist yet, unless it is resumed.
        overrides: settings by name, as in `{"loss.name": "bsl", "model.dim": 128}`.
        workers: how many, or "2..8" where nodes may come and go.
        address: a Ray cluster ("auto": the one of this machine); None: one for this run alone.
        resume: go on from the run's newest checkpoint; "auto": where there is a run, else begin
            one.
        start_from: folder or URI of a run on these data, or on what they were appended to, whose
            best checkpoint gives a new run its first values.
        effort: of the preset `default`: how much is tried on the data before it is trained;
            None: normal.
        launch: further flags of `tandem train` about workers, such as `max_failures`.

    Raises:
        Mistake: where a setting, the data or the folder is wrong.
    """
    from cluster.commands.python_train import train

    settings = overrides or {}
    return train(preset, data, out, settings, workers, address, resume, start_from, effort, launch)


def load(run: str | Path, data: str | Path | Dataset | None = None) -> Run:
    """Open a trained run; its model is read when it is first asked for something, and kept.

    Args:
        run: the run's folder or URI.
        data: the dataset, where it is no longer where it was in training, or was extended since.

    Raises:
        Mistake: where there is no run, or the data are not those it was trained on.
    """
    from cluster.workers.options import launcher_for
    from trainer.api.run import Run

    return Run(run, data, launcher_for)


def main() -> int:
    """The command line; the process' exit status."""
    try:
        from cluster.cli import main
    except ImportError as error:
        if error.name is not None:  # a library that is missing: the traceback tells of whom
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return main()


def __getattr__(name: str) -> Any:
    """The classes of HOMES, imported when they are first asked for."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class TandemFinder:
    """Finds PACKAGES, before Python looks along its path. A `MetaPathFinder` by its method."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in PACKAGES:
            return None
        init = find_package(fullname) / "__init__.py"
        return spec_from_file_location(
            fullname, init, submodule_search_locations=[str(init.parent)]
        )


def find_package(name: str) -> Path:
    """The folder of one of ours. Raises ImportError where there is none."""
    here = Path(__file__).resolve().parent
    for folder in (here, *map(Path, sys.path)):
        if is_ours(folder / name / "__init__.py"):
            return folder / name
    raise ImportError(
        f"Tandem's package {name!r} is not in {here}: another package of that name may have been "
        "installed over it; install Tandem in an environment of its own"
    )


def is_ours(init: Path) -> bool:
    """Whether this file is the __init__.py of one of Tandem's packages, or this one."""
    try:
        return MARK in init.read_text()
    except (OSError, UnicodeDecodeError):  # none, or a stranger's
        return False


def claim() -> None:
    """Have PACKAGES be ours in this process from now on. Doing it again changes nothing.

    Raises:
        ImportError: where another module of such a name was imported before.
    """
    for name in PACKAGES:
        module = sys.modules.get(name)
        if module is not None and not is_ours(Path(module.__file__ or "")):
            raise ImportError(
                f"the module {name!r} of {module.__file__} was imported before Tandem, which has "
                "a package of that name: import Tandem first, or in a process of its own"
            )
    if TandemFinder not in sys.meta_path:
        sys.meta_path.insert(0, TandemFinder)


if __name__ == "__main__":  # `python -m tandem`: by its name, lest the file be two modules
    sys.exit(import_module("tandem").main())
claim()
