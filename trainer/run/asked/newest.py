"""The checkpoint that a run is asked by, found without reading it: no torch."""

from __future__ import annotations

from trainer.base.mistake import Mistake
from trainer.files.json_files import COMMIT_FILE, committed, read_json, step_of
from trainer.run.asked.beside import beside_folder, joined_with
from trainer.run.folder import RunFolder


def asked_checkpoint(folder: RunFolder) -> str:
    """Name and digest of the best checkpoint on validation, else of the newest; with those of a
    second model beside it, whose scores are added.

    Where it turns out to be damaged another is read in its stead; the name stays the same until
    the run's checkpoints change.

    Raises:
        Mistake: where there is no finished checkpoint.
    """
    paths = committed(folder.checkpoints)[::-1]
    if not paths:
        raise Mistake(
            f"{folder.path} has no finished checkpoint: train it to its first one "
            "(`tandem train ... --resume`)"
        )
    best_step = None
    for path in paths:
        contents = _contents(path / COMMIT_FILE)
        if contents:
            validation = contents.get("validation")
            best_step = validation.get("best_step") if isinstance(validation, dict) else None
            break
    chosen = next((path for path in paths if step_of(path) == best_step), paths[0])
    digest = _contents(chosen / COMMIT_FILE).get("digest", "")
    named, beside = f"{chosen.name} {digest}", joined_with(folder.path)
    if beside is None:
        return named
    second = asked_checkpoint(RunFolder(beside_folder(folder.path)))
    return f"{named}, beside {second}, which counts {beside.weight:g}"


def _contents(file: object) -> dict[str, object]:
    """checkpoint.json as it is; nothing where it is damaged, which whoever reads it tells."""
    try:
        found = read_json(file)  # type: ignore[arg-type]
    except Mistake:
        return {}
    return found if isinstance(found, dict) else {}
