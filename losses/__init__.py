"""Tandem's retrieval losses over streamed negatives. Imports torch alone."""

from losses.build import build_loss
from losses.formulas import Correction, LossName
from losses.frequency import StreamingFrequency, log_q_from_counts, log_q_mixture, log_q_uniform
from losses.gather import gather_with_gradient, gather_without_gradient
from losses.kernels.walk import Backend
from losses.module import Precision, RetrievalLoss
from losses.queue import CandidateQueue, stand_in
from losses.rows import Candidates, Positives, Rows

__all__ = [
    "Backend",
    "CandidateQueue",
    "Candidates",
    "Correction",
    "LossName",
    "Positives",
    "Precision",
    "RetrievalLoss",
    "Rows",
    "StreamingFrequency",
    "build_loss",
    "gather_with_gradient",
    "gather_without_gradient",
    "log_q_from_counts",
    "log_q_mixture",
    "log_q_uniform",
    "stand_in",
]
