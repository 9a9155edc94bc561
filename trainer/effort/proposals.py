"""Models worth a try on a dataset, by rules over its facts; what each is good for was measured.

The measurements behind the rules: docs/quality.md, "The dial".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from trainer.config.default_preset import SPECTRAL_BYTES, default_preset
from trainer.config.loss_section import LossConfig
from trainer.config.negatives_section import NegativesConfig
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.effort.choices import Effort
from trainer.effort.data_facts import DataFacts, facts_of

Changes = dict[str, dict[str, Any]]
"""Fields by section, with their new values."""
WIDE = 256
"""Width beyond which no data set got better."""
SEQUENCE = 50
"""Items of a history that the transformer reads: longer ones brought nothing."""
LONG_HISTORIES = 40
"""Training rows a user from which on a transformer took ten times the seconds and found less."""
MANY_ROWS = 500_000
"""From here on a batch of 4,096 still makes some hundred steps an epoch, and SL@K, four times the
seconds of BSL, was a seventh behind it."""
NEW_SHARE = 0.05
"""Share of new items from which on their attributes decide."""


@dataclass(frozen=True)
class Proposal:
    """A configuration, and why it is tried."""

    name: str
    why: str
    config: Config


def proposals(dataset: Dataset, effort: Effort) -> list[Proposal]:
    """What is worth a try, the most promising first; `quick` has one: the preset by its rules."""
    facts, rules = facts_of(dataset), default_preset(dataset)
    if effort == "quick":
        return [Proposal("rules", "the preset's rules", rules)]
    found = list(_by_order(facts, rules) if facts.has_order else _by_graph(facts, rules))
    if facts.item_attributes or facts.user_attributes or facts.context:
        base = next(each for each in found if each.config == rules)
        found += _by_attributes(facts, base)
    if effort == "normal":
        left_out = {"graph, wide", *(["SL@K"] if facts.rows >= MANY_ROWS else [])}
        return [each for each in found if each.name not in left_out]
    return found


def changed(config: Config, changes: Changes) -> Config:
    """The config with fields of its sections replaced.

    Raises:
        Mistake: where they do not go together.
    """
    sections = {name: replace(getattr(config, name), **fields) for name, fields in changes.items()}
    return replace(config, **sections)


def _wide(facts: DataFacts) -> int:
    """As wide as a spectral start affords, for a model that is to be the best."""
    width = WIDE
    while width > 64 and 4 * width * (facts.users + facts.items) > SPECTRAL_BYTES:
        width //= 2
    return width


def _batch(facts: DataFacts) -> int:
    return 4096 if facts.rows >= MANY_ROWS else 1024


def _by_order(facts: DataFacts, rules: Config) -> Iterable[Proposal]:
    """Where the order is known: the last items by their places, and a transformer over more."""
    wide = _wide(facts)
    sequence: Changes = {
        "model": {
            "tower": "sequence",
            "history_pooling": "mean",
            "dim": wide,
            "sequence_length": SEQUENCE,
            "use_user_id": False,
            "dropout": 0.2,
        },
        "data": {"history_length": SEQUENCE},
        "loss": {"mask_same_user": True, "precision": "bf16"},
        "training": {"epochs": 8},
    }
    if facts.rows_a_user < LONG_HISTORIES:
        yield Proposal(
            "sequence", f"a transformer over the last {SEQUENCE} items", changed(rules, sequence)
        )
    yield Proposal("places", "the last three items, each by its place", rules)
    broad: Changes = {
        "model": {"dim": wide, "use_user_id": True},
        "loss": {"negative_weight": 1.4, "precision": "bf16"},
    }
    told = f"the last three items, each by its place, and the user, {wide} wide"
    yield Proposal("places, wide", told, changed(rules, broad))
    unordered = replace(rules.model, tower="mf", history_pooling="mean", use_user_id=True)
    told = f"cosines, {wide} wide, by a loss of the list's top; the order is left aside"
    plain = replace(rules, model=unordered)
    yield Proposal("SL@K", told, _sl_at_k(plain, wide, _batch(facts)))


def _by_graph(facts: DataFacts, rules: Config) -> Iterable[Proposal]:
    """Without an order: who took what is a graph; its smoothed scores, and factors from there."""
    wide = _wide(facts)
    batch = _batch(facts)
    yield Proposal("graph", "inner products from the smoothed graph, small steps", rules)
    told = f"cosines, {wide} wide, by a loss of the list's top"
    yield Proposal("SL@K", told, _sl_at_k(rules, wide, batch))
    yield Proposal("factors", f"cosines of factors, {wide} wide", _factors(rules, wide, batch))
    told = f"inner products from the smoothed graph, {wide} wide"
    yield Proposal("graph, wide", told, changed(rules, {"model": {"dim": wide}}))


def _sl_at_k(rules: Config, width: int, batch: int) -> Config:
    """SL@K over uniform negatives: on sparse data without an order a tenth ahead of all others."""
    factors = _factors(rules, width, batch)
    return replace(
        factors,
        model=replace(factors.model, dropout=0.0),
        loss=LossConfig(name="sl_at_k", temperature=0.2),
        negatives=replace(factors.negatives, uniform=1024),
        optimizer=replace(factors.optimizer, table_learning_rate=0.05, warmup_steps=0),
    )


def _factors(rules: Config, width: int, batch: int) -> Config:
    """Gowalla's: cosines from the spectral directions, BSL over uniform negatives, a warm-up."""
    return replace(
        rules,
        model=replace(
            rules.model,
            similarity="cosine",
            dim=width,
            init_std=0.02 if rules.model.spectral_start else 0.1,
        ),
        loss=LossConfig(name="bsl", temperature=0.1, negative_weight=1.3, precision="bf16"),
        negatives=NegativesConfig(in_batch=False, uniform=2048, log_q="none"),
        optimizer=replace(rules.optimizer, table_learning_rate=0.06, warmup_steps=500),
        training=replace(rules.training, epochs=24, global_batch_size=batch),
    )


def _by_attributes(facts: DataFacts, rules: Proposal) -> list[Proposal]:
    """What is known of items, users and the moment, beside ids."""
    read = {
        "item_attributes": facts.item_attributes,
        "user_attributes": facts.user_attributes,
        "context_attributes": facts.context,
    }
    if facts.new_share < NEW_SHARE:
        named = " and ".join(name.partition("_")[0] for name, is_there in read.items() if is_there)
        model = {**read, "id_dropout": 0.1 if facts.item_attributes else 0.0}
        return [
            Proposal(
                f"{rules.name}, attributes",
                f"{rules.name} with attributes of {named}",
                changed(rules.config, {"model": model}),
            )
        ]
    return [_for_new_items(rules.config, read)]


def _for_new_items(rules: Config, read: dict[str, bool]) -> Proposal:
    """Items that nobody took yet are told by their attributes alone, which most rows train."""
    model = {**read, "similarity": "cosine", "spectral_start": 0.0, "init_std": 0.1}
    config = replace(
        changed(rules, {"model": {**model, "id_dropout": 0.9}}),
        loss=LossConfig(name="ssm", temperature=0.1),
        negatives=NegativesConfig(in_batch=True, uniform=1024, log_q="counts"),
    )
    config = changed(
        config,
        {
            "optimizer": {"schedule": "constant", "table_learning_rate": 0.05},
            "training": {"epochs": 20},
            "evaluation": {"patience": 3},
        },
    )
    return Proposal("attributes", "items by their attributes, for many are new", config)
