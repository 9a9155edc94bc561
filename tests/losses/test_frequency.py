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


def test_streaming_by_hand() -> None:
    # rate 0.5. Id 7 comes twice at step 2 and once at step 5. Steps between: 2, then 3, summed
    # 0.5 * 2 + 3 = 4; occurrences 0.5 * 2 + 1 = 2: half an occurrence a step. Ids a step, with the
    # same weights, oldest first: (1*1/16 + 2*1/8 + 1*1/4 + 1*1/2 + 2*1) / (31/16) = 49/31.
    frequency = StreamingFrequency(1 << 10, rate=0.5)
    for ids in ([1], [7, 7], [1], [1], [7, 1]):
        frequency.update(torch.tensor(ids))
    assert frequency.log_q(torch.tensor([7])).item() == pytest.approx(math.log(0.5 / (49 / 31)))


def test_streaming_does_not_saturate_at_one_a_step() -> None:
    # Half of each batch of 64 is one item: per draw 1/2, where once a step would be 1/64.
    frequency = StreamingFrequency(1 << 12)
    for step in range(100):
        frequency.update(torch.cat([torch.full((32,), 5), 100 + torch.arange(32) + 32 * step]))
    assert frequency.log_q(torch.tensor([5])).item() == pytest.approx(math.log(1 / 2), abs=0.01)


@pytest.mark.parametrize("batch_size", [512, 2048])
def test_streaming_is_right_at_the_head_and_in_the_tail(batch_size: int) -> None:
    """After 1,000 steps of a Zipf catalog, from one occurrence in ten steps to hundreds a step; and
    an item of which one to three come a step, where a mean of gaps is .2 nats off."""
    count_I = (10_000 / torch.arange(1, 401)).long()
    log_i = torch.repeat_interleave(torch.arange(400), count_I)
    generator = torch.Generator().manual_seed(0)
    frequency = StreamingFrequency(4 * 400)
    batches: list[torch.Tensor] = []
    for _ in range(1000):
        if not batches:
            batches = list(log_i[torch.randperm(len(log_i), generator=generator)].split(batch_size))
        frequency.update(batches.pop())  # an epoch begins with its short batch
    error_I = frequency.log_q(torch.arange(400)) - log_q_from_counts(count_I, len(log_i))
    assert max(float(part.abs().mean()) for part in error_I.chunk(5)) < 0.1
    assert error_I[:20].abs().mean() < 0.04 and error_I[:20].abs().max() < 0.08


def zipf(num_items: int, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Ids drawn by 1 / (rank + 1): the inverse of log(1 + rank)."""
    uniform = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    return (uniform * math.log(num_items + 1)).exp().long().clamp(max=num_items) - 1


@pytest.mark.parametrize("num_buckets", [1 << 20, 157_000], ids=["spare", "crowded"])
def test_streaming_is_right_for_drawn_and_for_seen_ids(num_buckets: int) -> None:
    """Against the stream's own counts after 1,000 steps, in every class of how often an item came;
    "crowded" buckets hold .7 seen items each, as 2**24 of them do of 100M items at 64k a step."""
    generator = torch.Generator().manual_seed(0)
    frequency, num_items = StreamingFrequency(num_buckets), 400_000
    all_drawn = [zipf(num_items, 512, generator) for _ in range(1000)]
    for drawn in all_drawn:
        frequency.update(drawn + 2**40)
    count_I = torch.bincount(torch.cat(all_drawn), minlength=num_items)
    seen = torch.nonzero(count_I)[:, 0]
    if num_buckets < 1 << 20:
        assert 0.6 < len(seen) / num_buckets < 0.8
    error = frequency.log_q(drawn + 2**40) - log_q_from_counts(count_I[drawn], 512_000)
    times = count_I[drawn]
    for least, most in ((1, 1), (2, 9), (10, 99), (100, 999), (1000, 512_000)):
        among = (times >= least) & (times <= most)
        assert error[among].abs().mean() < 0.1, (least, most)
    error = frequency.log_q(seen + 2**40) - log_q_from_counts(count_I[seen], 512_000)
    assert error.abs().mean() < (0.02 if num_buckets == 1 << 20 else 0.4)  # collisions only add
    assert error.mean() > -0.02


def test_an_id_that_stays_away_is_rarer_by_the_step() -> None:
    # Once in the first 10 steps; asked after 40 it came once in 40 steps of two ids.
    frequency = StreamingFrequency(1 << 10)
    for step in range(40):
        frequency.update(torch.tensor([7 if step == 9 else 100 + step, 5]))
    assert frequency.log_q(torch.tensor([7])).item() == pytest.approx(math.log(1 / 80))


def test_streaming_follows_what_drifts() -> None:
    """Each item's log popularity moves by up to 1.6 nats in 1,000 steps: the estimate of a drawn
    column is within .1 nat of what it is by then, on average, at the head and in the tail."""
    generator = torch.Generator().manual_seed(0)
    frequency = StreamingFrequency(4 * 400)
    phase_I = torch.rand(400, generator=generator) * 2 * math.pi
    for step in range(1000):
        log_weight_I = torch.sin(2 * math.pi * step / 4000 + phase_I)
        chance_I = torch.softmax(log_weight_I - torch.arange(1.0, 401.0).log(), 0)
        frequency.update(torch.multinomial(chance_I, 2048, True, generator=generator))
    error_I = (frequency.log_q(torch.arange(400)) - chance_I.log()).abs()
    assert (error_I * chance_I).sum() < 0.06
    assert error_I[:20].mean() < 0.06 and error_I[200:].mean() < 0.12


def test_streaming_skips_padding() -> None:
    padded, plain = StreamingFrequency(1 << 10), StreamingFrequency(1 << 10)
    for _ in range(5):
        plain.update(torch.tensor([3, 5, 3]))
        padded.update(torch.tensor([-1, 3, 5, -1, 3]))
    ids = torch.tensor([3, 5, 4])
    assert torch.equal(plain.log_q(ids), padded.log_q(ids))


def test_an_id_never_seen_came_once_at_most() -> None:
    frequency = StreamingFrequency(1 << 10)
    for step in range(50):
        frequency.update(torch.tensor([step % 2, 2]))
    assert frequency.log_q(torch.tensor([777])).item() == pytest.approx(math.log(1 / 100))


def test_streaming_state_survives_a_checkpoint() -> None:
    frequency = StreamingFrequency(1 << 10, seed=1)
    for step in range(20):
        frequency.update(torch.arange(step % 5 + 1))
    copy = StreamingFrequency(1 << 10, seed=2)
    copy.load_state_dict(frequency.state_dict())
    ids = torch.arange(8)
    assert torch.equal(copy.log_q(ids), frequency.log_q(ids))


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
