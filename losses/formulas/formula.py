"""What a loss is: its own parameters, and how it uses the one reduction over a row's negatives.

Files of losses are read by the command line, for its flags and their help, which does not wait
for torch: it is imported where a row's loss is computed.

Shapes: R rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:
    from torch import Tensor

Element = Literal["exp", "sigmoid", "softplus", "hinge"]
"""What is summed over a row's negatives. `exp` makes a log-sum-exp, `sigmoid` the log of a sum of
sigmoid(s_j) ** (1 / temperature), the others plain sums."""
LOGARITHMS: frozenset[Element] = frozenset({"exp", "sigmoid"})
"""Of these the reduction is the logarithm of a sum."""

Correction = Literal["all", "negatives", "none"]
"""Scores that log Q is subtracted from: columns and positive, negatives alone, or none."""

Setting = tuple[dict[str, float | None], float]
"""(temperature and own parameters, factor of the tables' learning rate)"""


@dataclass(frozen=True)
class Limits:
    """What a number may be; for `Annotated`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def holds(self, number: float) -> bool:
        """Not for NaN."""
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
        )

    def __str__(self) -> str:
        limits = {"at least": self.least, "above": self.above, "at most": self.most}
        return " and ".join(
            f"{word} {limit:g}" for word, limit in limits.items() if limit is not None
        )


Weight = Annotated[float, Limits(least=0, most=1e6)]
Factor = Annotated[float, Limits(above=0, most=1e6)]
Temperature = Annotated[float, Limits(least=0.01, most=1000)]


@dataclass(frozen=True)
class Parameter:
    """One of a loss's own parameters, as its field says."""

    kind: type
    """float, int or bool."""
    limits: Limits | None
    default: Any


@dataclass(frozen=True)
class RowScores:
    """What a row's loss is computed from, each [R]; scores are divided by their temperature."""

    positive_R: Tensor
    """Score of the row's positive, less log Q where the loss corrects it."""
    reduction_R: Tensor
    """Over the row's negatives: the log of the sum of the element function (`exp`, `sigmoid`), or
    the sum (`softplus`, `hinge`). Finite: rows without a negative are taken out for the logs."""
    negatives_R: Tensor
    """How many negatives the row has."""
    positive_logq_R: Tensor
    """log Q of the positive, whether corrected or not."""
    disliked_R: Tensor
    """bool: the row's item is disliked; of losses with `counts_disliked` alone."""
    temperature_R: Tensor
    """The positive's temperature; it has a gradient where it is learned."""
    temperature_ratio_R: Tensor
    """The negatives' temperature over the positive's."""
    threshold_R: Tensor
    """The score, before the temperature, of the item that is the row's `top`-th of the catalog, as
    the columns tell (`losses/kernels/thresholds.py`); no gradient. 0 where the loss has none."""


@dataclass(frozen=True)
class Loss(ABC):
    """A loss. Fields are its own parameters, their docstrings the help of the flags.

    The class says how the reduction is made, an instance what becomes of it:

        class MyLoss(Loss):
            name, when = "mine", "nobody's data: an example"
            margin: Annotated[float, Limits(least=0)] = 0.2
            '''Help of --loss.margin.'''

            def row(self, scores: RowScores) -> Tensor: ...

    Raises:
        ValueError: for a parameter beyond its limits.
    """

    name: ClassVar[str]
    """What it is called in configurations."""
    when: ClassVar[str]
    """When to take it: a line for the help."""

    element: ClassVar[Element] = "exp"
    correction: ClassVar[Correction] = "all"
    """Where none is asked for."""
    corrections: ClassVar[tuple[Correction, ...]] = ("all", "negatives", "none")
    """What may be asked for."""
    usual_temperature: ClassVar[float | None] = 0.1
    """Where none is asked for; None: it has no temperature, its scores are cosines."""
    counts_disliked: ClassVar[bool] = False
    """Disliked rows have a loss; batches hold them."""
    sees_disliked: ClassVar[bool] = True
    """Positive rows have their own user's disliked items among their negatives, if there are any in
    the columns."""
    subtracts_positive: ClassVar[bool] = False
    """The element function is of s_j - z rather than of s_j."""
    counts_negatives: ClassVar[bool] = False
    """`row` normalises by the number of negatives: log Q is per draw with any correction."""
    has_threshold: ClassVar[bool] = False
    """Rows have a threshold: the score of their `top`-th item of the catalog."""
    subtracts_threshold: ClassVar[bool] = False
    """The element function is of s_j less the row's threshold."""
    needs_uniform: ClassVar[bool] = False
    """It corrects for no popularity, and needs negatives that follow none."""
    needs_log_q: ClassVar[bool] = False
    """It is nothing without log Q."""

    settings: ClassVar[tuple[Setting, ...]] = (
        ({"temperature": 0.1}, 1.0),
        ({"temperature": 0.15}, 1.0),
        ({"temperature": 0.07}, 1.0),
        ({"temperature": 0.1}, 0.5),
        ({"temperature": 0.2}, 1.0),
        ({"temperature": 0.1}, 2.0),
    )
    """Six that `tandem compare` tries, the customary one first."""

    def __post_init__(self) -> None:
        for name, parameter in parameters_of(type(self)).items():
            value, limits = getattr(self, name), parameter.limits
            if value is not None and limits is not None and not limits.holds(value):
                raise ValueError(f"{name} is {value}; it must be {limits} (loss {self.name})")

    @abstractmethod
    def row(self, scores: RowScores) -> Tensor:
        """[R] losses, unweighted. No sync, no loop over rows: it is called a stripe at a time."""

    def temperatures(self, temperature: float) -> tuple[float, ...]:
        """Of the positive, and of the negatives where they have their own."""
        return (temperature,)

    @property
    def score_margin(self) -> float:
        """Subtracted from the negatives' scores."""
        return 0.0

    @property
    def sums_logarithm(self) -> bool:
        """The reduction is the logarithm of a sum."""
        return self.element in LOGARITHMS

    @property
    def top(self) -> int:
        """The place of the catalog's item whose score is a row's threshold."""
        raise NotImplementedError(f"loss {self.name} has no threshold")

    @property
    def averages_positives(self) -> bool:
        """The mean of exp(s+) over the user's positives of the batch is the row's positive."""
        return False


@cache
def parameters_of(loss: type[Loss]) -> dict[str, Parameter]:
    """A loss's own parameters, by name."""
    hints = get_type_hints(loss, include_extras=True)
    return {field.name: _parameter(hints[field.name], field.default) for field in fields(loss)}


def _parameter(annotation: Any, default: Any) -> Parameter:
    arms = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    (kind,) = [arm for arm in arms if arm is not NoneType]
    if get_origin(kind) is not Annotated:
        return Parameter(kind, None, default)
    plain, *metadata = get_args(kind)
    return Parameter(plain, next(each for each in metadata if isinstance(each, Limits)), default)
