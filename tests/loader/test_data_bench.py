"""`tandem bench data` counts what it says, over the rows and over packed sequences."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

from tests.loader.conftest import expected_rows
from trainer.bench.data import DataBenchArguments, measure
from trainer.data.schema import Dataset
from trainer.loader.order import DEFAULT_STREAMS


def test_values_of_sequences_beside_the_bare_scan(dataset: Dataset) -> None:
    whole = replace(dataset, history_length=1000)
    found = measure(whole, DataBenchArguments(repeats=1))
    longest: dict[int, int] = defaultdict(int)
    for user, _, feedback, history, _ in expected_rows(whole):
        longest[user] = max(longest[user], len(history) if feedback > 0 else 0)
    sequences = found["sequences"]
    again = DEFAULT_STREAMS * max(longest.values())  # of users between two streams
    assert 1000 < sum(longest.values()) <= sequences["values"] <= sum(longest.values()) + again
    assert sequences["bare"] in ("events scanner", "events iter_batches")
    quotient = sequences["values_per_second"] / sequences["bare_values_per_second"]
    assert sequences["ratio"] == pytest.approx(quotient)
    assert found["ratio"] == pytest.approx(found["ratios"][0])


def test_data_without_times_have_no_sequences(dataset: Dataset) -> None:
    assert (
        measure(replace(dataset, history_length=0), DataBenchArguments(repeats=1))["sequences"]
        is None
    )
