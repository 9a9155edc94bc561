"""The Triton kernels compiled for sm_90 without a GPU: what the compiler makes of the tiles that
were measured (docs/benchmarks/gpu.md)."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed (make test installs it)")

REGISTERS = 65_536
"""Of a multiprocessor."""
SHARED = 232_448
"""Bytes of shared memory that a program of an H100 may have."""
BFLOAT16 = ("query", "candidate", "further", "row_further")
INT32 = (
    "lost",
    "own_first",
    "own_last",
    "first_place",
    "last_place",
    "column_first",
    "column_last",
)
INT64 = ("row_order", "column_order", "list_first", "list_last")
NUMBERS = ("num_rows", "row_stride", "num_columns", "columns_given", "width")
ORDINARY, SLOW = [(1, 128)], [(1, 64), (1, 256), (3, 64), (3, 128), (3, 256)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("pieces", "columns"),
    ORDINARY + [pytest.param(*each, marks=pytest.mark.slow) for each in SLOW],
)
def test_it_fits_its_tiles(pieces: int, columns: int, tmp_path: Path) -> None:
    """Products are those of Hopper, no register is kept in memory (at 256 columns of float32 a few
    are), and two programs fit a multiprocessor's registers, or one of eight warps."""
    from losses.kernels.triton_kernel import candidate_gradient_kernel, forward_kernel
    from losses.kernels.triton_launch import FASTEST

    needed, tiles = FASTEST[pieces, columns]
    ways: list[tuple[Any, Any, dict[str, Any]]] = [
        (forward_kernel, tiles.forward, {"GRADIENT": True, "MOVING": False, "AGAIN": False}),
        (candidate_gradient_kernel, tiles.candidate, {"LEAN": True, "EITHER": True}),
    ]
    for kernel, sizes, constants in ways:
        forward = kernel is forward_kernel
        rows, walked = (sizes.held, sizes.walked) if forward else (sizes.walked, sizes.held)
        constants |= {"R": rows, "W": walked, "D": columns, "PIECES": pieces, "ELEMENT": 0}
        constants |= {"LISTS": False, "WIDEN": False}
        compiled = compiled_for_hopper(kernel, constants, sizes.options)
        registers, stack = resources(compiled, tmp_path)
        assert "wgmma.mma_async" in compiled.asm["ptx"]
        assert compiled.metadata.shared <= needed <= SHARED
        assert stack <= (64 if (pieces, columns) == (3, 256) else 0)
        programs = 2 if sizes.warps == 4 else 1
        assert registers * 32 * sizes.warps * programs <= REGISTERS


def compiled_for_hopper(kernel: Any, constants: dict[str, Any], options: dict[str, int]) -> Any:
    """With sizes and addresses that 16 divides, as large problems have them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, divisible = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        number = name in NUMBERS or name.endswith("_of_part")
        signature[name] = "i32" if number else f"*{_element(name)}"
        divisible[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, divisible)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def _element(name: str) -> str:
    kinds = {"bf16": BFLOAT16, "i32": INT32, "i64": INT64}
    return next((kind for kind, names in kinds.items() if name in names), "fp32")


def resources(compiled: Any, folder: Path) -> tuple[int, int]:
    """(registers of a thread, bytes of its stack) as the assembler counted them."""
    import triton

    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    told = subprocess.run(
        [str(tool), "-res-usage", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found is not None, told
    return int(found[1]), int(found[2])
