"""`tandem bench loss`: forward + backward of one loss beside the floor (three bare GEMMs) and the
naive loss.

All three run in this process in turn, several times; medians are reported. Memory is the kernel's
own peak resident size over a first call, less the resident size before it.

Shapes: B rows, C columns, D width, R rows of a tile, W columns of a tile.
"""

import ctypes
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from losses import LOSSES, Backend, Candidates, LossName, Precision, Rows, build_loss
from trainer.base.mistake import Mistake
from trainer.base.ranges import MOST_ROWS, MOST_THREADS, MOST_TURNS, check_ranges
from trainer.base.screen import say
from trainer.bench.naive import naive_loss

ZIPF_EXPONENT = 1.05


@dataclass(frozen=True)
class LossBenchArguments:
    """What `tandem bench loss` measures."""

    rows: int = 8192
    """B: queries of one rank."""
    columns: int = 65536
    """C: candidates, as gathered from all ranks."""
    dim: int = 64
    """D: width of the embeddings."""
    loss: LossName = "ssm"
    """Which loss; log Q and the id mask are on where the loss takes them."""
    temperature: float = 0.05
    """Ignored by ccl, which has none."""
    precision: Precision = "fp32"
    """Operands of the loss's GEMMs; the floor is float32 either way."""
    backend: Backend = "auto"
    """How the loss is computed; see --loss.backend of training."""
    items: int = 2_000_000
    """Catalog whose Zipf(1.05) popularity gives ids and log Q."""
    repeats: int = 5
    """Interleaved runs whose median counts."""
    naive: bool = True
    """Also run the materialised loss (about 3 times B x C floats of memory)."""
    threads: int = 0
    """Threads of torch; 0 leaves the default."""
    json: bool = False
    """Print one JSON object instead of the table."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            rows=(1, MOST_ROWS),
            columns=(1, MOST_ROWS),
            dim=(1, MOST_ROWS),
            items=(1, MOST_ROWS),
            repeats=(1, MOST_TURNS),
            threads=(0, MOST_THREADS),
        )
        if not 0 < self.temperature < math.inf:
            raise Mistake(f"--temperature {self.temperature}: must be a number above 0")


def run(arguments: LossBenchArguments) -> dict[str, Any]:
    """Seconds and bytes of the loss, the floor and the naive loss."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows, candidates = make_problem(arguments)
    has_temperature = LOSSES[arguments.loss].usual_temperature is not None
    loss = build_loss(
        arguments.loss,
        temperature=arguments.temperature if has_temperature else None,
        precision=arguments.precision,
        backend=arguments.backend,
    )

    def streamed() -> None:
        value, _ = loss(rows, candidates)
        torch.autograd.grad(value, _leaves(rows, candidates))

    def naive() -> None:
        torch.autograd.grad(naive_loss(loss, rows, candidates), _leaves(rows, candidates))

    floors = [
        BareGemms(rows.query_BD, candidates.embedding_CD, width, transposed)
        for width, transposed in ((512, True), (2048, False), (2048, True))
    ]
    _warm_up(arguments)
    peak_bytes = peak_extra_bytes(streamed)
    timed: list[Callable[[], None]] = [streamed, *floors]
    seconds, *floor_seconds = interleaved_medians(timed, arguments.repeats)
    result: dict[str, Any] = {
        "seconds": seconds,
        "floor_seconds": min(floor_seconds),
        "ratio": seconds / min(floor_seconds),
        "peak_bytes": peak_bytes,
        "naive_seconds": None,
        "naive_peak_bytes": None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if arguments.naive:
        result["naive_peak_bytes"] = peak_extra_bytes(naive)
        (result["naive_seconds"],) = interleaved_medians([naive], min(2, arguments.repeats))
    return result


def main(arguments: LossBenchArguments) -> None:
    """Runs and prints, as a table or as JSON."""
    result = run(arguments)
    if arguments.json:
        print(json.dumps(result))
        return
    say(
        f"{arguments.loss} {arguments.precision}, {arguments.rows} x {arguments.columns} x "
        f"{arguments.dim}, {result['threads']} threads, torch {result['torch']}"
    )
    say(f"{'':24}{'seconds':>10}{'to floor':>10}{'peak MiB':>10}")
    lines = [
        ("floor (three GEMMs)", result["floor_seconds"], None),
        (arguments.loss, result["seconds"], result["peak_bytes"]),
        ("naive", result["naive_seconds"], result["naive_peak_bytes"]),
    ]
    for label, seconds, peak in lines:
        if seconds is None:
            continue
        memory = "" if peak is None else f"{peak / 2**20:.0f}"
        say(f"{label:24}{seconds:>10.4f}{seconds / result['floor_seconds']:>10.2f}{memory:>10}")


def make_problem(arguments: LossBenchArguments) -> tuple[Rows, Candidates]:
    """Unit vectors; ids from Zipf popularity, exact log Q; the rows' positives are columns."""
    generator = torch.Generator().manual_seed(0)
    share = torch.arange(1, arguments.items + 1, dtype=torch.float64) ** -ZIPF_EXPONENT
    cumulative = (share / share.sum()).cumsum(0)
    drawn_C = torch.rand(
        max(arguments.columns, arguments.rows), generator=generator, dtype=torch.float64
    )
    id_C = torch.searchsorted(cumulative, drawn_C).clamp(max=arguments.items - 1)
    logq_C = (share[id_C] / share.sum()).log().float()
    user_C = torch.randint(0, 1_000_000, id_C.shape, generator=generator)

    def unit(size: int) -> Tensor:
        vectors = torch.randn(size, arguments.dim, generator=generator)
        return torch.nn.functional.normalize(vectors, dim=1).requires_grad_()

    rows, columns = slice(0, arguments.rows), slice(0, arguments.columns)
    return (
        Rows(
            query_BD=unit(arguments.rows),
            positive_BD=unit(arguments.rows),
            positive_id_B=id_C[rows],
            positive_logq_B=logq_C[rows],
            user_B=user_C[rows],
            feedback_B=torch.ones(arguments.rows, dtype=torch.int8),
            weight_B=torch.full((arguments.rows,), 1 / arguments.rows),
        ),
        Candidates(unit(arguments.columns), id_C[columns], logq_C[columns], user_C[columns]),
    )


def _leaves(rows: Rows, candidates: Candidates) -> list[Tensor]:
    return [rows.query_BD, rows.positive_BD, candidates.embedding_CD]


class BareGemms:
    """The floor: scores, query gradient and candidate gradient, tile by tile in kept buffers,
    nothing else.

    With `transposed` the candidate gradient is left as [D, W] tiles, for which MKL is faster.
    """

    def __init__(
        self, query_BD: Tensor, candidate_CD: Tensor, tile_columns: int, transposed: bool
    ) -> None:
        self.transposed = transposed
        self.query_BD, self.candidate_CD = query_BD.detach(), candidate_CD.detach()
        self.tile_columns = min(tile_columns, candidate_CD.shape[0])
        self.tile_rows = max(1, min(256, query_BD.shape[0]))
        self.scores = torch.zeros(self.tile_rows * self.tile_columns)
        self.query_gradient_BD = torch.zeros_like(self.query_BD)
        self.candidate_gradient_CD = torch.zeros_like(self.candidate_CD)

    def __call__(self) -> None:
        for query_RD, gradient_RD in zip(
            self.query_BD.split(self.tile_rows),
            self.query_gradient_BD.split(self.tile_rows),
            strict=True,
        ):
            for candidate_WD, gradient_WD in zip(
                self.candidate_CD.split(self.tile_columns),
                self.candidate_gradient_CD.split(self.tile_columns),
                strict=True,
            ):
                shape = (query_RD.shape[0], candidate_WD.shape[0])
                scores_RW = self.scores[: shape[0] * shape[1]].view(shape)
                torch.mm(query_RD, candidate_WD.t(), out=scores_RW)
                gradient_RD.addmm_(scores_RW, candidate_WD)
                if self.transposed:
                    gradient_DW = gradient_WD.view(gradient_WD.shape[1], gradient_WD.shape[0])
                    gradient_DW.addmm_(query_RD.t(), scores_RW)
                else:
                    gradient_WD.addmm_(scores_RW.t(), query_RD)
        self.query_gradient_BD.zero_()
        self.candidate_gradient_CD.zero_()


def interleaved_medians(functions: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median seconds of each; every round runs each once, so that noise meets all alike."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for taken, function in zip(seconds, functions, strict=True):
            begin = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begin)
    return [median(taken) for taken in seconds]


def peak_extra_bytes(function: Callable[[], None]) -> int | None:
    """The kernel's peak resident bytes in one call less those before; None where it has none."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    _return_freed_memory()
    reset.write_text("5")  # resets VmHWM to the present resident size
    before = _resident_bytes("VmRSS")
    function()
    return _resident_bytes("VmHWM") - before


def _return_freed_memory() -> None:
    """Freed heap that stays resident would hide what the measured call allocates."""
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "malloc_trim"):  # glibc
        c_library.malloc_trim(0)


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {field}")


def _warm_up(arguments: LossBenchArguments) -> None:
    """A tiny problem first: libraries' own buffers and threads are not the loss's memory."""
    small = LossBenchArguments(rows=64, columns=4096, dim=arguments.dim, items=10_000)
    rows, candidates = make_problem(small)
    BareGemms(rows.query_BD, candidates.embedding_CD, 2048, False)()
    loss = build_loss("ssm", precision=arguments.precision, backend=arguments.backend)
    value, _ = loss(rows, candidates)
    torch.autograd.grad(value, _leaves(rows, candidates))
