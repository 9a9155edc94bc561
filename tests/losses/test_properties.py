"""What must hold whatever the numbers: masks, extremes, gradcheck, precision."""

import copy
import math
import pickle
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from losses import LOSSES, Candidates, LossName, Rows, build_loss, pairs, scores
from losses.formulas.bsl import BilateralSoftmax
from tests.losses.cases import cast, leaves, make_case, reference, streamed

NAMES = get_args(LossName)


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_negatives_contribute_nothing_and_no_nan(name: Any) -> None:
    rows, candidates = make_case(num_rows=4, num_columns=6, restricted=False)
    same = torch.full_like(rows.positive_id_B, 3)
    rows = replace(rows, positive_id_B=same, weight_B=torch.ones(4))
    candidates = replace(candidates, id_C=torch.full_like(candidates.id_C, 3))
    value, statistics = build_loss(name)(rows, candidates)
    gradients = torch.autograd.grad(value, leaves(rows, candidates), materialize_grads=True)
    assert torch.isfinite(value)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert gradients[2].abs().sum() == 0
    assert statistics["negatives_mean"] == 0
    if build_loss(name).loss.element == "exp":
        assert value == 0
        assert statistics["empty_rows"] == (rows.feedback_B > 0).sum() or name in ("ntr", "ssm_ntr")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_extreme_scores(name: Any, scale: float) -> None:
    # Inner products up to 900 at temperature 0.01: scores up to 90,000.
    settings = {} if name == "ccl" else {"temperature": 0.01}
    rows, candidates = make_case(dtype=torch.float32, scale=scale, num_rows=20, num_columns=50)
    expected_value, expected = reference(name, settings, rows, candidates)
    value, gradients = streamed(name, settings, rows, candidates, block_columns=16)
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-4, abs=1e-4)
    if scale < 1:  # at 90,000 float32 scores are off by 0.005, and so are the shares
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert (gradient - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp(min=1)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name != "improved_logq" and not LOSSES[name].has_threshold]
)
def test_gradcheck(name: Any) -> None:
    # improved_logq stops a gradient by design, which is checked by hand; so does a threshold.
    rows, candidates = make_case(num_rows=4, num_columns=6, width=2, num_ids=4)
    loss = build_loss(name, block_columns=4)

    def value(query: Any, positive: Any, candidate: Any) -> torch.Tensor:
        moved = replace(rows, query_BD=query, positive_BD=positive)
        result, _ = loss(moved, replace(candidates, embedding_CD=candidate))
        return result

    assert torch.autograd.gradcheck(value, leaves(rows, candidates), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ssm", {"temperature": 0.2}),
        ("bsl", {"temperature": 0.2, "negative_temperature": 0.1}),
        ("improved_logq", {"temperature": 0.3}),
        ("bpr", {"temperature": 0.5}),
    ],
)
def test_learned_temperature_has_the_gradient_of_the_reference(
    name: Any, settings: dict[str, float]
) -> None:
    from tests.losses.reference import ReferenceSettings, dense_loss

    rows, candidates = make_case()
    loss = build_loss(name, **settings, learn_temperature=True).double()  # type: ignore[arg-type]
    value, _ = loss(rows, candidates)
    gradients = torch.autograd.grad(value, list(loss.log_scales))
    scales = [parameter.detach().clone().requires_grad_() for parameter in loss.log_scales]
    keys = ("temperature", "negative_temperature")
    given = {key: torch.exp(-scale) for key, scale in zip(keys, scales, strict=False)}
    chosen: Any = {"correction": loss.correction, **given}
    expected = torch.autograd.grad(
        dense_loss(ReferenceSettings(name=name, **chosen), rows, candidates), scales
    )
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if LOSSES[name].element == "exp"])
def test_no_hardness_is_the_plain_loss_and_much_of_it_the_hardest_negative(name: Any) -> None:
    """A hardness that is next to none gives the plain value; sl with an extreme one has the hardest
    negative's share alone, and its sum the size of all: log n + s of the hardest."""
    rows, candidates = make_case(restricted=False)
    plain, _ = build_loss(name)(rows, candidates)
    almost, _ = build_loss(name, hardness=1e-9)(rows, candidates)
    assert almost.item() == pytest.approx(plain.item(), rel=1e-7)
    if name != "sl":
        return
    settings: dict[str, Any] = {"temperature": 1.0, "correction": "none", "hardness": 100.0}
    one_row = replace(rows, weight_B=torch.zeros_like(rows.weight_B))
    one_row.weight_B[0], one_row.feedback_B[0] = 1.0, 1
    value, _ = build_loss(name, **settings)(one_row, candidates)
    (gradient_CD,) = torch.autograd.grad(value, [candidates.embedding_CD])
    seen_C = (candidates.id_C >= 0) & (candidates.id_C != rows.positive_id_B[0])
    score_C = (candidates.embedding_CD @ rows.query_BD[0]).detach().masked_fill(~seen_C, -9.0)
    query_D = rows.query_BD[0].detach()
    torch.testing.assert_close(gradient_CD.sum(0), query_D)
    torch.testing.assert_close(gradient_CD[score_C.argmax()], query_D, rtol=0.3, atol=0.05)
    own = (rows.query_BD[0] * rows.positive_BD[0]).sum().item()
    largest = score_C.max().item() + math.log(seen_C.sum().item()) - own
    assert largest - 0.1 < value.item() <= largest + 1e-9


