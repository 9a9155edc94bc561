"""The streaming top-k against a dense float64 reference, and on input made to upset it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.retrieval.search.filter import Filter, Precision
from trainer.retrieval.search.item_lists import ItemLists
from trainer.retrieval.search.item_rows import ItemRows
from trainer.retrieval.search.keys import EMPTY, decode_keys, encode_keys
from trainer.retrieval.search.topk import exact_topk


def dense_reference(item_ID: Tensor, query_QD: Tensor, seen: ItemLists | None, k: int) -> Tensor:
    """Item rows [Q, k] by (score, lower row first) in float64; -1 where no item remains."""
    score_QI = query_QD.double() @ item_ID.double().T
    if seen is not None:
        score_QI[seen.owners(), seen.values] = -torch.inf
    score, row = score_QI.sort(dim=1, descending=True, stable=True)
    row = row.masked_fill(score == -torch.inf, -1)[:, :k]
    return torch.nn.functional.pad(row, (0, k - row.size(1)), value=-1)


def random_seen(num_queries: int, num_items: int, at_most: int, seed: int) -> ItemLists:
    generator = torch.Generator().manual_seed(seed)
    lists = []
    for _ in range(num_queries):
        length = int(torch.randint(0, at_most + 1, (1,), generator=generator))
        lists.append(sorted(torch.randperm(num_items, generator=generator)[:length].tolist()))
    return ItemLists.from_lists(lists)


def rows_of(items: Tensor, query: Tensor, seen: ItemLists | None, k: int, how: Filter) -> Tensor:
    return decode_keys(exact_topk(ItemRows(items), query, seen, k, how))[1]


@settings(max_examples=40, deadline=None)
@given(
    num_items=st.integers(1, 700),
    num_queries=st.integers(1, 9),
    k=st.integers(1, 80),
    span=st.integers(0, 3),
    chunk=st.sampled_from([64, 128, 512]),
    precision=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 1 << 30),
)
def test_equals_the_dense_reference_with_many_ties(
    num_items: int, num_queries: int, k: int, span: int, chunk: int, precision: Precision, seed: int
) -> None:
    # Whole numbers: every score is exact in float32, so even the order of ties is known.
    generator = torch.Generator().manual_seed(seed)
    item = torch.randint(-span, span + 1, (num_items, 5), generator=generator).float()
    query = torch.randint(-span, span + 1, (num_queries, 5), generator=generator).float()
    seen = random_seen(num_queries, num_items, min(num_items, 90), seed)
    rows = rows_of(item, query, seen, k, Filter(precision, chunk))
    assert torch.equal(rows, dense_reference(item, query, seen, k))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("spread", ["unit", "skewed"])
def test_equals_the_dense_reference_on_real_values(precision: Precision, spread: str) -> None:
    torch.manual_seed(3)
    item = torch.nn.functional.normalize(torch.randn(5000, 32))
    query = torch.nn.functional.normalize(torch.randn(40, 32))
    if spread == "skewed":
        item *= torch.rand(5000, 1) ** 8 * 1e3
        query *= torch.rand(40, 1) ** 8 * 1e-3
    seen = random_seen(40, 5000, 60, seed=4)
    key = exact_topk(ItemRows(item), query, seen, 50, Filter(precision, 512))
    score, row = decode_keys(key)
    expected = dense_reference(item, query, seen, 50)
    exact = (query.double() @ item.double().T).gather(1, expected)
    torch.testing.assert_close(
        score.double(), exact, rtol=1e-5, atol=1e-7 * float(exact.abs().max())
    )
    assert (row != expected).float().mean() < 1e-3  # equal but for float32 near-ties


@pytest.mark.parametrize(
    "shape", ["ascending", "all equal", "zero queries", "zero items", "one cluster"]
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adversarial_scores(shape: str, precision: Precision) -> None:
    torch.manual_seed(5)
    item, query = torch.randint(-3, 4, (2000, 4)).float(), torch.randint(-3, 4, (6, 4)).float()
    match shape:
        case "ascending":
            item = torch.arange(2000.0)[:, None] * torch.tensor([1.0, 0, 0, 0])
            query = torch.ones(6, 4)
        case "all equal":
            item = torch.ones(2000, 4)
        case "zero queries":
            query[::2] = 0
        case "zero items":
            item[:] = 0
        case "one cluster":
            item[500:1500] = query[0] * 4
    rows = rows_of(item, query, None, 100, Filter(precision, 256))
    assert torch.equal(rows, dense_reference(item, query, None, 100))


def test_result_depends_on_neither_chunks_nor_precision_nor_shards() -> None:
    torch.manual_seed(6)
    item = torch.nn.functional.normalize(torch.randn(3001, 24))
    query = torch.nn.functional.normalize(torch.randn(17, 24))
    seen = random_seen(17, 3001, 40, seed=7)
    whole = exact_topk(ItemRows(item), query, seen, 30, Filter("float32", 2048))
    assert torch.equal(whole, exact_topk(ItemRows(item), query, seen, 30, Filter("bfloat16", 64)))
    parts = [
        exact_topk(ItemRows(part, first_row=first), query, seen, 30, Filter("bfloat16", 128))
        for first, part in zip((0, 1000, 2000, 3000), item.split(1000), strict=True)
    ]
    assert torch.equal(whole, torch.cat(parts, dim=1).topk(30, dim=1).values)


def test_survives_an_item_that_few_queries_share_and_one_query_that_takes_all() -> None:
    # One query scores every item higher than the last, so that all pass for it alone.
    item = torch.randint(-2, 3, (4096, 3)).float()
    item[:, 0] = torch.arange(4096.0) / 4
    query = torch.randint(-2, 3, (50, 3)).float()
    query[:, 0] = 0
    query[7] = torch.tensor([1.0, 0, 0])
    rows = rows_of(item, query, None, 5, Filter("float32", 64))
    assert torch.equal(rows, dense_reference(item, query, None, 5))


def test_everything_seen_leaves_an_empty_list() -> None:
    seen = ItemLists.from_lists([list(range(10)), [3]])
    key = exact_topk(ItemRows(torch.ones(10, 2)), torch.ones(2, 2), seen, 12)
    score, row = decode_keys(key)
    assert bool((key[0] == EMPTY).all()) and bool((row[0] == -1).all())
    assert row[1].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, -1, -1, -1]
    assert score[1, :9].tolist() == [2.0] * 9


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 2**32 - 2)),
        min_size=2,
        max_size=20,
    )
)
def test_keys_sort_by_score_then_lower_row_and_decode_back(pairs: list[tuple[float, int]]) -> None:
    score = torch.tensor([pair[0] for pair in pairs])
    item = torch.tensor([pair[1] for pair in pairs])
    key = encode_keys(score, item)
    decoded_score, decoded_item = decode_keys(key)
    assert torch.equal(decoded_score, score + 0.0) and torch.equal(decoded_item, item)
    order = sorted(range(len(pairs)), key=lambda i: (-pairs[i][0], pairs[i][1]))
    assert torch.equal(key[order], key.sort(descending=True).values)


def test_bad_input_names_the_value_and_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"NaN.*lower the learning rate"):
        ItemRows(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ValueError, match="query embedding holds NaN"):
        exact_topk(ItemRows(torch.ones(3, 2)), torch.tensor([[torch.inf, 0]]), None, 1)
    with pytest.raises(ValueError, match="k is 0"):
        exact_topk(ItemRows(torch.ones(3, 2)), torch.ones(1, 2), None, 0)
    with pytest.raises(ValueError, match="chunk_items is 100"):
        Filter("float32", 100)
    with pytest.raises(ValueError, match="over the limit"):
        ItemRows(torch.ones(3, 2), first_row=2**32 - 3)
