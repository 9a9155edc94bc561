"""Where every process of Tandem begins: the names of its packages are made its own.

`trainer`, `cluster`, `losses` and `embeddings` are common names. A user's folder, or another
package that is installed, may have them too, and Python takes the first it finds on its path. Here
ours are found by their place instead: beside this one, or wherever on the path one lies that is
ours (Ray unpacks each in a folder of its own). This one's name is nobody else's, so whoever starts
a process starts here: `tandem`, Ray's workers, a job (`python -m tandem_start`).
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGES = ("cluster", "trainer", "embeddings", "losses")
MARK = "Tandem"
"""Stands in the docstring of each of them."""


class TandemFinder(MetaPathFinder):
    """Finds PACKAGES, before Python looks along its path."""

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
    here = Path(__file__).resolve().parents[1]
    for folder in (here, *map(Path, sys.path)):
        if is_ours(folder / name / "__init__.py"):
            return folder / name
    raise ImportError(
        f"Tandem's package {name!r} is not in {here}: another package of that name may have been "
        "installed over it; install Tandem in an environment of its own"
    )


def is_ours(init: Path) -> bool:
    """Whether this __init__.py is of one of Tandem's packages."""
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


def main() -> int:
    """`tandem`."""
    try:
        from cluster.commands.cli import main
    except ImportError as error:
        if error.name is not None:  # a library that is missing: the traceback tells of whom
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return main()


claim()
