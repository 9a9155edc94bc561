"""What a loss is given: this rank's rows and the candidates every row is scored against.

Shapes: B rows of this rank, C candidate columns (equal on all ranks), D embedding width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """This rank's B (query, positive) pairs.

    A loss is the plain weighted sum over rows: the caller puts any mean (and the world size) into
    `weight_B`. A row of weight 2 is the row twice, in value and gradient, before the same columns:
    weights are of rows alone. Columns are a sample of the catalog, and what one of them counts is
    for log Q to say.
    """

    query_BD: Tensor
    """Encoded queries, gradient wanted."""
    positive_BD: Tensor
    """The row's own candidate, encoded, gradient wanted."""
    positive_id_B: Tensor
    """int64 item id of the positive; -1 on padding rows. Columns of the same id leave the row."""
    positive_logq_B: Tensor
    """float32 log Q of the positive; used where the loss corrects the positive too."""
    user_B: Tensor
    """int64 user id of the row; -1 on padding rows."""
    feedback_B: Tensor
    """1 positive, -1 disliked. Disliked rows count in losses with `counts_disliked` alone."""
    weight_B: Tensor
    """float32, not negative; 0 on padding rows, and on others that are to count for nothing."""
    history_values: Tensor | None = None
    """int64 item ids of all rows' histories, row after row (only for `mask_history`)."""
    history_offsets: Tensor | None = None
    """int64 of length B + 1: row b's history is `history_values[offsets[b]:offsets[b + 1]]`."""

    def __post_init__(self) -> None:
        if self.query_BD.shape != self.positive_BD.shape:
            raise ValueError(
                f"query_BD is {tuple(self.query_BD.shape)}, positive_BD "
                f"{tuple(self.positive_BD.shape)}: they must agree; encode one positive a row"
            )
        _require_int64("positive_id_B", self.positive_id_B)
        _require_int64("user_B", self.user_B)


@dataclass(frozen=True)
class Positives:
    """Rows of the global batch that are a user's positives, where columns do not tell of them by
    `user_C`: since rows are no columns, or since a column stands for several rows."""

    user_P: Tensor
    """int64; -1 is none."""
    id_P: Tensor
    """int64 item."""
    column_P: Tensor | None = None
    """int64: the column that holds the item; -1 none. None: there are no such columns."""
    weight_P: Tensor | None = None
    """The row's weight, in the mean of a user's several positives; None: 1 each."""


