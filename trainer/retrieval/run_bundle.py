"""The bundle that a run is answered from: made once for a checkpoint and its data, kept in the run.

    RUN/bundles/KEY     KEY is of the checkpoint and the dataset; others are of what was before

Where the run is behind a URI, or its folder cannot be written, the bundle is a temporary one.
torch is imported where one has to be made.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.bundle.manifest import MANIFEST, is_bundle, read_manifest
from trainer.bundle.opened_bundle import Bundle
from trainer.data.schema import Dataset
from trainer.files.filesystems import is_uri, local_path
from trainer.observe.waiting import waits_on_terminal
from trainer.retrieval.arguments import ExportArguments
from trainer.run.asked.newest import asked_checkpoint
from trainer.run.asked.open_data import open_data
from trainer.run.folder import RunFolder

BUNDLES = "bundles"
KEY = re.compile(r"[0-9a-f]{16}")
CANNOT_WRITE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.EEXIST, errno.ENOTDIR),  # something else has the name
)


@contextmanager
def opened_bundle(path: str, data: str | None = None) -> Iterator[Bundle]:
    """The bundle at a path, or that of the run there.

    Args:
        data: of a run, the dataset's folder now.

    Raises:
        Mistake: where there is neither; where the run has no checkpoint, or its data changed.
    """
    if not is_uri(path) and is_bundle(local_path(path)):
        if data is not None:
            raise Mistake(f"--data: {path} is a bundle, which reads no dataset: leave it out")
        yield Bundle(path)
        return
    folder = RunFolder(path)
    _, dataset = open_data(folder, data)
    checkpoint = asked_checkpoint(folder)
    key = hashlib.sha256(f"{checkpoint} {dataset.digest}".encode()).hexdigest()[:16]
    if not is_uri(path):
        kept = _kept(local_path(path) / BUNDLES / key, path, dataset)
        if kept is not None:
            yield Bundle(kept)
            return
    with tempfile.TemporaryDirectory(prefix="tandem-") as temporary:
        made = Path(temporary) / "bundle"
        _make(path, dataset, made)
        yield Bundle(made)


def _kept(place: Path, run: str, dataset: Dataset) -> Path | None:
    """The bundle that is kept at `place`, made where there is none; None: it cannot be kept."""
    if is_bundle(place):
        with suppress(Mistake):  # copied in part, or of an older form: it is made anew
            read_manifest(place)
            return place
        shutil.rmtree(place, ignore_errors=True)
    say(f"making {place}: answers come from it until the run has another checkpoint",
        file=sys.stderr)  # fmt: skip
    try:
        if place.parent.is_symlink():  # what lies there is somebody else's
            raise NotADirectoryError(errno.ENOTDIR, "a link", str(place.parent))
        place.parent.mkdir(exist_ok=True)
        _make(run, dataset, place)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        say(f"{place} cannot be kept ({error.strerror}): it is made again each time",
            file=sys.stderr)  # fmt: skip
        return None
    except Mistake:
        if not is_bundle(place):  # another command is making it, or has made it
            if place.parent.is_dir() and any(place.parent.glob(".tandem-*")):
                return None
            raise
    for other in place.parent.iterdir():
        if other != place and KEY.fullmatch(other.name) and (other / MANIFEST).is_file():
            shutil.rmtree(other, ignore_errors=True)  # of a checkpoint that is no longer asked
    return place


def _make(run: str, dataset: Dataset, out: Path) -> None:
    with waits_on_terminal("encoding users and items"):
        from trainer.launch.here import Here  # torch
        from trainer.retrieval.export import export_quietly

        export_quietly(ExportArguments(run, str(out), encoder_limit=0, data=dataset.path), Here())
