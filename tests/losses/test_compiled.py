"""The compiled walk: what the parity tests do not see. They run it wherever it applies."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from losses import LOSSES, build_loss
from losses.kernels import native
from losses.kernels.native import load_kernel
from tests.losses.cases import cast, leaves, make_case, reference, streamed

KERNEL, REASON = load_kernel()
needs_kernel = pytest.mark.skipif(KERNEL is None, reason=REASON)
EXP_LOSSES = tuple(name for name, loss in LOSSES.items() if loss.element == "exp")


@needs_kernel
@pytest.mark.parametrize("name", EXP_LOSSES)
@pytest.mark.parametrize(
    "masks", [{}, {"mask_same_user": True, "mask_history": True, "hardness": 0.4}]
)
def test_several_stripes_and_blocks_equal_the_reference(name: Any, masks: dict[str, Any]) -> None:
    # 600 columns are more than two blocks of panels; 1 MiB holds 408 of 430 rows of 640 columns.
    sizes = {"num_rows": 430, "num_columns": 600, "width": 40, "num_ids": 90, "num_users": 70}
    rows, candidates = make_case(**sizes, copies=bool(masks), dtype=torch.float32)
    expected_value, expected = reference(name, masks, rows, candidates)
    value, gradients = streamed(
        name, masks, rows, candidates, backend="compiled", stripe_mebibytes=1
    )
    assert value.item() == pytest.approx(expected_value.item(), rel=2e-6)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert (gradient - wanted).norm() < 3e-6 * wanted.norm()


@needs_kernel
def test_both_walks_count_the_same_negatives() -> None:
    masks = {"mask_same_user": True, "mask_history": True}
    for copies in (False, True):
        rows, candidates = make_case(60, 300, num_ids=20, dtype=torch.float32, copies=copies)
        counted = []
        for backend in ("compiled", "blocked"):
            loss = build_loss("ssm", **masks, backend=backend)  # type: ignore[arg-type]
            counted.append(loss(rows, candidates)[1])
        for key, wanted in counted[1].items():
            torch.testing.assert_close(counted[0][key], wanted, rtol=1e-5, atol=1e-6)


@needs_kernel
def test_threads_do_not_change_a_bit() -> None:
    rows, candidates = make_case(200, 500, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(streamed("ssm", {}, rows, candidates, backend="compiled"))
    torch.set_num_threads(before)
    for value, gradients in results[1:]:
        assert value == results[0][0]
        assert all(torch.equal(*pair) for pair in zip(gradients, results[0][1], strict=True))


@needs_kernel
@pytest.mark.parametrize("name", EXP_LOSSES)
def test_bf16_products(name: Any) -> None:
    """A score of n terms is off by about 2**-9 / sqrt(n) of it, and shares by as much."""
    assert KERNEL is not None
    if not KERNEL.has_bf16:
        pytest.skip("this processor has no products of bf16")
    rows, candidates = make_case(300, 700, 64, num_ids=200, dtype=torch.float32)
    expected_value, expected = reference(name, {}, rows, candidates)
    value, gradients = streamed(name, {"precision": "bf16"}, rows, candidates, backend="compiled")
    assert value.item() == pytest.approx(expected_value.item(), rel=2e-4)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert (gradient - wanted).norm() < 0.01 * wanted.norm()


@needs_kernel
def test_rows_without_negatives_and_hidden_columns() -> None:
    rows, candidates = make_case(9, 40, restricted=False, dtype=torch.float32)
    hidden = replace(candidates, id_C=torch.full_like(candidates.id_C, -1))
    value, statistics = build_loss("sl", backend="compiled")(rows, hidden)
    gradients = torch.autograd.grad(value, leaves(rows, hidden))
    assert value == 0 and statistics["negatives_mean"] == 0
    assert all((gradient == 0).all() for gradient in gradients)


@needs_kernel
def test_low_temperatures_go_the_other_way() -> None:
    # Scores up to 100: exponentials would leave float32, which needs a maximum per row.
    rows, candidates = make_case(dtype=torch.float32)
    expected, _ = reference("ssm", {"temperature": 0.01}, rows, candidates)
    value, _ = build_loss("ssm", temperature=0.01, backend="compiled")(rows, candidates)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_a_compiler_plain_torch_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows, candidates = make_case(dtype=torch.float32)
    expected, _ = build_loss("ssm", backend="blocked")(rows, candidates)
    load_kernel.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        value, _ = build_loss("ssm")(*cast(rows, candidates, torch.float32))
        assert value == expected
        with pytest.raises(ValueError, match=r"'compiled' but no gcc was found .*use 'auto'"):
            build_loss("ssm", backend="compiled")(rows, candidates)
        broken = tmp_path / "gcc"
        broken.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
        broken.chmod(0o755)
        load_kernel.cache_clear()
        with pytest.raises(ValueError, match=r"could not build stripe_kernel\.c: no such flag"):
            build_loss("ssm", backend="compiled")(rows, candidates)
    finally:
        load_kernel.cache_clear()


@needs_kernel
def test_compiles_afresh_into_an_empty_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_kernel.cache_clear()
    try:
        kernel, reason = load_kernel()
        assert kernel is not None, reason
        (built,) = (tmp_path / "tandem").iterdir()
        assert built.name.startswith("stripe-kernel-")
    finally:
        load_kernel.cache_clear()


@needs_kernel
def test_a_kernel_that_was_cut_short_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading one ended the process with SIGBUS, at every start from then on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = shutil.which("gcc")
    assert compiler is not None
    built = native._compiled(compiler, native.SOURCE)
    whole = built.read_bytes()
    built.write_bytes(whole[: len(whole) // 2])
    again = native._compiled(compiler, native.SOURCE)
    assert len(again.read_bytes()) == len(whole)
    assert list(again.parent.glob("*.so")) == [again]
    assert native._compiled(compiler, native.SOURCE) == again
