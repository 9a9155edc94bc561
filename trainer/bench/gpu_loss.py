"""`python -m trainer.bench.gpu_loss OUT`: the loss on CUDA beside its floor and other ways.

The floor is what any way needs: three products (scores and both gradients) at the rate of a large
one on this device. Beside it: the materialised loss, the same by torch.compile, and chunks of rows
whose gradients are made in the forward pass, as fused linear cross entropies do it. Writes
OUT/loss.json; part of `make gpu-check`.

Shapes: B rows, C columns, D width, R rows of a chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from losses import Candidates, Precision, RetrievalLoss, Rows, build_loss
from trainer.bench.gpu_rates import product_rate, results_folder, timed, write_results
from trainer.bench.loss import LossBenchArguments, make_problem
from trainer.bench.naive import naive_loss

SIZES = (
    (8192, 65536, 64),
    (65536, 65536, 64),
    (65536, 65536, 128),
    (65536, 65536, 256),
)
PRODUCTS = 3
CHUNK_SCORES = 1 << 28


def main() -> None:
    """Times every size in float32 and bf16."""
    folder, results = results_folder(), []
    for num_rows, num_columns, width in SIZES:
        arguments = LossBenchArguments(rows=num_rows, columns=num_columns, dim=width)
        rows, candidates = (_moved(each) for each in make_problem(arguments))
        for precision in ("fp32", "bf16"):
            results.append(_measure(rows, candidates, precision))
            print(json.dumps(results[-1]), flush=True)
            write_results(folder / "loss.json", sizes=results)


def _measure(rows: Rows, candidates: Candidates, precision: Precision) -> dict[str, Any]:
    loss = build_loss("ssm", temperature=0.05, precision=precision).cuda()
    loss.watched = False
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    num_rows, width = rows.query_BD.shape
    num_columns = candidates.id_C.shape[0]
    operations = PRODUCTS * 2 * num_rows * num_columns * width
    floor = operations / product_rate(dtype)
    inputs = (_moved(rows, dtype), _moved(candidates, dtype))
    torch._dynamo.reset()  # or shapes beside others would be compiled as unknown ones
    compiled = torch.compile(naive_loss, dynamic=False)
    ways: dict[str, Callable[[], object]] = {
        "tandem": lambda: _backward(loss(rows, candidates)[0], rows, candidates),
        "naive": lambda: _backward(naive_loss(loss, *inputs), *inputs),
        "compiled": lambda: _backward(compiled(loss, *inputs), *inputs),
        "chunked": lambda: chunked_gradients(loss, *inputs),
    }
    result: dict[str, Any] = {
        "rows": num_rows,
        "columns": num_columns,
        "dim": width,
        "precision": precision,
        "floor_seconds": floor,
    }
    for name, way in ways.items():
        seconds, peak = timed_where_it_fits(way)
        result[f"{name}_seconds"], result[f"{name}_peak_bytes"] = seconds, peak
    result["ratio"] = result["tandem_seconds"] / floor
    result["flops"] = operations / result["tandem_seconds"]
    return result


def timed_where_it_fits(way: Callable[[], object]) -> tuple[float | None, int | None]:
    """`timed`; None where the device's memory does not hold it."""
    try:
        return timed(way)
    except torch.OutOfMemoryError:
        return None, None
    finally:
        torch.cuda.empty_cache()


@torch.no_grad()
def chunked_gradients(
    loss: RetrievalLoss, rows: Rows, candidates: Candidates
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SSM's value and the gradients of queries, positives and candidates, chunk by chunk of rows.

    Exponentials replace the chunk's scores in place, and both gradients' products follow at once:
    no chunk is kept for a backward pass.
    """
    scale = 1 / loss.temperatures[0]
    column_CD = candidates.embedding_CD
    query_gradient_BD = torch.empty_like(rows.query_BD)
    positive_gradient_BD = torch.empty_like(rows.positive_BD)
    column_gradient_CD = torch.zeros_like(column_CD, dtype=torch.float32)
    value = column_CD.new_zeros((), dtype=torch.float32)
    for part in _chunks(rows.query_BD.shape[0], column_CD.shape[0]):
        query_RD, own_RD = rows.query_BD[part], rows.positive_BD[part]
        weight_R = rows.weight_B[part]
        score_RC = (query_RD @ column_CD.T).float().mul_(scale).sub_(candidates.logq_C)
        hit_RC = candidates.id_C == rows.positive_id_B[part, None]
        score_RC.masked_fill_(hit_RC, -torch.inf)
        positive_R = (query_RD * own_RD).sum(1).float() * scale - rows.positive_logq_B[part]
        total_R = torch.logaddexp(score_RC.logsumexp(1), positive_R)
        value += ((total_R - positive_R) * weight_R).sum()
        share_RC = score_RC.sub_(total_R[:, None]).exp_().mul_((weight_R * scale)[:, None])
        share_RC = share_RC.to(query_RD.dtype)
        own_R = ((positive_R - total_R).exp() - 1) * weight_R * scale
        own_R1 = own_R.to(query_RD.dtype)[:, None]
        query_gradient_BD[part] = share_RC @ column_CD + own_R1 * own_RD
        positive_gradient_BD[part] = own_R1 * query_RD
        column_gradient_CD += share_RC.T @ query_RD
    return value, query_gradient_BD, positive_gradient_BD, column_gradient_CD


def _chunks(num_rows: int, num_columns: int) -> list[slice]:
    size = max(1, CHUNK_SCORES // num_columns)
    return [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def _backward(value: Tensor, rows: Rows, candidates: Candidates) -> None:
    torch.autograd.grad(value, [rows.query_BD, rows.positive_BD, candidates.embedding_CD])


def _moved(inputs: Any, dtype: torch.dtype | None = None) -> Any:
    """The same dataclass on the GPU, its leaves leaves again, in `dtype` if one is given."""
    moved: dict[str, Tensor | None] = {}
    for name in inputs.__dataclass_fields__:
        tensor: Tensor | None = getattr(inputs, name)
        if tensor is not None:
            trained = tensor.requires_grad
            tensor = tensor.detach().cuda()
            tensor = (tensor.to(dtype) if trained else tensor).requires_grad_(trained)
        moved[name] = tensor
    return type(inputs)(**moved)


if __name__ == "__main__":
    main()
