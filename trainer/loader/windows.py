"""Windows of rows: row groups read, checked, joined and put into the order of the epoch.

Shapes: n = rows of a window, G = row groups of all files.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import fbgemm_gpu  # noqa: F401  registers torch.ops.fbgemm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainer.base.mistake import Mistake
from trainer.data.description import check_columns
from trainer.data.jagged import Jagged, concatenate, from_arrow, offsets_of
from trainer.data.parquet import filesystem_of, open_parquet
from trainer.files.damage import DamagedError, decoded, read_range
from trainer.loader.order import EpochOrder

FILES_OPENED_AT_ONCE = 16


@dataclass(frozen=True)
class WindowRows:
    """Rows of a window in the order of the epoch; rows lost to a corrupt row group hold -1."""

    user_n: np.ndarray
    item_n: np.ndarray
    feedback_n: np.ndarray
    lists: dict[str, Jagged]
    """"history" and "disliked", where asked for; int32 if all ids fit."""

    @staticmethod
    def missing(rows: int, lists: Sequence[str]) -> "WindowRows":
        """Rows without data: padding, or a row group that cannot be read."""
        nobody = np.full(rows, -1, dtype=np.int64)
        empty = Jagged(np.empty(0, dtype=np.int64), np.zeros(rows + 1, dtype=np.int64))
        return WindowRows(nobody, nobody, np.ones(rows, dtype=np.int8), dict.fromkeys(lists, empty))


@dataclass
class RowGroups:
    """The row groups of a list of files, read one by one from any thread.

    columns: what to read; limits: number of rows of the table that each column's ids index.
    """

    paths: Sequence[str]
    columns: Sequence[str]
    limits: dict[str, int]
    positives_only: bool
    skip_corrupt: bool
    skipped_rows: int = 0
    """Rows lost to corrupt row groups so far, if they are to be skipped."""
    rows_G: np.ndarray = field(init=False)
    """Rows of each group that take part in an epoch, int64."""

    def __post_init__(self) -> None:
        with ThreadPoolExecutor(FILES_OPENED_AT_ONCE) as pool:
            self._metadata = list(pool.map(partial(_footer, columns=self.columns), self.paths))
        self._groups = [
            (file, group)
            for file, metadata in enumerate(self._metadata)
            for group in range(metadata.num_row_groups)
        ]
        # Half the memory to move, where every id fits; batches hold int64 again.
        self._id_type = np.int32 if max(self.limits.values()) < 2**31 else np.int64
        self._open = threading.local()
        self._lock = threading.Lock()
        rows = [self._metadata[file].row_group(group).num_rows for file, group in self._groups]
        self.rows_G = np.array(rows, dtype=np.int64)

    def count_positives(self, on_group: Callable[[int, int], None]) -> None:
        """Let `rows_G` count positive rows alone: reads the feedback column once.

        Rows of a group that cannot be read count all, if corrupt groups are to be skipped.

        Args:
            on_group: told how many groups, of how many, are counted.
        """
        for group in range(len(self._groups)):
            on_group(group, len(self._groups))
            table = self._read(group, ["feedback"])
            if table is not None:
                self.rows_G[group] = np.count_nonzero(table.column(0).to_numpy() > 0)

    def window(self, order: EpochOrder, window: int, history_length: int | None) -> WindowRows:
        """Read a window and put its rows into the order of the epoch."""
        parts = [self._part(int(group)) for group in order.groups(window)]
        user = np.concatenate([part.user_n for part in parts])
        item = np.concatenate([part.item_n for part in parts])
        feedback = np.concatenate([part.feedback_n for part in parts])
        permutation = order.permutation(window)
        if self.positives_only:
            permutation = np.flatnonzero(feedback > 0)[permutation]
        lists = {
            name: permute_bags(
                concatenate([part.lists[name] for part in parts], self._id_type),
                permutation,
                history_length,
            )
            for name in self.columns[3:]
        }
        return WindowRows(
            user.take(permutation), item.take(permutation), feedback.take(permutation), lists
        )

    def _part(self, group: int) -> WindowRows:
        """The rows of a group as they lie in its file, ids checked."""
        table = self._read(group, self.columns)
        if table is None:
            with self._lock:
                self.skipped_rows += int(self.rows_G[group])
            return WindowRows.missing(int(self.rows_G[group]), self.columns[3:])
        plain, lists = [], {}
        for name in self.columns:
            column = table.column(name)
            if column.null_count:
                raise Mistake(f"{self._where(group)} column {name!r} has nulls: prepare again")
            if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
                lists[name] = from_arrow(column)
                values = lists[name].values
            else:
                values = column.to_numpy()
                plain.append(values)
            if name in self.limits:
                self._check_ids(group, name, values)
        user, item, feedback = plain
        return WindowRows(user, item, feedback, lists)

    def _read(self, group: int, columns: Sequence[str]) -> pa.Table | None:
        """Columns of a group; None where it is damaged and such are skipped.

        Raises:
            Mistake: where it is damaged.
            OSError: where its storage fails, again and again.
        """
        file, number = self._groups[group]

        def read() -> pa.Table:
            reader = self._reader(file)
            try:
                return reader.read_row_group(number, columns=list(columns), use_threads=False)
            except (OSError, pa.ArrowException):
                self._forget(file)  # a reader that has met an error
                raise

        try:
            return decoded(read, partial(self._read_bytes, group))
        except DamagedError as error:
            if self.skip_corrupt:
                return None
            raise Mistake(
                f"{self._where(group)} cannot be read ({error}): restore the file, "
                "or go on without its rows with data.skip_corrupt"
            ) from error

    def _read_bytes(self, group: int) -> None:
        """All bytes of a group, not decoded."""
        file, number = self._groups[group]
        described = self._metadata[file].row_group(number)
        chunks = [described.column(index) for index in range(described.num_columns)]
        begins = [c.dictionary_page_offset or c.data_page_offset for c in chunks]
        ends = [b + c.total_compressed_size for b, c in zip(begins, chunks, strict=True)]
        read_range(*filesystem_of(self.paths[file]), min(begins), max(ends))

    def _reader(self, file: int) -> pq.ParquetFile:
        """This thread's reader of a file: pyarrow's are not to be shared."""
        readers = self._open.__dict__
        if str(file) not in readers:
            readers[str(file)] = open_parquet(self.paths[file], self._metadata[file])
        return readers[str(file)]

    def _forget(self, file: int) -> None:
        self._open.__dict__.pop(str(file), None)

    def _check_ids(self, group: int, name: str, values: np.ndarray) -> None:
        """FBGEMM maps an id out of range to row 0 at most with a warning: stop it here."""
        limit = self.limits[name]
        # One pass: as unsigned numbers, negative ids are the largest.
        if int(values.view(f"u{values.itemsize}").max(initial=0)) >= limit:
            low, high = int(values.min()), int(values.max())
            wrong = low if low < 0 else high
            raise Mistake(
                f"{self._where(group)} column {name!r} holds id {wrong}, outside 0..{limit - 1}: "
                "the files do not belong to this dataset.json. Prepare the dataset again."
            )

    def _where(self, group: int) -> str:
        file, number = self._groups[group]
        return f"{self.paths[file]} row group {number}"


def permute_bags(bags: Jagged, rows: np.ndarray, limit: int | None) -> Jagged:
    """The bags `rows` in that order, each cut to its last `limit` values.

    FBGEMM copies bag by bag, four times faster than an index of all values. A cut bag is two
    bags, of which the second is taken.
    """
    lengths = np.diff(bags.offsets).astype(np.int32)
    if limit is not None:
        kept = np.minimum(lengths, limit)
        lengths = np.stack([lengths - kept, kept], axis=1).reshape(-1)
        rows = 2 * rows + 1
    values = bags.values[bags.offsets[0] : bags.offsets[-1]]
    taken, permuted, _ = torch.ops.fbgemm.permute_1D_sparse_data(
        torch.from_numpy(rows.astype(np.int32)),
        torch.from_numpy(lengths),
        torch.from_numpy(values),
        None,
        None,
    )
    return Jagged(permuted.numpy(), offsets_of(taken.numpy()))


def _footer(path: str, columns: Sequence[str]) -> pq.FileMetaData:
    """A file's footer, if it has the columns: plain integers, then lists."""
    kinds = dict.fromkeys(columns[:3], "integer") | dict.fromkeys(columns[3:], "integers")
    with open_parquet(path) as file:
        check_columns(path, file.schema_arrow, kinds)
        return file.metadata
