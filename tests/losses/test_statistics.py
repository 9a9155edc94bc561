"""What a loss says of itself, against the same from the dense score matrix.

Shapes: B rows, C columns.
"""

import math
from typing import Any

import pytest
import torch

from losses import Candidates, Rows, build_loss
from tests.losses.cases import make_case
from tests.losses.reference import written_out

TEMPERATURE = 0.2


def statistics_of(name: Any, rows: Rows, candidates: Candidates, **chosen: Any) -> dict[str, float]:
    loss = build_loss(name, temperature=TEMPERATURE, **chosen)
    _, statistics = loss(rows, candidates)
    return {key: float(value) for key, value in statistics.items()}


def spread(value: torch.Tensor) -> float:
    return float(value.std(correction=0))


@pytest.mark.parametrize("correction", ["all", "negatives", "none"])
def test_scores_and_parts_are_those_of_the_dense_matrix(correction: Any) -> None:
    rows, candidates = make_case(restricted=False)
    found = statistics_of("ssm", rows, candidates, correction=correction)
    real_B = (rows.weight_B > 0) & (rows.feedback_B > 0)
    seen_C = candidates.id_C >= 0
    query_BD = rows.query_BD[real_B].detach()
    own_B = (query_BD * rows.positive_BD[real_B].detach()).sum(dim=1) / TEMPERATURE
    score_BC = query_BD @ candidates.embedding_CD[seen_C].detach().T / TEMPERATURE
    logq_C = candidates.logq_C[seen_C]
    kept_BC = candidates.id_C[seen_C] != rows.positive_id_B[real_B][:, None]
    corrected_BC = score_BC - (0.0 if correction == "none" else logq_C)
    share_B = rows.weight_B[real_B].double() / rows.weight_B[real_B].double().sum()

    def mean(value_B: torch.Tensor) -> torch.Tensor:
        return (value_B * share_B).sum()

    def spread_BX(value_BX: torch.Tensor) -> float:
        each_B = value_BX.reshape(len(share_B), -1)
        middle = mean(each_B.mean(dim=1))
        return float(mean((each_B - middle).square().mean(dim=1)).sqrt())

    term_B = own_B - (rows.positive_logq_B[real_B] if correction == "all" else 0.0)
    reduction_B = corrected_BC.masked_fill(~kept_BC, -math.inf).logsumexp(dim=1)
    expected = {
        "positive_score_mean": mean(own_B),
        "positive_score_spread": spread_BX(own_B),
        "negative_score_mean": mean(score_BC.mean(dim=1)),
        "negative_score_spread": spread_BX(score_BC),
        "positive_term_mean": mean(term_B),
        "reduction_mean": mean(reduction_B),
        "negatives_mean": mean(kept_BC.sum(dim=1).double()),
        "hit_share": 1 - mean(kept_BC.double().mean(dim=1)),
        "empty_rows": 0.0,
        "logq_mean": logq_C.mean(),
        "logq_spread": spread(logq_C),
        "temperature": TEMPERATURE,
        "negative_temperature": TEMPERATURE,
        "disliked_part": 0.0,
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()})


@pytest.mark.parametrize("name", ["ssm", "ova"])
def test_columns_that_stand_for_several_are_read_as_so_many(name: str) -> None:
    rows, candidates = make_case(num_columns=20, restricted=False, copies=True)
    apart = written_out(candidates, candidates.copies_C)
    found = statistics_of(name, rows, candidates, mask_same_user=True)
    expected = statistics_of(name, rows, apart, mask_same_user=True)
    assert found == pytest.approx(expected)


def test_the_loss_is_made_of_its_parts() -> None:
    """Softmax: log(exp(positive) + exp(reduction)) - positive, a row."""
    rows, candidates = make_case(num_rows=1, restricted=False, seed=3)
    rows.weight_B.fill_(1.0), rows.feedback_B.fill_(1)
    found = statistics_of("ssm", rows, candidates)
    value, _ = build_loss("ssm", temperature=TEMPERATURE)(rows, candidates)
    both = (found["positive_term_mean"], found["reduction_mean"])
    expected = float(torch.tensor(both, dtype=torch.float64).logsumexp(0)) - both[0]
    assert value.item() == pytest.approx(expected)


def test_the_negatives_spread_is_sampled_where_there_are_many() -> None:
    """Columns drawn alike: a sample's spread is near that of all."""
    rows, candidates = make_case(num_rows=600, num_columns=3000, num_ids=999, restricted=False)
    found = statistics_of("ssm", rows, candidates)
    score_BC = rows.query_BD.detach() @ candidates.embedding_CD.detach().T / TEMPERATURE
    assert found["negative_score_spread"] == pytest.approx(spread(score_BC), rel=0.1)


def test_disliked_rows_are_a_part_of_their_own() -> None:
    rows, candidates = make_case(restricted=False)
    loss = build_loss("ntr", temperature=TEMPERATURE)
    value, statistics = loss(rows, candidates)
    rows.weight_B.masked_fill_(rows.feedback_B > 0, 0.0)
    only_disliked, _ = loss(rows, candidates)
    assert 0 < only_disliked.item() < value.item()
    assert float(statistics["disliked_part"]) == pytest.approx(only_disliked.item())
