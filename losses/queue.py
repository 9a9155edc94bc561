"""Cross-batch negatives: a first-in first-out queue of encoded candidates (CBNS, arXiv 2110.15154).

Shapes: K columns of the queue, X columns of a step, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from losses.rows import Candidates


class CandidateQueue(nn.Module):
    """The last K candidates of earlier steps, detached, with their ids, users and train counts.

    Every rank pushes the same gathered candidates and so holds the same queue, with no collective
    of its own; the buffers go into the checkpoint. Columns are there from the start, as padding (id
    -1) until filled and until `warm_up_steps` pushes have been made, so that shapes never change.

        log_q_K = ...(queue.ids(), queue.count_K)
        live = replace(gathered, embedding_CD=stand_in(gathered.embedding_CD, surplus_C))
        value, statistics = loss(rows, Candidates.concatenate([live, queue.columns(log_q_K)]))
        queue.push(gathered, count_C)

    Log Q is that of the step that uses a column, for the mixture of all its columns, the queue's
    among them. The id mask of the loss applies to them as to any column.
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
        self.register_buffer("count_K", torch.zeros(num_columns, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.embedding_KD: Tensor
        self.id_K: Tensor
        self.user_K: Tensor
        self.count_K: Tensor
        self.pushed: Tensor
        self.steps: Tensor

    def ids(self) -> Tensor:
        """[K] item ids, -1 where a column is not in use. No device-to-host sync."""
        return torch.where(self.steps >= self.warm_up_steps, self.id_K, -1)

    def columns(self, logq_K: Tensor) -> Candidates:
        """All K columns; those not in use have id -1."""
        id_K = self.ids()
        return Candidates(
            embedding_CD=self.embedding_KD.clone(),
            id_C=id_K,
            logq_C=logq_K,
            user_C=torch.where(id_K >= 0, self.user_K, -1),
        )

    @torch.no_grad()
    def push(self, candidates: Candidates, count_X: Tensor) -> None:
        """Takes the X columns of this step, oldest out first; of more than K the last K stay.

        Padding columns are taken too: the place of a column never depends on the data.
        """
        kept = slice(max(0, candidates.id_C.shape[0] - self.num_columns), None)
        id_X = candidates.id_C[kept]
        place_X = (self.pushed + torch.arange(id_X.shape[0], device=id_X.device)) % self.num_columns
        self.embedding_KD[place_X] = candidates.embedding_CD[kept].to(self.embedding_KD.dtype)
        self.id_K[place_X] = id_X
        self.user_K[place_X] = candidates.user_C[kept]
        self.count_K[place_X] = count_X[kept]
        self.pushed += id_X.shape[0]
        self.steps += 1


def stand_in(embedding_CD: Tensor, surplus_C: Tensor) -> Tensor:
    """The same embeddings, whose gradients also stand for those that queued columns do not have.

    A queued column pushes queries away from an item and its item away from nothing. The columns
    that have gradients are then a part of the softmax's mass alone, while positives are pulled in
    full: items draw together, the more the larger the queue. With each live column's gradient
    times `surplus_C`, the expected columns of its item over the live ones, an item's row is pushed
    on average as if the queue had gradients too.
    """
    scaled: Tensor = _StandIn.apply(embedding_CD, surplus_C)  # type: ignore[no-untyped-call]
    return scaled


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, embedding_CD: Tensor, surplus_C: Tensor) -> Tensor:
        context.save_for_backward(surplus_C)
        return embedding_CD.view_as(embedding_CD)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (surplus_C,) = context.saved_tensors
        return gradients[0] * surplus_C[:, None].to(gradients[0].dtype), None
