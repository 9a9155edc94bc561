"""`tandem bench eval` on a small catalog: what it reports, and that it measures an exact search."""

import json

import pytest

from trainer.bench.eval import EvalBenchArguments, main


def test_reports_ratio_and_memory_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = EvalBenchArguments(
        users=1000, sampled_users=96, items=9000, block=64, k=10, chunk_items=512, json=True
    )
    result = main(arguments)
    assert json.loads(capsys.readouterr().out) == result
    assert result["ratio"] == result["seconds_ours"] / result["seconds_gemm_float32"]
    assert len(result["ratio_by_block"]) == 2
    assert result["seconds_all_users"] == pytest.approx(result["seconds_ours"] * 1000 / 96)
    assert result["items_bytes"] == 9000 * 64 * 4
    assert 0 <= result["peak_extra_bytes"] < result["peak_bytes"]


def test_bad_arguments_name_the_value() -> None:
    with pytest.raises(ValueError, match="--items 0: must be from 1"):
        EvalBenchArguments(items=0)
    with pytest.raises(ValueError, match="give --threads 1 with it"):
        EvalBenchArguments(clock="cpu")
