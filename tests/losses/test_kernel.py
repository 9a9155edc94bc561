"""The Triton kernels, run on the CPU by Triton's interpreter."""

import json
import os
import subprocess
import sys

import pytest

from tests.losses.kernel_in_interpreter import CASES

pytest.importorskip("triton", reason="triton is not installed (make setup installs it)")


def test_kernels_equal_reference_in_interpreter() -> None:
    # The variable must be set before triton is imported, and would spoil other users of it.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.losses.kernel_in_interpreter"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    # The interpreter cuts a bfloat16 off where a GPU rounds it.
    for (name, chosen, case), error in zip(CASES, found["cases"], strict=True):
        tolerance = 2e-2 if chosen.get("precision") == "bf16" else 1e-4
        assert error < tolerance, f"{name} {chosen} {case}: error {error}"
    assert max(found["large"]) < 1e-4
    assert max(found["rising"]) < 1e-4
