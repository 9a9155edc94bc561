"""The config's `loss` section: what all losses have, and the parameters of each.

A loss's own parameters are the fields of its dataclass (`losses/formulas/`), with its docstrings as
their help: a new loss needs no line here.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from textwrap import dedent
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typing_extensions import Doc

from losses.choices import (
    LARGEST_HARDNESS,
    LOSSES,
    TEMPERATURE_IS_A_POWER,
    Backend,
    Correction,
    LossName,
    Precision,
    none_of_that_hardness,
    none_of_that_name,
)
from losses.formulas.formula import Loss, Parameter, parameters_of
from trainer.base.mistake import Mistake
from trainer.base.typed import Range, check


def _parameters_of_all() -> dict[str, Parameter]:
    """Own parameters of the losses. Of those that share one the kind is the same."""
    found: dict[str, Parameter] = {}
    for loss in LOSSES.values():
        for name, parameter in parameters_of(loss).items():
            found.setdefault(name, parameter)
    return found


PARAMETERS = _parameters_of_all()


def _default(parameter: Parameter) -> bool | None:
    """In a config: None is the loss's own default; a switch is off."""
    return False if parameter.kind is bool else None


def _annotation(parameter: Parameter) -> Any:
    if parameter.kind is bool:
        return bool
    if parameter.limits is None:
        return parameter.kind | None
    return Annotated[parameter.kind, Range(**asdict(parameter.limits))] | None  # type: ignore[return-value]


def _help_of(name: str) -> str:
    """A parameter's help: each loss that has it, what it is there, and its default."""
    texts = {}
    for loss in LOSSES.values():
        if name in parameters_of(loss):
            default = parameters_of(loss)[name].default
            text = " ".join(_field_docs(loss)[name].split()).rstrip(".")
            told = default is None or default is False
            texts[loss.name] = text if told else f"{text}; None: {default:g}"
    return _by_loss(texts) + "."


def _field_docs(loss: type[Loss]) -> dict[str, str]:
    """The docstrings under a class's fields, and its parents'."""
    docs: dict[str, str] = {}
    for kind in reversed(loss.__mro__[: loss.__mro__.index(Loss)]):
        (definition,) = ast.parse(dedent(inspect.getsource(kind))).body
        assert isinstance(definition, ast.ClassDef)
        for field, doc in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                docs[ast.unparse(field.target)] = ast.literal_eval(doc.value)
    missing = parameters_of(loss).keys() - docs.keys()
    assert not missing, f"{loss.__name__}: no docstring under {', '.join(missing)}"
    return docs


def _by_loss(texts: dict[str, str]) -> str:
    """ "ssm, sl: text; ccl: another": losses of the same text together."""
    names_by_text: dict[str, list[str]] = {}
    for name, text in texts.items():
        names_by_text.setdefault(text, []).append(name)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in names_by_text.items())


def _common_help() -> dict[str, str]:
    """Help of the fields that every loss has, and each has its own value of."""
    temperatures = {
        loss.name: "none" if loss.usual_temperature is None else f"{loss.usual_temperature:g}"
        for loss in LOSSES.values()
    }
    corrections = _by_loss({loss.name: loss.correction for loss in LOSSES.values()})
    return {
        "name": _by_loss({loss.name: loss.when for loss in LOSSES.values()}) + ".",
        "temperature": "Scores are divided by this. None: the loss's own "
        f"({_by_loss(temperatures)}).",
        "correction": "Scores that log Q is subtracted from. all: the positive's too, with which "
        "ssm tends to sl as columns become many. negatives: ssm tends to the full softmax. None: "
        f"the loss's own ({corrections}).",
    }


def _with_parameters(section: Any) -> Any:
    """The same dataclass with the losses' parameters as further fields, and help made of them."""
    hints = get_type_hints(section, include_extras=True)
    annotations = {
        name: Annotated[hints[name], Doc(text)] for name, text in _common_help().items()
    } | {
        name: Annotated[_annotation(parameter), Doc(_help_of(name))]
        for name, parameter in PARAMETERS.items()
    }
    defaults = {name: _default(parameter) for name, parameter in PARAMETERS.items()}
    told = {name: getattr(section, name) for name in ("__module__", "__qualname__", "__doc__")}
    common = {name: getattr(section, name) for name in _common_help()}
    body = {**told, "__annotations__": annotations, **common, **defaults}
    return dataclass(frozen=True)(type(section.__name__, (section,), body))