def test_overlapping_masks_count_a_column_once() -> None:
    # Column 0 is hit by id, by user and twice by history; column 2 by history alone.
    rows = Rows(
        query_BD=torch.eye(2),
        positive_BD=torch.eye(2),
        positive_id_B=torch.tensor([7, 8]),
        positive_logq_B=torch.zeros(2),
        user_B=torch.tensor([1, 2]),
        feedback_B=torch.ones(2, dtype=torch.int8),
        weight_B=torch.tensor([1.0, 0.0]),
        history_values=torch.tensor([7, 7, 9]),
        history_offsets=torch.tensor([0, 3, 3]),
    )
    candidates = Candidates(
        embedding_CD=torch.ones(4, 2),
        id_C=torch.tensor([7, 5, 9, 6]),
        logq_C=torch.zeros(4),
        user_C=torch.tensor([1, -1, -1, -1]),
    )
    loss = build_loss("ssm", mask_same_user=True, mask_history=True, block_columns=3)
    _, statistics = loss(rows, candidates)
    assert statistics["negatives_mean"].item() == 2
    assert statistics["hit_share"].item() == 0.5


def test_history_mask_needs_histories() -> None:
    rows, candidates = make_case()
    with pytest.raises(ValueError, match="rows carry no history"):
        build_loss("ssm", mask_history=True)(replace(rows, history_values=None), candidates)


@pytest.mark.parametrize(("name", "settings"), [("ssm", {}), ("bsl", {}), ("ccl", {"margin": 0.1})])
def test_bf16_gradients_are_close(name: Any, settings: dict[str, Any]) -> None:
    rows, candidates = make_case(dtype=torch.float32, num_rows=64, num_columns=200, width=32)
    expected_value, expected = reference(name, settings, rows, candidates)
    chosen = {**settings, "precision": "bf16"}
    value, gradients = streamed(name, chosen, rows, candidates, backend="blocked")
    # Scores are float32, so the value is exact; operands of the gradients carry 8 bits.
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-5)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert (gradient - wanted).norm() < 0.01 * wanted.norm()


