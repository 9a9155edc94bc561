"""Windows of rows: row groups of events read, their histories found, put in the order of the epoch.

A row is an event that is trained on. Its histories stay ranges of the window's events until a batch
needs them, so that a window is as large as its events, whatever histories are.

Shapes: n = rows of a window, G = row groups of all files.
"""

import threading
from collections.abc import Sequence

import numpy as np

from trainer.base.mistake import Mistake
from trainer.base.split_names import SPLITS
from trainer.data.events.event_reader import DamagedGroup, EventReader
from trainer.data.events.histories import Draw
from trainer.data.events.marks import Marks
from trainer.data.schema import Dataset
from trainer.loader.order import EpochOrder
from trainer.loader.row_table import NARROW, RowTable, Wanted, WindowRows


class RowGroups:
    """The rows of a dataset's row groups, read one by one from any thread.

    splits: which events are rows, and which ones histories may hold.
    lists: "history" and "disliked", where asked for.
    context: keys of the context that are read with each event.
    history_length: longest list; None: as the dataset says.
    sequence_length: rows of one user stay together, in time order, and `history` begins where the
        row's chunk does (`cut_into_chunks`); None: rows are shuffled one by one.
    marks: what items of sequences carry.
    """

    def __init__(
        self,
        dataset: Dataset,
        splits: Sequence[str],
        lists: Sequence[str],
        context: Sequence[str] = (),
        *,
        positives_only: bool,
        history_length: int | None,
        skip_corrupt: bool,
        sequence_length: int | None = None,
        marks: Marks | None = None,
    ) -> None:
        self._reader = EventReader(dataset)
        self._wanted = Wanted(
            tuple(SPLITS.index(split) for split in splits),
            tuple(lists),
            positives_only,
            np.array([kind.weight for kind in dataset.kinds], dtype=np.float32),
            dataset.history_length if history_length is None else history_length,
            sequence_length,
            tuple(context),
            marks,
        )
        self._narrow = max(dataset.num_users, dataset.num_items) < NARROW
        self._skip_corrupt = skip_corrupt
        self._lock = threading.Lock()
        self.skipped_rows = 0
        """Rows lost to corrupt row groups so far, if they are to be skipped."""
        self.rows_G = self._reader.count(splits, "positive" if positives_only else "all")
        """Rows of each group, int64."""

    def window(self, order: EpochOrder, window: int, seed: int) -> WindowRows:
        """Read a window and put its rows into the order of the epoch."""
        draw = Draw(seed, order.epoch)
        groups = order.groups(window).tolist()
        table = RowTable(order.window_rows(window), self._wanted.lists, self._narrow)
        for group in groups:
            self._add(table, group, draw)
        if self._wanted.chunk is None:
            return table.ordered(order.permutation(window))
        is_first_n = table.first_of_sequences(self.rows_G[groups].tolist())
        return table.ordered(order.permutation_of(window, is_first_n))

    def _add(self, table: RowTable, group: int, draw: Draw) -> None:
        """The rows of a group as they lie in its file."""
        expected = int(self.rows_G[group])
        if not expected:
            return
        try:
            rows = self._reader.read(group)
        except DamagedGroup as error:
            if not self._skip_corrupt:
                raise Mistake(
                    f"{error.what}: restore the file, or go on without its rows with "
                    "data.skip_corrupt"
                ) from error
            with self._lock:
                self.skipped_rows += expected
            table.add(WindowRows.missing(expected, self._wanted.lists, self._wanted.context))
            return
        found = table.add_rows_of(rows, self._wanted, expected, draw)
        if found != expected:
            raise Mistake(
                f"{self._reader.where(group)} holds {found} rows, its footer says "
                f"{expected}: prepare the dataset again"
            )
