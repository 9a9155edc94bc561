"""What of the GPU's benchmarks and kernels can be held to account without one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from losses import build_loss
from tests.datasets import make_dataset
from tests.one_rank import begun
from trainer.bench import gpu_loss, gpu_page
from trainer.bench.loss import LossBenchArguments, make_problem
from trainer.bench.naive import naive_loss
from trainer.distributed.ranks import process_group
from trainer.model.trained import load_run
from trainer.retrieval.encode import Encoder
from trainer.retrieval.written.bundle_programs import write_programs

pytestmark = pytest.mark.xdist_group("ranks")


def test_chunks_have_the_value_and_gradients_of_the_naive_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_loss, "CHUNK_SCORES", 1000)  # eleven rows
    rows, candidates = make_problem(LossBenchArguments(rows=37, columns=90, dim=16, items=300))
    loss = build_loss("ssm", temperature=0.05)
    value = naive_loss(loss, rows, candidates)
    leaves = [rows.query_BD, rows.positive_BD, candidates.embedding_CD]
    wanted = torch.autograd.grad(value, leaves)
    chunked, *gradients = gpu_loss.chunked_gradients(loss, rows, candidates)
    torch.testing.assert_close(chunked, value)
    for gradient, each in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, each, rtol=1e-4, atol=1e-5)


def test_tables_are_gathered_on_the_host(tmp_path: Path) -> None:
    """A group of gloo and NCCL gathers host tensors: one on the device beside them is refused."""
    make_dataset(tmp_path / "data", users=60, items=40, rows=1400)
    begun(str(tmp_path / "data"), tmp_path / "run", training={"max_steps": 1})
    with process_group() as ranks:
        trained = load_run(tmp_path / "run", ranks)
        (tmp_path / "tables").mkdir()
        elsewhere = replace(ranks, device=torch.device("meta"))
        _, files = write_programs(trained, Encoder.of_run(trained, elsewhere), tmp_path, 0)
        del trained
    table = load_file(tmp_path / files["history"].file)["item"]
    assert table.shape == (41, 16) and table.abs().max() > 0


def test_small_devices_have_tiles_that_fit() -> None:
    pytest.importorskip("triton", reason="triton is not installed (make setup installs it)")
    from losses.kernels.triton_launch import tile_sizes

    hopper, consumer = 232_448, 101_376
    assert tile_sizes(128, 3, hopper) != tile_sizes(128, 3, consumer)
    assert tile_sizes(128, 1, hopper) == tile_sizes(128, 1, consumer)
    assert len(set(tile_sizes(128, 3, consumer))) == 1
    assert tile_sizes(16, 1, hopper) == tile_sizes(64, 1, hopper)


def test_the_page_keeps_what_stands_around_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"bf16_flops": 7e14, "fp32_flops": 5e13, "copy_bytes_per_second": 4e12}
    names = {"name": "A card", "memory_bytes": 80 << 30, "torch": "2.13", "cuda": "13.0"}
    ways = ("tandem", "compiled", "chunked", "naive")
    size = {"rows": 65536, "columns": 65536, "dim": 128, "precision": "bf16"}
    size |= {f"{way}_seconds": 0.01 for way in ways} | {f"{way}_peak_bytes": 1e9 for way in ways}
    size |= {"naive_seconds": None, "naive_peak_bytes": None, "floor_seconds": 0.004, "flops": 1e14}
    about = {"device": names | rates, "date": "2026-11-26"}
    (tmp_path / "loss.json").write_text(json.dumps(about | {"sizes": [size]}))
    case = '<testcase name="{}"><properties><property name="difference" value="0.5"/></properties>'
    cases = case.format("a[one]") + "</testcase>" + '<testcase name="b"><failure/></testcase>'
    (tmp_path / "parity.xml").write_text(f"<testsuites>{cases}</testsuites>")
    page = tmp_path / "gpu.md"
    page.write_text(f"before\n{gpu_page.BEGIN}\nold\n{gpu_page.END}\nafter\n")
    monkeypatch.setattr("sys.argv", ["gpu_page", str(tmp_path), str(page)])
    gpu_page.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "A card, 80 GiB" in text and "1 of 2 tests pass; not: b." in text
    assert "| one | 5.0e-01 |" in text
    assert "| out of memory |" in text and "measured **10.0 ms**, **1.00 GB**" in text
