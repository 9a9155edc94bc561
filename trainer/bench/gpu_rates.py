"""What a GPU can do at most, measured: products, copies, and the time of anything queued on it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch

PRODUCT_SIZE = 8192
COPY_BYTES = 1 << 31


def results_folder() -> Path:
    """The folder that a part of `make gpu-check` was given; made if it is not there."""
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device; on a CPU: tandem bench loss, tandem bench step")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_results(file: Path, **results: Any) -> None:
    """One JSON object: the results, and what they were measured on."""
    about = {"device": device_facts(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    file.write_text(json.dumps(about | results, indent=1))


def device_facts() -> dict[str, Any]:
    """Names and rates of the first GPU."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "bf16_flops": product_rate(torch.bfloat16),
        "fp32_flops": product_rate(torch.float32),
        "copy_bytes_per_second": copy_rate(),
    }


def timed(function: Callable[[], object], repeats: int = 10) -> tuple[float, int]:
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


@cache
def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large square product of random values."""
    first = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device="cuda", dtype=dtype)
    seconds, _ = timed(lambda: torch.mm(first, first))
    return float(2 * PRODUCT_SIZE**3 / seconds)


@cache
def copy_rate() -> float:
    """Bytes read and written a second by a large copy on the device."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds, _ = timed(lambda: target.copy_(source))
    return float(2 * COPY_BYTES / seconds)