def test_bf16_embeddings_are_taken_as_they_are() -> None:
    rows, candidates = make_case(dtype=torch.float32)
    rows, candidates = cast(rows, candidates, torch.bfloat16)
    expected_value, _ = reference("ssm", {}, *cast(rows, candidates, torch.float32))
    value, _ = build_loss("ssm")(rows, candidates)
    # Log Q was rounded to bf16 by the cast as well; float32 from there on.
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_padding_may_hold_anything(name: Any) -> None:
    """Embeddings and log Q that are NaN or infinite, in padding rows and columns alone."""
    rows, candidates = make_case()
    padding_B, padding_C = rows.weight_B == 0, candidates.id_C < 0
    loss = build_loss(name)
    value, statistics = loss(rows, candidates)
    expected = torch.autograd.grad(value, leaves(rows, candidates))
    for wild in (math.nan, -math.inf, math.inf):
        spoiled = [
            each.detach().masked_fill(where[:, None], wild).requires_grad_()
            for each, where in zip(
                leaves(rows, candidates), (padding_B, padding_B, padding_C), strict=True
            )
        ]
        wild_rows = replace(
            rows,
            query_BD=spoiled[0],
            positive_BD=spoiled[1],
            positive_logq_B=rows.positive_logq_B.masked_fill(padding_B, wild),
        )
        wild_columns = replace(
            candidates,
            embedding_CD=spoiled[2],
            logq_C=candidates.logq_C.masked_fill(padding_C, wild),
        )
        same, same_statistics = loss(wild_rows, wild_columns)
        assert same.item() == pytest.approx(value.item())
        for gradient, wanted in zip(torch.autograd.grad(same, spoiled), expected, strict=True):
            torch.testing.assert_close(gradient, wanted)
        for key, one in statistics.items():
            assert same_statistics[key].item() == pytest.approx(one.item()), key


def test_two_forwards_before_backward_and_a_retained_graph() -> None:
    # The kept buffers belong to one forward at a time; what backward needs must not be in them.
    first, second = make_case(seed=1), make_case(seed=2)
    loss = build_loss("ssm")
    value_1, _ = loss(*first)
    value_2, _ = loss(*second)
    once = torch.autograd.grad(value_1, leaves(*first), retain_graph=True)
    torch.autograd.grad(value_2, leaves(*second))
    again = torch.autograd.grad(value_1, leaves(*first))
    _, expected = streamed("ssm", {}, *first)
    torch.testing.assert_close(list(once), expected)
    torch.testing.assert_close(list(again), expected)


def test_no_gradient_asked_gives_the_same_value() -> None:
    rows, candidates = make_case()
    loss = build_loss("ssm", block_columns=8)
    value, _ = loss(rows, candidates)
    with torch.no_grad():
        silent, _ = loss(rows, candidates)
    assert silent.item() == pytest.approx(value.item())
    assert not silent.requires_grad


def test_modules_copy_and_pickle_without_their_buffers() -> None:
    loss = build_loss("ssm", learn_temperature=True)
    loss(*make_case())
    assert len(pickle.dumps(loss)) < 20_000
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        value, _ = other(*make_case())
        assert value.item() == pytest.approx(loss(*make_case())[0].item())


