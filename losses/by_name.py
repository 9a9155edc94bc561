"""`build_loss`: the one place where settings become a loss."""

from collections.abc import Sequence
from typing import Any

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
from losses.formulas.formula import Loss, parameters_of
from losses.kernels.sizes import Blocking
from losses.module import LARGEST_INVERSE_TEMPERATURE, RetrievalLoss


def build_loss(
    loss: LossName | Loss,
    *,
    temperature: float | None = None,
    correction: Correction | None = None,
    mask_same_user: bool = False,
    mask_history: bool = False,
    hardness: float = 0.0,
    precision: Precision = "fp32",
    learn_temperature: bool = False,
    ring: bool = False,
    backend: Backend = "auto",
    block_columns: int = 2048,
    stripe_mebibytes: int = 64,
    widths: Sequence[int] = (),
    renormalise: bool = True,
    **parameters: Any,
) -> RetrievalLoss:
    """A loss module: `value, statistics = loss(rows, candidates)`.

    loss: a name of `losses.choices.LOSSES`, with its `parameters`: the fields of its class in
        `losses/formulas/`, None for those left to it. Or a loss of your own, made.
    temperature: scores are divided by it; None is the loss's usual one (0.1; ccl has none).
    correction: which scores log Q is subtracted from; None is the loss's own (softmax family: all,
        improved_logq: negatives, ccl, ova and bpr: none). See `losses/formulas/ssm.py` for what
        "all" and "negatives" converge to.
    mask_same_user: columns whose item the row's user has as a positive in the batch leave the row,
        whoever's columns they are.
    mask_history: columns among the row's history leave the row.
    hardness: how much more the hardest of a row's negatives weigh (losses that sum exponentials;
        `losses/hardness.py` has the formula); 0: alike.
    precision: bf16 rounds the operands of the GEMMs; accumulation and reduction stay in float32.
        Plain torch on a CPU rounds those of the gradients' GEMMs only, and each block's product;
        the compiled kernel needs a CPU with products of bf16 (AVX512_BF16) and stays in fp32
        elsewhere.
    learn_temperature: the temperatures become parameters, kept above 0.01.
    ring: the candidates given are this rank's own and visit the others one rank at a time;
        columns that one user alone sees count in this rank's rows.
    backend: auto takes the fastest there is: on CUDA the Triton kernel where it has the masks asked
        for, on CPUs the compiled kernel (softmax family, float32, temperatures from about 0.03 on)
        where there is a gcc. blocked: plain torch. compiled, triton: an error where there is no
        such kernel for the loss, the tensors or the machine; compiled still leaves values without
        gradients and scores that spread too far (temperatures below 0.03) to plain torch.
    block_columns, stripe_mebibytes: sizes of the walk; the buffer of a stripe is what memory it
        needs.
    widths: the loss is the mean of the same loss over the first columns alone, rising in number;
        none: over all columns (`losses/kernels/widths.py`).
    renormalise: what is cut is given a length of 1 again, as cosines have it.

    Raises:
        ValueError: for a name, a parameter, a value or a combination that there is none of.
    """
    if isinstance(loss, str):
        loss = make_loss(loss, parameters)
    elif parameters:
        raise ValueError(
            f"{', '.join(parameters)} beside a loss that is made already: give them to "
            f"{type(loss).__name__}"
        )
    _refuse_scores(loss, temperature, learn_temperature, correction)
    _refuse_hardness(loss, hardness)
    _refuse_walk(loss, mask_same_user, ring, backend)
    if block_columns < 1 or stripe_mebibytes < 1:
        raise ValueError(
            f"block_columns is {block_columns}, stripe_mebibytes {stripe_mebibytes}; "
            "both must be at least 1"
        )
    if any(width < 1 for width in widths) or list(widths) != sorted(set(widths)):
        raise ValueError(f"widths are {list(widths)}; they must be positive and rise")
    usual = 1.0 if loss.usual_temperature is None else loss.usual_temperature
    return RetrievalLoss(
        loss,
        temperature=usual if temperature is None else temperature,
        correction=loss.correction if correction is None else correction,
        mask_same_user=mask_same_user,
        mask_history=mask_history,
        hardness=hardness,
        precision=precision,
        learn_temperature=learn_temperature,
        ring=ring,
        backend=backend,
        blocking=Blocking(block_columns=block_columns, stripe_bytes=stripe_mebibytes << 20),
        widths=widths,
        renormalise=renormalise,
    )


def make_loss(name: LossName, parameters: dict[str, Any]) -> Loss:
    """The loss of that name; parameters that are None are left to it, and other losses' switches
    that are off.

    Raises:
        ValueError: with what there is instead.
    """
    if name not in LOSSES:
        raise ValueError(f"no loss {name!r}; choose {', '.join(LOSSES)}")
    kind = LOSSES[name]
    own = parameters_of(kind)
    for parameter, value in parameters.items():
        if value is not None and value is not False and parameter not in own:
            raise ValueError(f"{parameter} is {value} but {none_of_that_name(parameter, name)}")
    return kind(
        **{key: value for key, value in parameters.items() if key in own and value is not None}
    )


def _refuse_scores(
    loss: Loss, temperature: float | None, learned: bool, correction: Correction | None
) -> None:
    """What a loss cannot take of temperatures and corrections."""
    if temperature is not None and not 1 / LARGEST_INVERSE_TEMPERATURE <= temperature < float(
        "inf"
    ):
        raise ValueError(
            f"temperature is {temperature}; it must be at least 0.01 (cosine scores: try 0.05 to "
            "0.2)"
        )
    if loss.usual_temperature is None and (learned or temperature not in (None, 1.0)):
        raise ValueError(
            f"{loss.name} works on cosines with no temperature; leave temperature out (or 1)"
        )
    if learned and loss.element == "sigmoid":
        raise ValueError(f"learn_temperature with loss {loss.name}: {TEMPERATURE_IS_A_POWER}")
    if correction is not None and correction not in loss.corrections:
        choices = " or ".join(map(repr, loss.corrections))
        raise ValueError(
            f"correction is {correction!r}; {loss.name} is made for another: use {choices}"
        )


def _refuse_hardness(loss: Loss, hardness: float) -> None:
    if not 0 <= hardness <= LARGEST_HARDNESS:
        raise ValueError(f"hardness is {hardness}; it must be 0 to {LARGEST_HARDNESS:g}")
    if hardness and loss.element != "exp":
        raise ValueError(f"hardness is {hardness} but {none_of_that_hardness(loss.name)}")


def _refuse_walk(loss: Loss, mask_same_user: bool, ring: bool, backend: Backend) -> None:
    """What cannot be walked together."""
    if loss.averages_positives and not mask_same_user:
        raise ValueError(
            "several_positives needs mask_same_user: a user's positives cannot be negatives too"
        )
    if backend == "compiled" and loss.element != "exp":
        raise ValueError(
            f"backend is 'compiled' but loss {loss.name} sums no exponentials, which is all that "
            "the kernel does; use 'auto' or 'blocked'"
        )
    if ring and loss.averages_positives:
        raise ValueError("several_positives needs all candidates at once; turn ring off for it")
    if ring and loss.has_threshold:
        raise ValueError(f"loss {loss.name} needs all candidates at once; turn ring off for it")
    if ring and backend == "triton":
        raise ValueError(
            "backend is 'triton' but the ring walk has no kernel; use 'auto' with ring"
        )
