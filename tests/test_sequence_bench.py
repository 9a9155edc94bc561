"""`tandem bench sequence` trains what it says, and its plain side is the SASRec that it claims."""

import math

import numpy as np
import torch

from trainer.bench.plain_sasrec import PlainSasRec, padded
from trainer.bench.sequence import SequenceBenchArguments, run


def test_both_sides_train_and_are_counted() -> None:
    found = run(
        SequenceBenchArguments(
            users=60,
            items=40,
            length=6,
            dim=8,
            global_batch_size=32,
            uniform=8,
            plain_negatives=4,
            rounds=1,
            steps=2,
        )
    )
    assert found["tokens_per_second"] > 0 and found["plain_tokens_per_second"] > 0
    assert found["ratio"] == found["ratios"][0]


def test_sequences_end_in_their_last_items() -> None:
    rows = padded(np.array([4, 5, 6, 7, 0]), np.array([4, 1]), length=2)
    assert rows.tolist() == [[6, 7, 8], [0, 0, 1]]


def test_a_position_of_the_plain_model_is_blind_to_what_follows_and_to_padding() -> None:
    torch.manual_seed(0)
    model = PlainSasRec(items=9, length=3, dim=8, layers=1, heads=2).eval()
    one, other = model(torch.tensor([[1, 2, 3], [1, 2, 9]]))
    torch.testing.assert_close(one[:2], other[:2])
    torch.nn.init.zeros_(model.item.weight)
    next_mL, drawn = torch.tensor([[0, 4, 5]]), torch.full((1, 3, 7), 6)
    loss = model.loss(torch.tensor([[0, 1, 4]]), next_mL, drawn)
    assert abs(loss.item() - math.log(8)) < 1e-6  # all scores are 0
