"""The benchmark's ways find what they are said to find."""

from typing import Any

import numpy as np
import pytest

from trainer.base.mistake import Mistake
from trainer.bench.serve import ServeBenchArguments, measure


def test_ways_are_timed_and_compared() -> None:
    found = measure(ServeBenchArguments(items=3000, dim=16, k=10, requests=4, passing=0.1))
    ways = found["ways"]
    ours = {"float32", "float16", "int8", "float32 without codes", "float32, filtered"}
    assert set(ways) == ours | {"FAISS flat"}
    assert ways["float32"]["recall"] == ways["float32, filtered"]["recall"] == 1
    assert ways["FAISS flat"]["recall"] == 1 and ways["FAISS flat"]["ratio"] == 1
    assert 0.8 < ways["int8"]["recall"] <= ways["float16"]["recall"] + 0.1
    assert all(0 < way["p50_ms"] <= way["p99_ms"] for way in ways.values())
    assert np.isfinite(found["load"])


def test_clients_that_ask_at_once_are_all_answered() -> None:
    arguments = ServeBenchArguments(items=3000, dim=16, k=10, requests=30, clients=4, ivf=True)
    found = measure(arguments)
    assert set(found["at_once"]) == set(found["ways"]) and "FAISS IVF" in found["ways"]
    assert 0.5 < found["ways"]["FAISS IVF"]["recall"] <= 1
    for way in found["at_once"].values():
        assert way["requests_per_second"] > 0 and 0 < way["p50_ms"] <= way["p99_ms"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"passing": 0.0}, "--passing"),
        ({"k": 11, "items": 10}, "--k 11"),
        ({"items": 0}, "--items"),
        ({"clients": -1}, "--clients"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        ServeBenchArguments(**given)