@_with_parameters
@dataclass(frozen=True)
class LossConfig:
    """Which loss, and its parameters."""

    name: LossName = "ssm"
    temperature: Annotated[float, Range(least=0.01, most=1000)] | None = None
    correction: Correction | None = None
    learn_temperature: bool = False
    """Train the temperature with the towers, from `temperature` on."""
    mask_same_user: bool = False
    """Leave out columns whose item is another positive of the row's user in the global batch."""
    mask_history: bool = False
    """Leave out columns that are in the row's own history."""
    hardness: Annotated[float, Range(least=0, most=LARGEST_HARDNESS)] = 0.0
    """How much more the hardest of a row's negatives weigh: each by exp(hardness x score), their
    mean being 1 (Robinson et al. 2021); 0: alike. Begin with .1 to .5. Losses over softmax sums."""
    embedding_penalty: Annotated[float, Range(least=0, most=100)] = 0.0
    """L2 on what a step looks up (each feature's pooled embedding), a row's mean: regularises the
    touched rows with every table optimizer."""
    precision: Precision = "fp32"
    """Operands of the score products; accumulation and reduction are fp32 in both. bf16 takes half
    the time on CPUs and GPUs that have its products; elsewhere it is fp32, in whole or for the
    scores. fp32 on a GPU is made of bf16 pieces, six products for scores and three for gradients.
    Towers and the gathering of candidates are fp32 either way. What it does to recall:
    docs/benchmarks/loss.md."""
    backend: Backend = "auto"
    """auto: the fastest there is. blocked: plain torch. compiled: the CPU kernel, built by gcc at
    first use. triton: the CUDA kernel. With ring, or with mask_same_user and mask_history together,
    GPUs walk in plain torch, many times slower."""

    ring: bool = False
    """Never gather all candidates: one rank's at a time visits the others, for batches whose W x B
    candidates do not fit a rank. Same result; on CPUs a third more work and twice the bytes moved,
    on GPUs far slower, for it has no kernel there yet."""

    if TYPE_CHECKING:
        # The losses' own parameters are fields too: see PARAMETERS.
        def __init__(self, **fields: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

    def __post_init__(self) -> None:
        check(self, "loss")
        for name, parameter in PARAMETERS.items():
            value = getattr(self, name)
            if value != _default(parameter) and name not in parameters_of(self.kind):
                raise Mistake(
                    f"loss.{name}={value} with loss.name={self.name}: "
                    f"{none_of_that_name(name, self.name)}"
                )
        if self.hardness and self.kind.element != "exp":
            raise Mistake(f"loss.hardness={self.hardness:g}: {none_of_that_hardness(self.name)}")
        if self.learn_temperature and self.kind.element == "sigmoid":
            raise Mistake(
                f"loss.learn_temperature with loss.name={self.name}: {TEMPERATURE_IS_A_POWER}"
            )
        if self.ring:
            self._check_ring()

    def _check_ring(self) -> None:
        """What needs every rank's candidates at once."""
        if self.disliked_negatives:
            raise Mistake(
                f"loss.ring with loss.name={self.name}: a user's disliked items must reach its "
                "rows on every rank; use ntr, or turn ring off"
            )
        if self.kind.has_threshold:
            raise Mistake(
                f"loss.ring with loss.name={self.name}: a row's threshold needs all candidates at "
                "once; turn ring off"
            )
        if self.several_positives:
            raise Mistake(
                "loss.ring with loss.several_positives: they need all candidates at once; turn "
                "one off"
            )
        if self.backend == "triton":
            raise Mistake(
                "loss.ring with loss.backend=triton: the ring walk has no CUDA kernel; use auto"
            )

    @property
    def kind(self) -> type[Loss]:
        """The loss's class."""
        return LOSSES[self.name]

    @property
    def parameters(self) -> dict[str, Any]:
        """The loss's own parameters, None where they are left to it."""
        return {name: getattr(self, name) for name in parameters_of(self.kind)}

    @property
    def uses_dislikes(self) -> bool:
        """Batches hold disliked rows."""
        return self.kind.counts_disliked

    @property
    def disliked_negatives(self) -> bool:
        """Disliked items are negatives of their own user's positive rows."""
        return self.kind.counts_disliked and self.kind.sees_disliked

    def of(self, name: LossName) -> LossConfig:
        """This section for another loss, whose own defaults hold then; the same for the same."""
        if name == self.name:
            return self
        left: dict[str, Any] = {key: _default(parameter) for key, parameter in PARAMETERS.items()}
        if LOSSES[name].usual_temperature is None:
            left["temperature"] = None
        if LOSSES[name].element != "exp":
            left["hardness"] = 0.0
        if LOSSES[name].element == "sigmoid":
            left["learn_temperature"] = False
        if LOSSES[name].has_threshold:
            left["ring"] = False
        return self.but(name=name, correction=None, **left)

    def but(self, **fields: Any) -> LossConfig:
        """With other values of these fields, the losses' own parameters among them."""
        return replace(self, **fields)
