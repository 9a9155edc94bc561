"""What a rank of 64 and of 512 sends, recorded, against what `tandem plan` says of it."""

import pytest

from tests.scale import Workload, measure
from tests.scale_relay import of_discovery

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("ranks", [64, 512])
def test_a_plan_counts_the_bytes_that_a_step_sends(ranks: int) -> None:
    found = measure(ranks, Workload(users=20_000, items=5_000, dim=16, rows=4096))
    given, others = found["bytes given"], ranks - 1

    def of(*words: str) -> int:
        names = [name for name in given if all(word in name for word in words)]
        assert len(names) == 1, (words, given)
        return given[names[0]]

    # Of an all-gather each rank sends its part to all others; of a reduce-scatter and an
    # all-to-all all but its own part; of an all-reduce about twice that.
    away = others / ranks
    plan = found["tandem plan"]
    pooled = of("reduce_scatter", "tables") * away + of("allgather", "tables") * others
    assert plan["sent_embeddings"] == int(pooled)
    assert plan["sent_tower_gradients"] == pytest.approx(2 * of("towers") * away, abs=1)
    ids = of("alltoall", "tables") * away + of("allgather", "ids, gather") * others
    assert plan["sent_ids"] == pytest.approx(ids, rel=0.01)
    # Ranks send as many columns as the one with the most.
    columns = 2 * of("allgather", "numbers, gather") * others
    assert columns / 1.8 < plan["sent_candidates"] < columns


def test_discovery_lists_512_ranks() -> None:
    assert of_discovery(512)["list_bytes"] < 50_000
