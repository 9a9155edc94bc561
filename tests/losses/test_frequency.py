"""log Q: from counts, of mixtures, and estimated from the stream."""

import math

import pytest
import torch

from losses import StreamingFrequency, log_q_from_counts, log_q_mixture, log_q_uniform


def test_counts_are_exact_for_ten_million_items() -> None:
    count = torch.tensor([1, 2, 2**31, 2**53 + 2])
    total = 2**55
    expected = [math.log(c / total) for c in count.tolist()]
    assert log_q_from_counts(count, total).tolist() == pytest.approx(expected, rel=1e-7)
    assert log_q_uniform(10_000_000) == pytest.approx(-math.log(1e7))


def test_mixture_by_hand() -> None:
    # 3 in-batch draws with Q = [0.5, 0.1] and 1 uniform of 4 items:
    # (3 * 0.5 + 0.25) / 4 = 0.4375 and (3 * 0.1 + 0.25) / 4 = 0.1375
    popular = torch.tensor([0.5, 0.1]).log()
    uniform = torch.full((2,), log_q_uniform(4))
    mixed = log_q_mixture(torch.stack([popular, uniform]), torch.tensor([3, 1]))
    assert mixed.exp().tolist() == pytest.approx([0.4375, 0.1375])


def test_mixture_with_an_item_one_source_never_draws() -> None:
    never = torch.tensor([-math.inf])
    mixed = log_q_mixture(torch.stack([never, torch.tensor([math.log(0.1)])]), torch.tensor([3, 1]))
    assert mixed.exp().item() == pytest.approx(0.025)


def test_streaming_learns_the_gap() -> None:
    frequency = StreamingFrequency(1 << 14, rate=0.1)
    for step in range(1, 301):
        seen = [0] + ([1] if step % 4 == 0 else []) + ([2] if step % 25 == 0 else [])
        frequency.update(torch.tensor(seen))
    # Per step 1, 1/4 and 1/25; two draws a step halve each.
    expected = [math.log(1 / gap / 2) for gap in (1, 4, 25)]
    assert frequency.log_q(torch.tensor([0, 1, 2]), 2).tolist() == pytest.approx(expected, abs=0.05)


def test_streaming_by_hand() -> None:
    # rate 0.5, seen at steps 2 and 5: first gap 2, then 2 + 0.5 * (3 - 2) = 2.5.
    frequency = StreamingFrequency(1 << 10, rate=0.5)
    for ids in ([1], [7], [1], [1], [7]):
        frequency.update(torch.tensor(ids))
    assert frequency.log_q(torch.tensor([7]), 1).item() == pytest.approx(-math.log(2.5))


def test_streaming_counts_an_id_once_a_batch_and_skips_padding() -> None:
    once, often = StreamingFrequency(1 << 10), StreamingFrequency(1 << 10)
    for _ in range(5):
        once.update(torch.tensor([3, 5]))
        often.update(torch.tensor([3, 5, 3, 3, -1, 5]))
    assert torch.equal(once.gap_HN, often.gap_HN)
    assert torch.equal(once.last_step_HN, often.last_step_HN)


def test_streaming_state_survives_a_checkpoint() -> None:
    frequency = StreamingFrequency(1 << 10, seed=1)
    for step in range(20):
        frequency.update(torch.arange(step % 5 + 1))
    copy = StreamingFrequency(1 << 10, seed=2)
    copy.load_state_dict(frequency.state_dict())
    ids = torch.arange(8)
    assert torch.equal(copy.log_q(ids, 4), frequency.log_q(ids, 4))


def test_large_ids_spread_over_buckets() -> None:
    frequency = StreamingFrequency(1 << 12)
    bucket_HX = frequency._buckets(torch.arange(2**40, 2**40 + 4096))
    # 4096 ids at random in 4096 buckets fill 1 - 1/e of them.
    filled = [row.unique().numel() / 4096 for row in bucket_HX]
    assert all(share == pytest.approx(1 - 1 / math.e, abs=0.05) for share in filled)
    assert not torch.equal(bucket_HX[0], bucket_HX[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "num_buckets is 0"), ((8, 0), "num_hashes 0"), ((8, 1, 1.5), "rate is 1.5")],
)
def test_bad_settings(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamingFrequency(*arguments)
