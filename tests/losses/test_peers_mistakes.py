"""A test for each mistake seen in other projects' losses.

Their other mistakes: negatives that never cross devices, tests/losses/test_ranks.py; sampled
candidates called recall and unbounded memory, tests/retrieval/test_evaluate.py and test_topk.py;
checkpoints that cannot change world size, tests/test_training.py.
"""

import math
from dataclasses import replace

import pytest
import torch

from losses import (
    Candidates,
    StreamingFrequency,
    build_loss,
    gather_with_gradient,
    gather_without_gradient,
    log_q_from_counts,
)
from tests.distributed import run_ranks
from tests.losses.cases import leaves, make_case
from tests.losses.test_by_hand import problem, value_of


def test_log_q_is_not_clipped() -> None:
    # A clip at 1e-6 gives -13.8 to every item of a catalog over a million.
    log_q = log_q_from_counts(torch.tensor([1, 1000]), 10_000_000_000)
    assert log_q.tolist() == pytest.approx([math.log(1e-10), math.log(1e-7)], rel=1e-6)


def test_log_q_lowers_the_score_of_popular_columns() -> None:
    # The sign: a popular negative (log Q near 0) must weigh less than a rare one.
    popular = problem([0.0], [[1.0]], logq=[math.log(0.5)])
    rare = problem([0.0], [[1.0]], logq=[math.log(0.001)])
    settings = {"temperature": 1.0, "correction": "negatives"}
    assert value_of("ssm", *popular, **settings) < value_of("ssm", *rare, **settings)
    # And the value: softplus(1 - log 0.5 - 0) = log(1 + 2e)
    assert value_of("ssm", *popular, **settings) == pytest.approx(math.log(1 + 2 * math.e))


def test_duplicates_of_the_positive_are_masked() -> None:
    rows, candidates = problem([1.0], [[0.5, 0.9, 0.5]])
    without = problem([1.0], [[0.5, 0.5]])
    duplicate = replace(candidates, id_C=torch.tensor([100, 0, 102]))  # column 1 is row 0's item
    assert value_of("ssm", rows, duplicate) == pytest.approx(value_of("ssm", *without))


def test_ids_are_int64_all_the_way() -> None:
    # 2**24 and 2**24 + 1 are one number in float32; beyond 2**53 in float64 too.
    for base in (2**24, 2**53):
        rows, candidates = problem([1.0], [[0.5, 0.7]])
        rows = replace(rows, positive_id_B=torch.tensor([base]))
        candidates = replace(candidates, id_C=torch.tensor([base, base + 1]))
        _, statistics = build_loss("ssm")(rows, candidates)
        assert statistics["negatives_mean"].item() == 1
        with pytest.raises(ValueError, match=r"ids must be torch.int64"):
            replace(candidates, id_C=candidates.id_C.to(torch.float64))


def test_candidates_get_gradients() -> None:
    # Detached candidates train a different model, silently.
    rows, candidates = make_case()
    value, _ = build_loss("ssm")(rows, candidates)
    for gradient in torch.autograd.grad(value, leaves(rows, candidates)):
        assert gradient.abs().sum() > 0


def gathered_on_every_rank(rows_a_rank: int) -> tuple[list[int], list[list[int]]]:
    first = torch.distributed.get_rank() * rows_a_rank
    id_B = torch.arange(first, first + rows_a_rank)
    embedding_BD = id_B[:, None].float().repeat(1, 2)
    gathered_CD = gather_with_gradient(embedding_BD)
    return gather_without_gradient(id_B).tolist(), gathered_CD.tolist()


def test_gathered_ids_name_their_embeddings() -> None:
    # One peer's gather put its own rank's rows first and labelled them by rank.
    for ids, embeddings in run_ranks(4, gathered_on_every_rank, 3):
        assert ids == list(range(12))
        assert embeddings == [[float(each)] * 2 for each in ids]


def test_correction_modes_are_named_and_never_mixed() -> None:
    rows, candidates = problem([1.0], [[0.5]], positive_logq=[-2.0], logq=[-3.0])
    # t = 1. all: softplus(0.5 + 3 - (1 + 2)); negatives: softplus(0.5 + 3 - 1); none: softplus(-.5)
    for correction, difference in (("all", 0.5), ("negatives", 2.5), ("none", -0.5)):
        value = value_of("ssm", rows, candidates, temperature=1.0, correction=correction)
        assert value == pytest.approx(math.log1p(math.exp(difference)))


def test_correction_of_all_ignores_the_constant_of_q() -> None:
    # Per draw and per step Q differ by a constant: it cancels where every score is corrected.
    rows, candidates = make_case()
    value, _ = build_loss("ssm")(rows, candidates)
    moved = replace(rows, positive_logq_B=rows.positive_logq_B + 3)
    restricted = candidates.visible_to_C
    assert restricted is not None
    shifted = replace(candidates, logq_C=candidates.logq_C + 3)
    same, _ = build_loss("ssm")(moved, shifted)
    assert same.item() == pytest.approx(value.item())


def test_streaming_collisions_do_not_raise_frequency_of_all() -> None:
    # One hash row of few buckets confuses items; the smallest rate over several rows does not.
    single = StreamingFrequency(512, num_hashes=1)
    several = StreamingFrequency(512, num_hashes=5)
    rare = torch.arange(1000, 1020)
    for step in range(400):
        common = torch.arange(100)
        ids = torch.cat([common, rare]) if step % 40 == 0 else common
        single.update(ids)
        several.update(ids)
    wanted = math.log(1 / 40 / 100.5)
    error = [(module.log_q(rare) - wanted).abs().mean().item() for module in (single, several)]
    assert error[1] < 0.15
    assert error[1] < error[0]


def test_sources_are_concatenated_with_their_own_log_q() -> None:
    _, first = make_case(num_columns=4)
    _, second = make_case(num_columns=6, restricted=False, seed=1)
    joined = Candidates.concatenate([first, second])
    assert torch.equal(joined.logq_C, torch.cat([first.logq_C, second.logq_C]))
    assert joined.visible_to_C is not None
    assert joined.visible_to_C[4:].tolist() == [-1] * 6
