"""What is compared: configurations of each section, and the settings each loss is tuned over.

Every loss gets as many candidate settings as any other; the best on the validation split is trained
once a seed and measured on the test split.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from losses.choices import LOSSES, LossName
from losses.formulas.formula import Setting
from trainer.config.loss_section import LossConfig
from trainer.config.negatives_section import NegativesConfig
from trainer.config.sections import Config

Section = Literal["losses", "noise", "dislikes", "negatives", "hardness", "clipping"]
MOST_TUNING_TRIALS = min(len(loss.settings) for loss in LOSSES.values())


@dataclass(frozen=True)
class Case:
    """One configuration to be tuned and then measured over seeds."""

    section: Section
    label: str
    loss: LossName
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Section of the config -> fields, over the base."""
    random_positives: float = 0.0
    """Random positives added to train, as a share of its rows."""
    removed_positives: float = 0.0
    """Share of the train rows taken away: false negatives."""
    clipped: bool = False
    """Train with TFRS's floor under Q."""
    tuned_as: str | None = None
    """Take the setting found for the case of this label, instead of tuning again."""


def candidate_settings(loss: LossName, trials: int) -> tuple[Setting, ...]:
    """(fields of the loss section, factor of the learning rate) to try, `trials` of them."""
    return LOSSES[loss].settings[:trials]


def apply(base: Config, case: Case, setting: Setting, seed: int) -> Config:
    """The config of one training of a case."""
    parameters, factor = setting
    rate = base.optimizer.table_learning_rate * factor
    sections: dict[str, Any] = {
        "loss": LossConfig(name=case.loss, precision=base.loss.precision, **parameters),
        "optimizer": replace(base.optimizer, table_learning_rate=rate),
        "training": replace(base.training, seed=seed),
    }
    for section, fields in case.changes.items():
        before = sections.get(section, getattr(base, section))
        sections[section] = replace(before, **fields)
    return replace(base, **sections)


def uniform_negatives(count: int) -> NegativesConfig:
    """What the losses are compared under: shared uniform negatives, which need no correction."""
    return NegativesConfig(in_batch=False, uniform=count, log_q="none")


def make_cases(
    losses: tuple[LossName, ...], sections: tuple[Section, ...], has_feedback: bool, uniform: int
) -> list[Case]:
    """All cases, in the order they are run; those of a section stand together."""
    cases = [Case("losses", name, name) for name in losses]
    if "noise" in sections:
        cases += _noise_cases(losses)
    if "dislikes" in sections and has_feedback:
        cases += _dislike_cases(losses, uniform)
    if "negatives" in sections:
        cases += _negative_cases(uniform)
    if "hardness" in sections:
        cases += _hardness_cases(losses)
    if "clipping" in sections:
        cases += _clipping_cases()
    return cases


def _noise_cases(losses: tuple[LossName, ...]) -> list[Case]:
    compared = [name for name in ("bpr", "sl", "bsl") if name in losses]
    added = [
        Case("noise", f"{name} +{share:.0%}", name, random_positives=share, tuned_as=name)
        for name in compared
        for share in (0.1, 0.2, 0.4)
    ]
    removed = [
        Case("noise", f"{name} -{share:.0%}", name, removed_positives=share, tuned_as=name)
        for name in compared
        for share in (0.2, 0.4)
    ]
    return added + removed


def _dislike_cases(losses: tuple[LossName, ...], uniform: int) -> list[Case]:
    """SSM, and NTR and SSM + NTR at several weights of the disliked rows.

    With in-batch negatives among the others: disliked rows are columns only where rows are.
    """
    mixed: dict[str, dict[str, Any]] = {
        "negatives": {"in_batch": True, "uniform": uniform, "log_q": "counts"}
    }
    cases = []
    if "ssm" in losses:
        cases.append(Case("dislikes", "ssm mixed", "ssm", mixed, tuned_as="ssm"))
    for name, weighted in (("ntr", "disliked_weight"), ("ssm_ntr", "alpha")):
        for weight in (1.0, 10.0, 100.0) if name in losses else ():
            changes = {**mixed, "loss": {weighted: weight}}
            cases.append(Case("dislikes", f"{name} x{weight:g}", name, changes, tuned_as=name))
    return cases


def _negative_cases(uniform: int) -> list[Case]:
    """In-batch, uniform and mixed negatives; without logQ, plain and improved."""

    def case(label: str, loss: LossName, in_batch: bool, extra: int, log_q: str) -> Case:
        return _sourced("negatives", label, loss, in_batch, extra, log_q)

    return [
        case("in-batch, no logQ", "ssm", True, 0, "none"),
        case("in-batch, logQ", "ssm", True, 0, "counts"),
        case("in-batch, streaming logQ", "ssm", True, 0, "streaming"),
        case("in-batch, improved logQ", "improved_logq", True, 0, "counts"),
        case("uniform", "ssm", False, uniform, "none"),
        case("mixed, no logQ", "ssm", True, uniform, "none"),
        case("mixed, logQ", "ssm", True, uniform, "counts"),
        case("mixed, improved logQ", "improved_logq", True, uniform, "counts"),
    ]


def _hardness_cases(losses: tuple[LossName, ...]) -> list[Case]:
    """Each softmax loss with more and more weight on its hardest negatives."""
    softmax = [name for name in losses if LOSSES[name].element == "exp"]
    return [
        Case("hardness", f"{name} {beta:g}", name, {"loss": {"hardness": beta}}, tuned_as=name)
        for name in softmax
        if not LOSSES[name].counts_disliked
        for beta in (0.1, 0.3, 1.0)
    ]


def _clipping_cases() -> list[Case]:
    """What TFRS's floor of 1e-6 under Q costs: of catalogs with more than a million train rows."""
    return [
        _sourced("clipping", "logQ exact", "ssm", True, 0, "counts"),
        replace(_sourced("clipping", "logQ clipped", "ssm", True, 0, "counts"), clipped=True),
    ]


def _sourced(
    section: Section, label: str, loss: LossName, in_batch: bool, extra: int, log_q: str
) -> Case:
    fields = {"in_batch": in_batch, "uniform": extra, "log_q": log_q}
    return Case(section, label, loss, {"negatives": fields})
