"""Cross-batch negatives: a first-in first-out queue of encoded candidates (CBNS, arXiv 2110.15154).

Shapes: K columns of the queue, X columns of a step, D width.
"""

import torch
from torch import Tensor, nn

from losses.inputs import Candidates


class CandidateQueue(nn.Module):
    """The last K candidates of earlier steps, detached, with their ids, users and log Q.

    Every rank pushes the same gathered candidates and so holds the same queue, with no collective
    of its own; the buffers go into the checkpoint. Columns are there from the start, as padding (id
    -1) until filled and until `warm_up_steps` pushes have been made, so that shapes never change.

        candidates = Candidates.concatenate([gathered, queue.columns()])
        value, statistics = loss(rows, candidates)
        queue.push(gathered)

    Their log Q is that of the step they were drawn in: a queue column was one draw from the same
    distribution as the batch's. The id mask of the loss applies to them as to any column.
    """

    def __init__(self, num_columns: int, width: int, warm_up_steps: int = 0) -> None:
        super().__init__()
        if num_columns < 1 or warm_up_steps < 0:
            raise ValueError(
                f"num_columns is {num_columns} and warm_up_steps {warm_up_steps}; "
                "a queue needs at least 1 column and 0 steps"
            )
        self.num_columns, self.warm_up_steps = num_columns, warm_up_steps
        self.register_buffer("embedding_KD", torch.zeros(num_columns, width))
        self.register_buffer("id_K", torch.full((num_columns,), -1, dtype=torch.int64))
        self.register_buffer("user_K", torch.full((num_columns,), -1, dtype=torch.int64))
        self.register_buffer("logq_K", torch.zeros(num_columns))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.embedding_KD: Tensor
        self.id_K: Tensor
        self.user_K: Tensor
        self.logq_K: Tensor
        self.pushed: Tensor
        self.steps: Tensor

    def columns(self) -> Candidates:
        """All K columns; those not yet in use have id -1. No device-to-host sync."""
        in_use = self.steps >= self.warm_up_steps
        return Candidates(
            embedding_CD=self.embedding_KD.clone(),
            id_C=torch.where(in_use, self.id_K, -1),
            logq_C=self.logq_K.clone(),
            user_C=torch.where(in_use, self.user_K, -1),
        )

    @torch.no_grad()
    def push(self, candidates: Candidates) -> None:
        """Takes the X columns of this step, oldest out first; of more than K the last K stay.

        Padding columns are taken too: the place of a column never depends on the data.
        """
        kept = slice(max(0, candidates.id_C.shape[0] - self.num_columns), None)
        id_X = candidates.id_C[kept]
        place_X = (self.pushed + torch.arange(id_X.shape[0], device=id_X.device)) % self.num_columns
        self.embedding_KD[place_X] = candidates.embedding_CD[kept].to(self.embedding_KD.dtype)
        self.id_K[place_X] = id_X
        self.user_K[place_X] = candidates.user_C[kept]
        self.logq_K[place_X] = candidates.logq_C[kept].to(self.logq_K.dtype)
        self.pushed += id_X.shape[0]
        self.steps += 1
