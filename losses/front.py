"""What `from losses import ...` gives."""

from losses.by_name import build_loss
from losses.choices import LOSSES, Backend, Correction, LossName, Precision
from losses.formulas.formula import Limits, Loss, RowScores
from losses.frequency import StreamingFrequency, log_q_from_counts, log_q_mixture, log_q_uniform
from losses.gather import gather_with_gradient, gather_without_gradient
from losses.module import RetrievalLoss
from losses.queue import CandidateQueue, stand_in
from losses.rows import Candidates, Positives, Rows, in_batch, sampled

__all__ = [
    "LOSSES",
    "Backend",
    "CandidateQueue",
    "Candidates",
    "Correction",
    "Limits",
    "Loss",
    "LossName",
    "Positives",
    "Precision",
    "RetrievalLoss",
    "RowScores",
    "Rows",
    "StreamingFrequency",
    "build_loss",
    "gather_with_gradient",
    "gather_without_gradient",
    "in_batch",
    "log_q_from_counts",
    "log_q_mixture",
    "log_q_uniform",
    "sampled",
    "stand_in",
]
