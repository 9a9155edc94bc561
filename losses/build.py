"""`build_loss`: the one place where settings become a loss."""

import math

from losses.formulas import Correction, LossName, form_of
from losses.kernels.sizes import Blocking
from losses.kernels.walk import Backend
from losses.module import LARGEST_INVERSE_TEMPERATURE, Precision, RetrievalLoss

BSL_WEIGHT = 1.2
"""BSL's factor of the negatives' log-sum-exp where no setting tells the sides apart."""


def build_loss(
    name: LossName,
    *,
    temperature: float | None = None,
    negative_temperature: float | None = None,
    negative_weight: float | None = None,
    margin: float | None = None,
    disliked_weight: float | None = None,
    alpha: float | None = None,
    correction: Correction | None = None,
    mask_same_user: bool = False,
    mask_history: bool = False,
    several_positives: bool = False,
    precision: Precision = "fp32",
    learn_temperature: bool = False,
    ring: bool = False,
    backend: Backend = "auto",
    block_columns: int = 2048,
    stripe_mebibytes: int = 64,
) -> RetrievalLoss:
    """A loss module: `value, statistics = loss(rows, candidates)`.

    name: see `losses.formulas.LossName` for which to use when.
    temperature: scores are divided by it; None is the loss's default (0.1, and 1 for ccl).
    negative_temperature: bsl only, that of the negatives; None is `temperature`.
    negative_weight: bsl: the factor of the LSE. The authors' code is one temperature and their
        exponent here; the paper's form is t_negative / t_positive, which None means where
        negative_temperature is given. With neither given it is BSL_WEIGHT, for at one temperature
        and a factor of 1 bsl is sl. ccl, ova: w in `w/N sum_j`, None a plain sum.
    margin: ccl only, m in `relu(s_j - m)`; None is 0.9.
    disliked_weight: ntr only, the weight of disliked rows; None is 1.
    alpha: ssm_ntr only, the weight of its NTR half, which is over disliked rows; None is 1.
    correction: which scores log Q is subtracted from; None is the loss's own (softmax family: all,
        improved_logq: negatives, ccl, ova and bpr: none). See `formulas.softmax_row` for what
        "all" and "negatives" converge to.
    mask_same_user: columns whose item the row's user has as a positive in the batch leave the row,
        whoever's columns they are.
    mask_history: columns among the row's history leave the row.
    several_positives: bsl only, the mean of exp(s+) over the user's positives of the batch replaces
        s+.
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
    """
    form = form_of(name)
    _only(name, "negative_temperature", negative_temperature, ("bsl",))
    _only(name, "negative_weight", negative_weight, ("bsl", "ccl", "ova"))
    _only(name, "margin", margin, ("ccl",))
    _only(name, "disliked_weight", disliked_weight, ("ntr",))
    _only(name, "alpha", alpha, ("ssm_ntr",))
    _only(name, "several_positives", several_positives or None, ("bsl",))
    for label, value in (
        ("temperature", temperature),
        ("negative_temperature", negative_temperature),
    ):
        if value is not None and not 1 / LARGEST_INVERSE_TEMPERATURE <= value < math.inf:
            raise ValueError(
                f"{label} is {value}; it must be at least 0.01 (cosine scores: try 0.05 to 0.2)"
            )
    if name == "ccl" and (learn_temperature or temperature not in (None, 1.0)):
        raise ValueError(
            "ccl works on cosines with no temperature; leave temperature out (or 1) and set margin"
        )
    if name == "ccl" and correction not in (None, "none"):
        raise ValueError(
            f"correction is {correction!r}; ccl's margin is on the cosine itself, use 'none'"
        )
    if name == "improved_logq" and correction not in (None, "negatives"):
        raise ValueError(
            f"correction is {correction!r}; improved_logq corrects negatives alone: use 'negatives'"
        )
    if several_positives and not mask_same_user:
        raise ValueError(
            "several_positives needs mask_same_user: a user's positives cannot be negatives too"
        )
    if backend == "compiled" and form.element != "exp":
        raise ValueError(
            f"backend is 'compiled' but loss {name} sums no exponentials, which is all that the "
            "kernel does; use 'auto' or 'blocked'"
        )
    if ring and several_positives:
        raise ValueError("several_positives needs all candidates at once; turn ring off for it")
    if ring and backend == "triton":
        raise ValueError(
            "backend is 'triton' but the ring walk has no kernel; use 'auto' with ring"
        )
    if block_columns < 1 or stripe_mebibytes < 1:
        raise ValueError(
            f"block_columns is {block_columns}, stripe_mebibytes {stripe_mebibytes}; "
            "both must be at least 1"
        )
    if name == "bsl" and negative_weight is None and negative_temperature is None:
        negative_weight = BSL_WEIGHT
    return RetrievalLoss(
        name,
        temperature=form.temperature if temperature is None else temperature,
        negative_temperature=negative_temperature,
        negative_weight=negative_weight,
        margin=0.9 if margin is None else margin,
        disliked_weight=next((w for w in (disliked_weight, alpha) if w is not None), 1.0),
        correction=form.correction if correction is None else correction,
        mask_same_user=mask_same_user,
        mask_history=mask_history,
        several_positives=several_positives,
        precision=precision,
        learn_temperature=learn_temperature,
        ring=ring,
        backend=backend,
        blocking=Blocking(block_columns=block_columns, stripe_bytes=stripe_mebibytes << 20),
    )


def _only(name: LossName, argument: str, value: object, takers: tuple[str, ...]) -> None:
    if value is not None and name not in takers:
        raise ValueError(
            f"{argument} is {value} but loss {name} has none; leave it out "
            f"(it belongs to {', '.join(takers)})"
        )
