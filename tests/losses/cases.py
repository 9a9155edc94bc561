"""Random problems for the loss tests: few ids, so that duplicates and full masks occur."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from losses import Candidates, Rows, build_loss
from tests.losses.reference import ReferenceSettings, dense_loss


def make_case(
    num_rows: int = 13,
    num_columns: int = 37,
    width: int = 6,
    num_ids: int = 9,
    num_users: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    restricted: bool = True,
    scale: float = 1.0,
    copies: bool = False,
) -> tuple[Rows, Candidates]:
    """Unit vectors (times `scale`), repeated ids, padding, dislikes, histories; columns that stand
    for one to four each with `copies`."""
    generator = torch.Generator().manual_seed(seed)

    def ids(limit: int, size: int) -> Tensor:
        return torch.randint(0, limit, (size,), generator=generator)

    def unit(size: int) -> Tensor:
        vectors = torch.nn.functional.normalize(
            torch.randn(size, width, generator=generator, dtype=dtype), dim=1
        )
        return (scale * vectors).requires_grad_()

    def log_q(size: int) -> Tensor:
        return torch.log(torch.rand(size, generator=generator, dtype=dtype) * 0.5 + 1e-4)

    lengths = ids(4, num_rows)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    padding = num_rows > 2
    positive_id, user, weight = (
        ids(num_ids, num_rows),
        ids(num_users, num_rows),
        torch.rand(num_rows, generator=generator),
    )
    if padding:
        positive_id[-1], user[-1], weight[-1] = -1, -1, 0.0
    column_id = ids(num_ids, num_columns)
    column_id[:: max(7, num_columns // 3)] = -1
    visible = None
    if restricted:
        visible = torch.where(ids(4, num_columns) == 0, ids(num_users, num_columns), -1)
    rows = Rows(
        query_BD=unit(num_rows),
        positive_BD=unit(num_rows),
        positive_id_B=positive_id,
        positive_logq_B=log_q(num_rows),
        user_B=user,
        feedback_B=torch.where(ids(3, num_rows) == 0, -1, 1).to(torch.int8),
        weight_B=weight.to(torch.float32),
        history_values=ids(num_ids, int(offsets[-1])),
        history_offsets=offsets,
    )
    candidates = Candidates(
        embedding_CD=unit(num_columns),
        id_C=column_id,
        logq_C=log_q(num_columns),
        user_C=torch.where(ids(3, num_columns) == 0, -1, ids(num_users, num_columns)),
        visible_to_C=visible,
        copies_C=1.0 + ids(4, num_columns) if copies else None,
    )
    return rows, candidates


def leaves(rows: Rows, candidates: Candidates) -> list[Tensor]:
    """What a loss has gradients for."""
    return [rows.query_BD, rows.positive_BD, candidates.embedding_CD]


def cast(rows: Rows, candidates: Candidates, dtype: torch.dtype) -> tuple[Rows, Candidates]:
    """The same case, fresh leaves, in another dtype."""
    return (
        replace(
            rows,
            query_BD=rows.query_BD.detach().to(dtype).requires_grad_(),
            positive_BD=rows.positive_BD.detach().to(dtype).requires_grad_(),
            positive_logq_B=rows.positive_logq_B.to(dtype),
        ),
        replace(
            candidates,
            embedding_CD=candidates.embedding_CD.detach().to(dtype).requires_grad_(),
            logq_C=candidates.logq_C.to(dtype),
        ),
    )


DEFAULTS: dict[str, dict[str, Any]] = {
    **{name: {"temperature": 0.1, "correction": "all"} for name in ("ssm", "sl", "ntr", "ssm_ntr")},
    "bsl": {"temperature": 0.1, "correction": "all"},
    "improved_logq": {"temperature": 0.1, "correction": "negatives"},
    "sl_at_k": {"temperature": 0.2, "correction": "negatives"},
    **{name: {"temperature": 0.1, "correction": "negatives"} for name in ("psl", "talos")},
    "ccl": {"temperature": 1.0, "correction": "none", "margin": 0.9},
    **{name: {"temperature": 0.1, "correction": "none"} for name in ("ova", "bpr")},
}
"""What a loss is where nothing is said, written down a second time on purpose."""


def reference_settings(name: Any, settings: dict[str, Any]) -> ReferenceSettings:
    """The reference's settings for `build_loss(name, **settings)`, with the loss's defaults."""
    given = {
        key: value
        for key, value in settings.items()
        if key in ReferenceSettings.__dataclass_fields__
    }
    if name == "bsl" and not given.keys() & {"negative_weight", "negative_temperature"}:
        given["negative_weight"] = 1.2
    return ReferenceSettings(name=name, **{**DEFAULTS[name], **given})


def reference(
    name: Any, settings: dict[str, Any], rows: Rows, candidates: Candidates
) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of the dense reference in float64."""
    rows, candidates = cast(rows, candidates, torch.float64)
    value = dense_loss(reference_settings(name, settings), rows, candidates)
    return value.detach(), list(
        torch.autograd.grad(value, leaves(rows, candidates), materialize_grads=True)
    )


def streamed(
    name: Any, settings: dict[str, Any], rows: Rows, candidates: Candidates, **blocking: Any
) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of the streaming loss in the case's own dtype."""
    rows, candidates = cast(rows, candidates, rows.query_BD.dtype)
    loss = build_loss(name, **settings, **blocking)
    value, _ = loss(rows, candidates)
    return value.detach(), list(
        torch.autograd.grad(value, leaves(rows, candidates), materialize_grads=True)
    )