@dataclass(frozen=True)
class Candidates:
    """The C columns: gathered positives of all ranks, sampled extras, a queue, disliked items."""

    embedding_CD: Tensor
    """Encoded candidates; gradient where they are not from a queue."""
    id_C: Tensor
    """int64 item id; -1 is padding, masked in every row."""
    logq_C: Tensor
    """float32 log Q, the log chance per draw that the column is there; 0 = not corrected."""
    user_C: Tensor
    """int64 user whose positive the column is; -1 none. `mask_same_user` reads from it and `id_C`
    what users have as positives."""
    visible_to_C: Tensor | None = None
    """int64 user in whose positive rows alone the column is a negative (its own disliked items); -1
    all. None: all see all. Losses without `sees_disliked` leave such columns out."""
    positives: Positives | None = None
    """Positives of the batch that `user_C` does not tell of (for `mask_same_user`, and several
    positives of a user)."""
    copies_C: Tensor | None = None
    """float32: how many equal columns (of one item, and visible to the same) this one stands for;
    it counts as so many. None: one each."""

    def __post_init__(self) -> None:
        _require_int64("id_C", self.id_C)
        _require_int64("user_C", self.user_C)

    def with_columns(self) -> Positives:
        """All positives that are columns: those that `user_C` tells of, and `positives`."""
        user_C = torch.where(self.id_C >= 0, self.user_C, -1)
        column_C = torch.arange(self.id_C.shape[0], device=self.id_C.device)
        weight_C = torch.ones_like(self.logq_C) if self.copies_C is None else self.copies_C
        told = self.positives
        if told is None or told.column_P is None:
            return Positives(user_C, self.id_C, column_C, weight_C)
        one_P = torch.ones_like(told.user_P, dtype=weight_C.dtype)
        weight_P = one_P if told.weight_P is None else told.weight_P.to(weight_C.dtype)
        return Positives(
            torch.cat([user_C, torch.where(told.column_P >= 0, told.user_P, -1)]),
            torch.cat([self.id_C, told.id_P]),
            torch.cat([column_C, told.column_P.clamp(min=0)]),
            torch.cat([weight_C, weight_P]),
        )

    @staticmethod
    def concatenate(parts: "list[Candidates]") -> "Candidates":
        """Columns of all parts, in order. Each source brings its own ids and log Q."""
        everyone = [
            torch.full_like(part.id_C, -1) if part.visible_to_C is None else part.visible_to_C
            for part in parts
        ]
        restricted = any(part.visible_to_C is not None for part in parts)
        copies = [
            torch.ones_like(part.logq_C) if part.copies_C is None else part.copies_C
            for part in parts
        ]
        repeated = any(part.copies_C is not None for part in parts)
        positives = [part.positives for part in parts if part.positives is not None]
        assert len(positives) <= 1, "the batch's other positives are told once"
        return Candidates(
            embedding_CD=torch.cat([part.embedding_CD for part in parts]),
            id_C=torch.cat([part.id_C for part in parts]),
            logq_C=torch.cat([part.logq_C for part in parts]),
            user_C=torch.cat([part.user_C for part in parts]),
            visible_to_C=torch.cat(everyone) if restricted else None,
            positives=positives[0] if positives else None,
            copies_C=torch.cat(copies) if repeated else None,
        )


def in_batch(
    query_BD: Tensor,
    positive_BD: Tensor,
    positive_id_B: Tensor,
    logq_B: Tensor | None = None,
    user_B: Tensor | None = None,
    feedback_B: Tensor | None = None,
) -> tuple[Rows, Candidates]:
    """(query, positive) pairs of which every positive is a negative of the other rows: the mean
    over rows, and one process's columns. Disliked rows (feedback -1) are nobody's columns.

    logq_B: log Q of the positives (`log_q_from_counts`); None: no correction.
    user_B: int64; None: no user has several positives.
    """
    num_rows = positive_id_B.shape[0]
    nobody_B = torch.full_like(positive_id_B, -1)
    user_B = nobody_B if user_B is None else user_B
    logq_B = positive_BD.new_zeros(num_rows, dtype=torch.float32) if logq_B is None else logq_B
    if feedback_B is None:
        feedback_B = torch.ones_like(positive_id_B, dtype=torch.int8)
    rows = Rows(
        query_BD=query_BD,
        positive_BD=positive_BD,
        positive_id_B=positive_id_B,
        positive_logq_B=logq_B,
        user_B=user_B,
        feedback_B=feedback_B,
        weight_B=torch.full_like(logq_B, 1 / max(1, num_rows), dtype=torch.float32),
    )
    column_id_B = torch.where(feedback_B > 0, positive_id_B, nobody_B)
    return rows, Candidates(positive_BD, column_id_B, logq_B, user_B)


def sampled(embedding_CD: Tensor, id_C: Tensor, logq_C: Tensor | None = None) -> Candidates:
    """Drawn columns, nobody's positives; without log Q uncorrected (`log_q_uniform`)."""
    if logq_C is None:
        logq_C = embedding_CD.new_zeros(id_C.shape[0], dtype=torch.float32)
    return Candidates(embedding_CD, id_C, logq_C, torch.full_like(id_C, -1))


def _require_int64(name: str, ids: Tensor) -> None:
    if ids.dtype != torch.int64:
        raise ValueError(
            f"{name} is {ids.dtype}; ids must be torch.int64 all the way "
            "(float32 ids are wrong above 2**24)"
        )
