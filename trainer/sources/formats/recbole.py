"""RecBole's atomic files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb

from trainer.base.mistake import Mistake
from trainer.sources.columns import Columns
from trainer.sources.formats.table_files import table_source
from trainer.sources.side_tables import side_table
from trainer.sources.sources import GIVEN, SideTable, Source, beside
from trainer.sources.text_files import suffix_of


def recbole(
    connection: duckdb.DuckDBPyConnection, path: str, files: list[str], columns: Columns
) -> tuple[Source, list[str]]:
    """RecBole's atomic files: NAME.inter (or NAME.train.inter ...), NAME.item, NAME.user."""
    inter = [each for each in files if suffix_of(each) == ".inter"]
    if not inter:
        raise Mistake(f"{path} has no .inter file: the recbole format needs one")
    datasets = sorted({_dataset_of(each) for each in inter})
    if len(datasets) > 1:
        names = " and ".join(Path(each).name for each in datasets)
        raise Mistake(f"{path} holds several datasets, {names}: name one's .inter file")
    source = table_source(connection, path, "recbole", inter, columns)
    neighbours = beside(inter[0])
    known = {which: name.split(":")[0] for which, name in source.columns.items() if name}
    own_names = Columns(known={**columns.known, **known})
    sides: dict[str, SideTable | None] = {}
    notes: list[str] = []
    for which, suffix in (("item", ".item"), ("user", ".user")):
        found = [each for each in neighbours if suffix_of(each) == suffix]
        own = [each for each in found if _dataset_of(each) == datasets[0]]
        sides[which] = (
            side_table(connection, "recbole", own, own[0], which, own_names) if own else None
        )
        if found and not own:
            names = ", ".join(Path(each).name for each in found)
            notes.append(
                f"not read: {names}, which is of another dataset; name it by --{which}s if it "
                "belongs here"
            )
    read = [each for each in files if suffix_of(each) in (".inter", ".item", ".user")]
    notes = [*source.notes, *notes]
    source = replace(
        source,
        items=source.items or sides["item"],
        users=source.users or sides["user"],
        notes=tuple(notes),
    )
    return source, read


def _dataset_of(file_name: str) -> str:
    """Folder and NAME of an atomic file, without what names its split."""
    path = Path(file_name)
    name = path.name[: path.name.lower().rindex(suffix_of(file_name))]
    stem, _, last = name.rpartition(".")
    return str(path.with_name(stem if last in GIVEN and stem else name))