def test_learned_temperature_stays_above_a_hundredth() -> None:
    loss = build_loss("ssm", learn_temperature=True)
    with torch.no_grad():
        loss.log_scales[0].fill_(20.0)
    _, statistics = loss(*make_case())
    assert statistics["temperature"].item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("soft", {}, "no loss 'soft'; choose ssm"),
        ("ssm", {"temperature": 0.0}, "temperature is 0.0; it must be at least 0.01"),
        ("ssm", {"margin": 0.5}, "margin is 0.5 but loss ssm has none"),
        ("ssm", {"negative_weight": 1.0}, "belongs to bsl, ccl, ova"),
        ("ccl", {"temperature": 0.1}, "ccl works on cosines with no temperature"),
        ("ccl", {"correction": "all"}, "use 'none'"),
        ("improved_logq", {"correction": "all"}, "use 'negatives'"),
        ("bsl", {"several_positives": True}, "needs mask_same_user"),
        ("ssm_ntr", {"disliked_weight": 2.0}, "belongs to ntr"),
        ("ntr", {"alpha": 2.0}, "belongs to ssm_ntr"),
        ("ssm", {"ring": True, "backend": "triton"}, "use 'auto' with ring"),
        ("talos", {"ring": True}, "loss talos needs all candidates at once"),
        ("psl", {"learn_temperature": True}, "with loss psl: its temperature is a power"),
        ("psl", {"backend": "compiled"}, "loss psl sums no exponentials"),
        ("talos", {"correction": "all"}, "use 'negatives' or 'none'"),
        ("sl_at_k", {"top_k": 0}, "top_k is 0; it must be at least 1"),
        ("ova", {"backend": "compiled"}, "loss ova sums no exponentials"),
        ("ova", {"hardness": 0.5}, "hardness is 0.5 but loss ova sums no .* or take ssm, sl, bsl"),
        ("ssm", {"hardness": -0.5}, "hardness is -0.5; it must be 0 to 100"),
        ("ssm", {"hardness": math.nan}, "hardness is nan"),
        ("ssm", {"block_columns": 0}, "block_columns is 0"),
        ("ssm", {"several_positives": True}, "several_positives is True but loss ssm"),
        ("ssm", {"margn": 0.5}, "loss ssm has none; it has no parameters of its own$"),
        ("bsl", {"margin": 0.5}, "it has negative_temperature, negative_weight, several_pos"),
        ("ccl", {"margin": math.nan}, "margin is nan; it must be at least -1000 and at most 1000"),
        ("ova", {"negative_weight": 0.0}, "negative_weight is 0.0; it must be above 0"),
        ("bsl", {"negative_temperature": 0.001}, "negative_temperature is 0.001; it must be at"),
        ("ssm", {"temperature": math.inf}, "temperature is inf"),
        ("improved_logq", {"correction": "none"}, "use 'negatives'"),
        ("ccl", {"learn_temperature": True}, "no temperature; leave temperature out"),
        (BilateralSoftmax(), {"negative_weight": 1.3}, "made already: give them to BilateralSoft"),
        (BilateralSoftmax(several_positives=True), {}, "several_positives needs mask_same_user"),
    ],
)
def test_bad_settings(name: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_loss(name, **settings)


@pytest.mark.parametrize(
    ("dtype", "settings", "message"),
    [
        (torch.float64, {"backend": "compiled"}, "embeddings are torch.float64; use 'auto'"),
        (
            torch.float32,
            {"backend": "triton", "mask_same_user": True, "mask_history": True},
            "on a CPU and width 257 is over 256 and mask_same_user and mask_history are both on",
        ),
    ],
)
def test_a_backend_that_cannot_is_no_other(
    dtype: torch.dtype, settings: dict[str, Any], message: str
) -> None:
    rows, candidates = make_case(dtype=dtype, width=257)
    with pytest.raises(ValueError, match=message):
        build_loss("ssm", **settings)(rows, candidates)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ssm_ntr", {}),
        ("ova", {}),
        ("ccl", {"margin": 0.1}),
        ("bsl", {"several_positives": True, "mask_same_user": True}),
    ],
)
def test_many_pairs_of_one_user_are_walked_in_parts(
    name: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, candidates = make_case(num_users=2)
    expected_value, expected = reference(name, settings, rows, candidates)
    most = 0
    taken = pairs.log_sum_exp_by_row

    def count(score_P: torch.Tensor, row_P: torch.Tensor, num_rows: int) -> torch.Tensor:
        nonlocal most
        most = max(most, len(score_P))
        return taken(score_P, row_P, num_rows)

    monkeypatch.setattr(pairs, "_PAIRS_AT_ONCE", 16)
    monkeypatch.setattr(scores, "log_sum_exp_by_row", count)
    value, gradients = streamed(name, settings, rows, candidates)
    assert most < 32
    assert value.item() == pytest.approx(expected_value.item())
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_queries_and_positives_must_agree() -> None:
    rows, _ = make_case()
    with pytest.raises(ValueError, match="encode one positive a row"):
        replace(rows, positive_BD=rows.positive_BD[:-1])


@pytest.mark.parametrize("name", [name for name in NAMES if not LOSSES[name].has_threshold])
def test_ring_on_one_rank_equals_the_gathered_walk(name: Any) -> None:
    rows, candidates = make_case(copies=True)
    gathered, expected = build_loss(name)(rows, candidates)
    value, statistics = build_loss(name, ring=True, block_columns=8)(rows, candidates)
    assert value.item() == pytest.approx(gathered.item())
    for key, wanted in expected.items():
        assert statistics[key].item() == pytest.approx(wanted.item())
    for gradient, wanted in zip(
        torch.autograd.grad(value, leaves(rows, candidates)),
        torch.autograd.grad(gathered, leaves(rows, candidates)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted)
