"""All-gather with gradient: forward all-gather, backward reduce-scatter of the summed gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local_XD: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        context.group = group
        return gather_without_gradient(local_XD, group)  # collective: all_gather

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = gradients
        world_size = dist.get_world_size(context.group)
        rank = dist.get_rank(context.group)
        rows = gradient.shape[0] // world_size
        if gradient.device.type == "cpu":
            # gloo's reduce_scatter is slower than its all_reduce, and absent in older releases.
            summed = gradient.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(summed, group=context.group)  # collective
            return summed[rank * rows : (rank + 1) * rows], None
        local = gradient.new_empty((rows, *gradient.shape[1:]))
        dist.reduce_scatter_tensor(local, gradient.contiguous(), group=context.group)  # collective
        return local, None


def gather_with_gradient(local_XD: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Rows of all ranks, rank after rank: [X, ...] on each of W ranks becomes [W * X, ...] on all.

    Collective in forward (all-gather) and in backward (reduce-scatter, sum): every rank of the
    group must call it, with the same shape (pad uneven batches; padding has id -1 and weight 0).
    Of one rank the result is the input: a step on a GPU is short beside a collective's launch.
    """
    if is_alone(group):
        return local_XD
    gathered: Tensor = _GatherWithGradient.apply(local_XD, group)  # type: ignore[no-untyped-call]
    return gathered


def gather_without_gradient(local_X: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The same order for ids and log Q, which carry no gradient. Collective: all-gather."""
    if is_alone(group):
        return local_X.detach()
    world_size = dist.get_world_size(group)
    gathered = local_X.new_empty((world_size * local_X.shape[0], *local_X.shape[1:]))
    dist.all_gather_into_tensor(gathered, local_X.detach().contiguous(), group=group)  # collective
    return gathered


def is_alone(group: dist.ProcessGroup | None = None) -> bool:
    """Whether there is no other rank, with or without a process group."""
    return not dist.is_initialized() or dist.get_world_size(group) == 1
