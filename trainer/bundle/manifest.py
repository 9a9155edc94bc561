"""bundle.json: what a bundle holds, what made it, and the digests of its files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from trainer.base.mistake import Mistake
from trainer.base.typed import Range, read_as
from trainer.bundle.choices import Precision
from trainer.data.feature_types import Attribute, Count
from trainer.data.schema import FileRecord, combined_digest, record_of
from trainer.files.filesystems import stays_within
from trainer.files.json_files import read_json, write_json

MANIFEST = "bundle.json"
BESIDE = "beside/"
"""Where the files of a second model lie."""
FORM = 1
Similarity = Literal["cosine", "dot"]
MarkKey = Literal["history.kind", "history.gap"]
Width = Annotated[int, Range(least=1, most=1 << 20)]


@dataclass(frozen=True)
class TableFile:
    """A table whose rows a query key looks up."""

    file: str
    """In safetensors, mapped."""
    tensor: str
    """Its name there."""
    known_rows: Count
    """Ids from 0 that have a row of their own."""
    unknown_row: Count
    """The row of every other id."""
    row_of: str | None = None
    """File with the row of each id, where that is not the id: some share rows."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """How the programs of a model are called, and what its query tower looks up."""

    query_keys: tuple[str, ...]
    query_features: tuple[str, ...]
    """What the query tower's program reads in order: keys, of a sequence each of its places."""
    dim: Width
    """Columns of a feature there; narrower tables end in zeros."""
    candidate_keys: tuple[str, ...]
    mean_keys: tuple[str, ...]
    query_dense: tuple[str, ...]
    """Numbers and vectors that the query tower reads."""
    history_length: Count | None
    """Items of a history that the model reads; None: all that it is given."""
    tables: dict[str, TableFile]
    """By query key; empty where queries cannot be made from features alone."""
    programs: dict[str, dict[str, Any]]
    history_marks: tuple[MarkKey, ...] = ()
    """What items of histories carry beside themselves, and the query tower's program reads."""

    @property
    def has_history(self) -> bool:
        """Whether its queries depend on what somebody liked."""
        return any(key.partition("@")[0] in ("history", "disliked") for key in self.query_keys)


@dataclass(frozen=True, kw_only=True)
class Manifest(ModelFacts):
    """What bundle.json says."""

    form: Annotated[int, Range(least=FORM, most=FORM)]
    run: str
    step: Count
    """Training step of the checkpoint."""
    checkpoint: str
    """Name and digest of the checkpoint that the run would be asked by."""
    dataset_digest: str
    similarity: Similarity
    items: Count
    users: Count
    unknown_items: Count
    unknown_users: Count
    width: Width
    precision: Precision
    """Of the item and user vectors."""
    largest_norm: Annotated[float, Range(least=0, most=1e30)]
    """Of an item vector."""
    user_vectors: bool
    user_attributes: tuple[Attribute, ...]
    item_attributes: tuple[Attribute, ...]
    context_attributes: tuple[Attribute, ...]
    beside: ModelFacts | None = None
    """A second model, whose columns of a vector stand behind the first's: files in `beside/`."""
    recall: dict[str, Any] | None = None
    """Of lists by the stored precision, against those by float32."""
    index: dict[str, Any] | None = None
    files: dict[str, FileRecord] = field(default_factory=dict)
    digest: str = ""
    """Of all files: names this bundle."""

    @property
    def reads_history(self) -> bool:
        """Whether queries depend on what somebody liked."""
        return self.has_history or (self.beside is not None and self.beside.has_history)

    @property
    def read_by_tables(self) -> set[str]:
        """Names of files that tables are read from."""
        models = [self, *([] if self.beside is None else [self.beside])]
        tables = [table for model in models for table in model.tables.values()]
        return {name for table in tables for name in (table.file, table.row_of) if name is not None}

    def attributes(self, side: str) -> dict[str, Attribute]:
        """Attributes of "user", "item" or "context" by name."""
        return {each.name: each for each in getattr(self, f"{side}_attributes")}


def describe(folder: Path, facts: dict[str, Any]) -> Manifest:
    """Write bundle.json, last: digests of all files of a folder beside `facts`."""
    names = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())
    files = {name: record_of(folder, name) for name in names}
    contents = {**facts, "form": FORM, "files": files, "digest": combined_digest(files)}
    manifest = Manifest(**contents)
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def is_bundle(path: Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return (path / MANIFEST).is_file()


def read_manifest(path: Path, full: bool = False) -> Manifest:
    """Read bundle.json and compare the files' sizes, or (full) their SHA-256, with it.

    Raises:
        Mistake: where there is no bundle, one of another form, or files that are not its.
    """
    if not is_bundle(path):
        raise Mistake(f"{path} is no bundle: it has no {MANIFEST}; make one with `tandem export`")
    said = read_json(path / MANIFEST)
    if isinstance(said, dict) and said.get("form") != FORM:
        raise Mistake(
            f"{path}/{MANIFEST} has form {said.get('form')!r}, this Tandem reads {FORM}: "
            "export the run again"
        )
    try:
        manifest = read_as(Manifest, said)
    except Mistake as mistake:
        raise Mistake(f"{path}/{MANIFEST}: {mistake}") from mistake
    for name in manifest.read_by_tables:
        if name not in manifest.files:
            raise Mistake(f"{path}/{MANIFEST} names {name!r}, which is no file of the bundle")
    for name, record in manifest.files.items():
        file = path / name
        if not stays_within(name):
            raise Mistake(f"{path}/{MANIFEST} names {name!r}, which is no file of a bundle")
        size = file.stat().st_size if file.is_file() else -1
        if size != record.bytes:
            raise Mistake(
                f"{file} has {size} bytes, {MANIFEST} says {record.bytes}: it was changed or "
                "copied in part; export or copy the bundle again"
            )
        if full and record_of(path, name).sha256 != record.sha256:
            raise Mistake(
                f"{file} does not have the SHA-256 that {MANIFEST} records: copy it again"
            )
    return manifest
