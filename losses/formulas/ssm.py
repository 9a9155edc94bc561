"""Sampled softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from losses.formulas.formula import Loss, RowScores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SampledSoftmax(Loss):
    """Cross entropy of the positive among itself and the row's negatives.

        loss = -log(exp(z) / (exp(z) + sum_j exp(s_j))) = softplus(LSE - z)

    Paper: Yi et al., RecSys'19 (log Q); Wu et al., "On the Effectiveness of Sampled Softmax Loss",
    TOIS'24 (arXiv 2201.02327). Elsewhere: InfoNCE, NT-Xent, in-batch softmax, multiple negatives
    ranking loss, the loss of TFRS's `Retrieval`.

    Take it: first. Implicit feedback, catalogs of any size, in-batch or drawn negatives.

    Data: pairs (query, positive). Log Q of every column, unless negatives are uniform.

    Relations: `sl` leaves the positive out of the sum; `improved_logq` too, and its log Q with it;
    `bsl` weights the sum; `ssm_ntr` adds dislikes.

    Corrections: let log Q of a column be the log of the expected number of columns of its item.
    Then LSE tends to that of all items but the positive, as columns become many. With the
    positive's score left alone ("negatives") the loss tends to the full softmax. With log Q
    subtracted from it too ("all", Yi et al.), it is raised by as much as its item is rare: its own
    share goes to 0 and the loss to that of `sl`, which pulls a pair however well it is learned.
    With a few thousand columns and items by the thousand the two are alike in recall.
    """

    name = "ssm"
    when = "implicit feedback, catalogs of any size: begin here"

    def row(self, scores: RowScores) -> Tensor:
        from torch.nn.functional import softplus

        return softplus(scores.reduction_R - scores.positive_R)
