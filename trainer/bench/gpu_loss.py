"""`python -m trainer.bench.gpu_loss`: the loss on CUDA beside its floor and the naive loss.

The floor is the five GEMMs that recomputing needs, at the rate this device reaches on large ones,
plus three exps a score. Prints one JSON object a line; part of `make gpu-check`.
"""

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from losses import Candidates, Precision, Rows, build_loss
from trainer.bench.loss import LossBenchArguments, make_problem
from trainer.bench.naive import naive_loss

SIZES = ((4096, 4096, 64), (8192, 65536, 64), (16384, 16384, 128), (65536, 65536, 128))
LARGEST_NAIVE_SCORES = 16384 * 16384


def main() -> None:
    """Times every size in float32 and bf16, naive and compiled naive where they fit."""
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device; this times the GPU kernels (CPU: tandem bench loss)")
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}))
    for num_rows, num_columns, width in SIZES:
        arguments = LossBenchArguments(rows=num_rows, columns=num_columns, dim=width)
        rows, candidates = make_problem(arguments)
        rows, candidates = _moved(rows), _moved(candidates)
        for precision in ("fp32", "bf16"):
            print(json.dumps(_measure(rows, candidates, precision)), flush=True)


def _measure(rows: Rows, candidates: Candidates, precision: Precision) -> dict[str, Any]:
    loss = build_loss("ssm", temperature=0.05, precision=precision).cuda()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    num_rows, width = rows.query_BD.shape
    num_columns = candidates.id_C.shape[0]
    num_scores = num_rows * num_columns
    seconds, peak = _timed(lambda: _backward(loss(rows, candidates)[0], rows, candidates))
    floor = 5 * 2 * num_scores * width / _gemm_rate(dtype) + 3 * num_scores / _exp_rate()
    result: dict[str, Any] = {
        "rows": num_rows,
        "columns": num_columns,
        "dim": width,
        "precision": precision,
        "seconds": seconds,
        "floor_seconds": floor,
        "ratio": seconds / floor,
        "peak_bytes": peak,
    }
    if num_scores <= LARGEST_NAIVE_SCORES:
        naive = (_moved(rows, dtype), _moved(candidates, dtype))
        compiled = torch.compile(naive_loss)
        result["naive_seconds"], result["naive_peak_bytes"] = _timed(
            lambda: _backward(naive_loss(loss, *naive), *naive)
        )
        result["compiled_seconds"], result["compiled_peak_bytes"] = _timed(
            lambda: _backward(compiled(loss, *naive), *naive)
        )
    return result


def _backward(value: Tensor, rows: Rows, candidates: Candidates) -> None:
    torch.autograd.grad(value, [rows.query_BD, rows.positive_BD, candidates.embedding_CD])


def _timed(function: Callable[[], object], repeats: int = 10) -> tuple[float, int]:
    """(median seconds, peak extra bytes of the allocator) after two warm-up calls."""
    function()
    function()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return median(seconds), torch.cuda.max_memory_allocated() - before


def _gemm_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large square GEMM."""
    size = 8192
    first = torch.randn(size, size, device="cuda", dtype=dtype)
    seconds, _ = _timed(lambda: torch.mm(first, first))
    return float(2 * size**3 / seconds)


def _exp_rate() -> float:
    """exps a second out of registers, taken as 16 a cycle and multiprocessor."""
    properties = torch.cuda.get_device_properties(0)
    cycles: float = properties.clock_rate * 1e3
    return 16.0 * cycles * float(properties.multi_processor_count)


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
