"""Numbers small enough to check on paper."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from losses import Candidates, Positives, Rows, build_loss
from losses.kernels.thresholds import row_thresholds


def problem(
    positive: list[float],
    negatives: list[list[float]],
    positive_logq: list[float] | None = None,
    logq: list[float] | None = None,
    feedback: list[int] | None = None,
) -> tuple[Rows, Candidates]:
    """Rows whose scores are the given numbers: query i is unit vector i, columns the scores."""
    num_rows, num_columns = len(negatives), len(negatives[0])
    identity = torch.eye(num_rows, dtype=torch.float64)
    rows = Rows(
        query_BD=identity.clone().requires_grad_(),
        positive_BD=torch.diag(torch.tensor(positive, dtype=torch.float64)),
        positive_id_B=torch.arange(num_rows),
        positive_logq_B=torch.tensor(positive_logq or [0.0] * num_rows, dtype=torch.float64),
        user_B=torch.arange(num_rows),
        feedback_B=torch.tensor(feedback or [1] * num_rows, dtype=torch.int8),
        weight_B=torch.ones(num_rows),
    )
    candidates = Candidates(
        embedding_CD=torch.tensor(negatives, dtype=torch.float64).T.contiguous().requires_grad_(),
        id_C=100 + torch.arange(num_columns),
        logq_C=torch.tensor(logq or [0.0] * num_columns, dtype=torch.float64),
        user_C=torch.full((num_columns,), -1),
    )
    return rows, candidates


def value_of(name: Any, rows: Rows, candidates: Candidates, **settings: Any) -> float:
    value, _ = build_loss(name, **settings)(rows, candidates)
    return value.item()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_corrected_softmax_of_two_rows() -> None:
    # Scores [[6, 3], [9, 5]] minus log Q [3, 3] and [5, 5] are [[3, 0], [4, 0]]. The positive is
    # column 0 in row 0 and column 1 in row 1: -log sigmoid(3) and -log(1 - sigmoid(4)).
    first = problem([6.0], [[3.0]], positive_logq=[3.0], logq=[3.0])
    second = problem([5.0], [[9.0]], positive_logq=[5.0], logq=[5.0])
    assert value_of("ssm", *first, temperature=1.0) == pytest.approx(-math.log(sigmoid(3)))
    assert value_of("ssm", *second, temperature=1.0) == pytest.approx(-math.log(1 - sigmoid(4)))


def test_softmax_gradients() -> None:
    # One row, z = log 2, negatives 0 and log 5: LSE = log 6, p = 2 / (2 + 6) = 1/4.
    # d/dz = p - 1 = -3/4; on the negatives their shares 1/8 and 5/8.
    rows, candidates = problem([math.log(2)], [[0.0, math.log(5)]])
    value, _ = build_loss("ssm", temperature=1.0)(rows, candidates)
    assert value.item() == pytest.approx(math.log(4))
    (gradient,) = torch.autograd.grad(value, candidates.embedding_CD)
    assert gradient.flatten().tolist() == pytest.approx([1 / 8, 5 / 8])


def test_decoupled_leaves_the_positive_out() -> None:
    # LSE - z = log(1 + 5) - log 2 = log 3; gradients on the negatives 1/6 and 5/6.
    rows, candidates = problem([math.log(2)], [[0.0, math.log(5)]])
    value, _ = build_loss("sl", temperature=1.0)(rows, candidates)
    assert value.item() == pytest.approx(math.log(3))
    (gradient,) = torch.autograd.grad(value, candidates.embedding_CD)
    assert gradient.flatten().tolist() == pytest.approx([1 / 6, 5 / 6])


def test_bilateral_in_both_forms() -> None:
    rows, candidates = problem([0.6], [[0.2, 0.4]])
    # Paper: t1 = 0.5, t2 = 0.2: -0.6/0.5 + (0.2/0.5) * log(exp(0.2/0.2) + exp(0.4/0.2))
    paper = -1.2 + 0.4 * math.log(math.exp(1) + math.exp(2))
    value = value_of("bsl", rows, candidates, temperature=0.5, negative_temperature=0.2)
    assert value == pytest.approx(paper)
    # Authors' code: one t1 = 0.5, exponent 1.22: -1.2 + 1.22 * log(exp(0.4) + exp(0.8))
    authors = -1.2 + 1.22 * math.log(math.exp(0.4) + math.exp(0.8))
    value = value_of("bsl", rows, candidates, temperature=0.5, negative_weight=1.22)
    assert value == pytest.approx(authors)


def test_bilateral_alone_is_not_decoupled() -> None:
    # t = 0.1 and a weight of 1.2: -6 + 1.2 * log(exp(2) + exp(4))
    rows, candidates = problem([0.6], [[0.2, 0.4]])
    value = value_of("bsl", rows, candidates)
    assert value == pytest.approx(-6 + 1.2 * math.log(math.exp(2) + math.exp(4)))
    several = value_of("bsl", rows, candidates, several_positives=True, mask_same_user=True)
    assert several == pytest.approx(value)


def test_which_softmax_a_correction_converges_to() -> None:
    # Item 0 (positive, score 2) and items 1 and 2 (scores 1 and 0), each with 1,000 columns of
    # which log Q = log 1,000 is the expected number; those of item 0 are masked.
    logq = math.log(1000)
    scores = [1.0] * 1000 + [0.0] * 1000
    rows, candidates = problem([2.0], [scores], positive_logq=[logq], logq=[logq] * 2000)
    others = math.log(math.exp(1) + 1)
    # negatives: the full softmax, log(e^2 + e + 1) - 2.
    full = value_of("ssm", rows, candidates, temperature=1.0, correction="negatives")
    assert full == pytest.approx(math.log(math.exp(2) + math.exp(1) + 1) - 2)
    # all: the positive counts e^2 / 1000, so softplus(others - 2 + log 1000), which is SL's value
    # and a constant: the positive is out of its denominator.
    decoupled = value_of("ssm", rows, candidates, temperature=1.0)
    assert decoupled == pytest.approx(others - 2 + logq, abs=3e-3)


def test_improved_logq() -> None:
    # Counts: positive 2 of N = 10, negatives 4 and 1. Q' = 4/(10 - 2) = 1/2 and 1/8.
    # z = log 3 uncorrected; scores 0 and 0: LSE' = log(1/(1/2) + 1/(1/8)) = log 10.
    # n = 2: P = sigmoid(log 3 - log 10 + log 2) = 0.6 / 1.6 = 3/8.
    # Loss (1 - 3/8) * (log 10 - log 3).
    rows, candidates = problem(
        [math.log(3)],
        [[0.0, 0.0]],
        positive_logq=[math.log(0.2)],
        logq=[math.log(0.4), math.log(0.1)],
    )
    value, _ = build_loss("improved_logq", temperature=1.0)(rows, candidates)
    assert value.item() == pytest.approx(5 / 8 * math.log(10 / 3))
    # The weight is not differentiated: on the negatives 5/8 * [2/10, 8/10].
    (gradient,) = torch.autograd.grad(value, candidates.embedding_CD)
    assert gradient.flatten().tolist() == pytest.approx([1 / 8, 1 / 2])


def test_not_to_recommend() -> None:
    # p = 2/8 for both rows. Positive row -log(1/4); disliked row -log(3/4), weighted 0.5.
    rows, candidates = problem(
        [math.log(2), math.log(2)], [[0.0, math.log(5)], [0.0, math.log(5)]], feedback=[1, -1]
    )
    value, statistics = build_loss("ntr", temperature=1.0, disliked_weight=0.5)(rows, candidates)
    assert value.item() == pytest.approx(math.log(4) + 0.5 * math.log(4 / 3))
    assert statistics["disliked_part"].item() == pytest.approx(0.5 * math.log(4 / 3))
    # On the disliked row's negatives -p p_k / (1 - p), p_k = 1/8 and 5/8: -(1/3) * p_k * 0.5.
    (gradient,) = torch.autograd.grad(value, candidates.embedding_CD)
    assert gradient[:, 1].tolist() == pytest.approx([-1 / 48, -5 / 48])


def one_user_with_a_dislike() -> tuple[Rows, Candidates]:
    """User 7 likes item 0 and dislikes item 1; columns: a shared negative and the disliked item."""
    rows, candidates = problem(
        [math.log(2), math.log(5)], [[0.0, math.log(5)], [0.0, math.log(5)]], feedback=[1, -1]
    )
    rows = replace(rows, user_B=torch.tensor([7, 7]))
    ids, seen_by = torch.tensor([100, 1]), torch.tensor([-1, 7])
    return rows, replace(candidates, id_C=ids, visible_to_C=seen_by)


def test_ntr_has_no_disliked_items_among_the_negatives() -> None:
    # Both rows see the shared negative alone, LSE = 0. Positive row: p = 2/3, -log p = log 1.5.
    # Disliked row: p = 5/6, -log(1 - p) = log 6, weighted 0.5.
    rows, candidates = one_user_with_a_dislike()
    value, statistics = build_loss("ntr", temperature=1.0, disliked_weight=0.5)(rows, candidates)
    assert value.item() == pytest.approx(math.log(1.5) + 0.5 * math.log(6))
    assert statistics["negatives_mean"].item() == 1.0
    (gradient,) = torch.autograd.grad(value, candidates.embedding_CD)
    assert gradient[1].tolist() == [0.0, 0.0]


def test_ssm_ntr_has_them_among_the_negatives_of_positive_rows() -> None:
    # Positive row: shared negative and disliked item, LSE = log(1 + 5): log(1 + 6/2) = log 4.
    # Disliked row as in ntr: pushing it down must not raise the user's other dislikes: log 6,
    # alpha = 0.5. On the disliked column: 5 / (2 + 1 + 5) from row 0, nothing from row 1.
    rows, candidates = one_user_with_a_dislike()
    value, statistics = build_loss("ssm_ntr", temperature=1.0, alpha=0.5)(rows, candidates)
    assert value.item() == pytest.approx(math.log(4) + 0.5 * math.log(6))
    assert statistics["disliked_part"].item() == pytest.approx(0.5 * math.log(6))
    (gradient,) = torch.autograd.grad(value, candidates.embedding_CD)
    assert gradient[1].tolist() == pytest.approx([5 / 8, 0.0])


def test_confidently_recommended_dislike_stays_finite() -> None:
    # p within 1e-26 of 1, where log1p(-p) is -inf: -log(1 - p) = log(1 + exp(60)) = 60.
    rows, candidates = problem([60.0], [[0.0]], feedback=[-1])
    assert value_of("ntr", rows, candidates, temperature=1.0) == pytest.approx(60.0)


def test_cosine_contrastive() -> None:
    # Positive part 1 - 0.7; over the margin 0.5 are 0.9 by 0.4, 0.3 not, 0.6 by 0.1: sum 0.5.
    rows, candidates = problem([0.7], [[0.9, 0.3, 0.6]])
    assert value_of("ccl", rows, candidates, margin=0.5) == pytest.approx(0.3 + 0.5)
    weighted = value_of("ccl", rows, candidates, margin=0.5, negative_weight=6.0)
    assert weighted == pytest.approx(0.3 + 6 / 3 * 0.5)


def test_logistic_losses() -> None:
    rows, candidates = problem([1.0], [[2.0, -1.0]])
    # ova is twice softplus at -1 and once at 2
    softplus: dict[float, float] = {x: math.log1p(math.exp(x)) for x in (-2.0, -1.0, 1.0, 2.0)}
    one_vs_all = value_of("ova", rows, candidates, temperature=1.0)
    assert one_vs_all == pytest.approx(2 * softplus[-1.0] + softplus[2.0])
    # BPR: mean of softplus(2 - 1) and softplus(-1 - 1)
    pairwise = value_of("bpr", rows, candidates, temperature=1.0)
    assert pairwise == pytest.approx((softplus[1.0] + softplus[-2.0]) / 2)


def test_log_q_moves_no_score_of_ova_bpr_and_ccl_unless_asked() -> None:
    rows, candidates = problem([0.7], [[0.9, 0.3]], positive_logq=[-1.0], logq=[-2.0, -3.0])
    bare = problem([0.7], [[0.9, 0.3]])
    for name, settings in (("ova", {}), ("bpr", {}), ("ccl", {"margin": 0.5})):
        assert value_of(name, rows, candidates, **settings) == value_of(name, *bare, **settings)
    # ova, t = 1, all: z = 1.7, scores 2.9 and 3.3. bpr: their differences 1.2 and 1.6, halved.
    softplus: dict[float, float] = {x: math.log1p(math.exp(x)) for x in (-1.7, 2.9, 3.3, 1.2, 1.6)}
    corrected = {"temperature": 1.0, "correction": "all"}
    one_vs_all = value_of("ova", rows, candidates, **corrected)
    assert one_vs_all == pytest.approx(softplus[-1.7] + softplus[2.9] + softplus[3.3])
    pairwise = value_of("bpr", rows, candidates, **corrected)
    assert pairwise == pytest.approx((softplus[1.2] + softplus[1.6]) / 2)


def test_several_positives_of_a_user() -> None:
    # Row 0's user has scores 0.6 (own) and, as a column, 0.2: log((e^.6 + e^.2) / 2); the column
    # is no negative of that user. Negative 0.4. t = 1: loss LSE(0.4) - that.
    rows, candidates = problem([0.6], [[0.2, 0.4]])
    users: Tensor = torch.tensor([0, -1])
    candidates = Candidates(candidates.embedding_CD, candidates.id_C, candidates.logq_C, users)
    several = {"several_positives": True, "mask_same_user": True}
    value = value_of("bsl", rows, candidates, temperature=1.0, negative_weight=1.0, **several)
    assert value == pytest.approx(0.4 - math.log((math.exp(0.6) + math.exp(0.2)) / 2))


def test_a_users_positive_is_no_negative_of_his_whoevers_column_it_is() -> None:
    # Rows (user 7, item 0), (user 7, item 1), (user 8, item 1). Columns: item 1 of user 8, item 1
    # sampled, item 0 of user 7, item 5. Row 0 keeps item 5 alone: item 1 is user 7's too, whoever
    # has the column. Row 2 keeps items 0 and 5: log 3 and log 2 make log 5.
    scores = [[math.log(4), math.log(9), math.log(3), math.log(2)]] * 3
    rows, candidates = problem([0.0, 0.0, 0.0], scores)
    rows = replace(rows, user_B=torch.tensor([7, 7, 8]), positive_id_B=torch.tensor([0, 1, 1]))
    ids, users = torch.tensor([1, 1, 0, 5]), torch.tensor([8, -1, 7, -1])
    candidates = replace(candidates, id_C=ids, user_C=users, positives=PAIRS)
    for backend in ("blocked", "auto"):
        value = value_of(
            "sl", rows, candidates, temperature=1.0, mask_same_user=True, backend=backend
        )
        assert value == pytest.approx(2 * math.log(2) + math.log(5))


PAIRS = Positives(user_P=torch.tensor([7, -1]), id_P=torch.tensor([1, 5]))
"""A positive of user 7 that is no column, and one of nobody."""


def test_sl_at_k_by_hand() -> None:
    # Negatives 4, 3, 1 and top_k 2: the threshold is 3. Weight sigmoid((5 - 3) / 2) = sigmoid(1);
    # LSE - z = log(e^4 + e^3 + e) - 5.
    rows, candidates = problem([5.0], [[4.0, 3.0, 1.0]])
    settings: dict[str, Any] = {"temperature": 1.0, "weight_temperature": 2.0, "top_k": 2}
    part = math.log(math.exp(4) + math.exp(3) + math.exp(1)) - 5
    value = value_of("sl_at_k", rows, candidates, **settings)
    assert value == pytest.approx(sigmoid(1) * part)
    value = build_loss("sl_at_k", **settings)(rows, candidates)[0]
    (gradient,) = torch.autograd.grad(value, [candidates.embedding_CD])
    shares = torch.tensor([4.0, 3.0, 1.0], dtype=torch.float64).softmax(0)
    # The threshold's own gradient is none, though it is the score of a column.
    torch.testing.assert_close(gradient[:, 0], sigmoid(1) * shares)


def test_psl_by_hand() -> None:
    # 1 + tanh((s - z) / 2) at s - z = 0 and -1, to the power of 1 / .5.
    rows, candidates = problem([2.0], [[2.0, 1.0]])
    expected = math.log(1.0 + (1 + math.tanh(-0.5)) ** 2)
    assert value_of("psl", rows, candidates, temperature=0.5) == pytest.approx(expected)


def test_talos_by_hand() -> None:
    # Of 3 columns the second, 1, is the threshold at K = 2; the positive is 2 above it.
    rows, candidates = problem([3.0], [[2.0, 1.0, -1.0]])
    above = sigmoid(1) ** 2 + sigmoid(0) ** 2 + sigmoid(-2) ** 2
    expected = math.log(above) - 2 * math.log(sigmoid(2))
    value = value_of("talos", rows, candidates, temperature=0.5, top_k=2)
    assert value == pytest.approx(expected)


def test_a_column_counts_as_the_items_it_stands_for() -> None:
    """Of a step's expected columns: log Q of -log 4 is one column for four of the catalog's items.
    So K = 5 lies in the second of these columns, where without log Q it is the last."""
    logq = [-math.log(4.0)] * 3
    rows, candidates = problem([0.0], [[3.0, 2.0, 1.0]], logq=logq)
    for corrected, expected in ((True, 2.0), (False, 1.0)):
        assert row_thresholds(rows, candidates, 5, corrected).item() == expected
    assert row_thresholds(rows, candidates, 4, corrected=True).item() == 3.0
    assert row_thresholds(rows, candidates, 1, corrected=True).item() == 3.0
    candidates = replace(candidates, copies_C=torch.tensor([1.0, 3.0, 1.0]))
    assert row_thresholds(rows, candidates, 4, corrected=False).item() == 2.0
    none = replace(candidates, id_C=torch.full((3,), -1))
    assert row_thresholds(rows, none, 4, corrected=True).item() == 0.0


def test_thresholds_of_many_columns_are_those_of_a_sample_in_any_order() -> None:
    """Over 4,096 columns some are looked at, by their items: the same whatever the order; and the
    quantile is that of all, within what 4,096 draws tell of the 2 % highest."""
    generator = torch.Generator().manual_seed(0)
    identity = torch.eye(1, dtype=torch.float64)
    rows, _ = problem([0.0], [[0.0]])
    score_C = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    id_C = torch.randperm(20_000, generator=generator)
    columns = Candidates(score_C, id_C, torch.zeros(20_000), torch.full((20_000,), -1))
    found = row_thresholds(rows, columns, 400, corrected=True)
    assert found.item() == pytest.approx(score_C.quantile(0.98).item(), abs=0.15)
    order = torch.randperm(20_000, generator=generator)
    moved = replace(columns, embedding_CD=score_C[order] @ identity, id_C=id_C[order])
    assert torch.equal(row_thresholds(rows, moved, 400, corrected=True), found)
