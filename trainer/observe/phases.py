"""Where a step's time goes: forward, backward, optimizer, communication.

On a CPU the parts are read off the host's clock. On a GPU they are pairs of CUDA events on the
stream that the work is queued on, which wait for nothing and are read with the metrics every
`log_every_steps` steps: device time, not the time the host took to queue the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

Phase = Literal["forward", "backward", "optimizer", "communication"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Moment = float | torch.cuda.Event


class PhaseClock:
    """Spans of the step in progress, and of the steps since the last reading.

    `communication` is the exchange of the next batch's ids and, inside forward and backward, the
    gathering of candidates and its gradient's reduction. The embeddings' own exchange is not told
    apart from the lookup it waits for.
    """

    def __init__(self, device: torch.device) -> None:
        self._now: Callable[[], Moment] = _event_now if device.type == "cuda" else time.perf_counter
        self._open: dict[Phase, Moment] = {}
        self._spans: list[tuple[Phase, Moment, Moment]] = []
        self._steps: list[list[tuple[Phase, Moment, Moment]]] = []

    def start(self, phase: Phase) -> None:
        self._open[phase] = self._now()

    def stop(self, phase: Phase) -> None:
        self._spans.append((phase, self._open.pop(phase), self._now()))

    @contextmanager
    def measure(self, phase: Phase) -> Iterator[None]:
        self.start(phase)
        yield
        self.stop(phase)

    def measure_gradient(self, phase: Phase, inputs: Tensor, outputs: Tensor) -> None:
        """Count the backward pass from `outputs` to `inputs`, too."""
        if inputs.requires_grad:
            outputs.register_hook(lambda _: self.start(phase))
            inputs.register_hook(lambda _: self.stop(phase))

    def end_step(self) -> None:
        """The spans so far belong to one step."""
        self._steps.append(self._spans)
        self._spans = []

    def read(self) -> list[dict[Phase, float]]:
        """Seconds of each phase in each step since the last call. On a GPU it waits for them."""
        steps, self._steps = self._steps, []
        return [self._sums(spans) for spans in steps]

    def _sums(self, spans: list[tuple[Phase, Moment, Moment]]) -> dict[Phase, float]:
        seconds: dict[Phase, float] = {}
        for phase, begin, end in spans:
            seconds[phase] = seconds.get(phase, 0.0) + _seconds_between(begin, end)
        return seconds


def _event_now() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds_between(begin: Moment, end: Moment) -> float:
    if isinstance(begin, float):
        return cast(float, end) - begin
    ended = cast(torch.cuda.Event, end)
    ended.synchronize()  # the exchange of ids runs ahead of the training stream
    return begin.elapsed_time(ended) / 1000.0


class TimedPipeline(TrainPipelineSparseDist):
    """TorchRec's pipeline, with its parts timed by a `PhaseClock`."""

    def __init__(self, model: Any, optimizer: Any, device: torch.device, clock: PhaseClock) -> None:
        self._clock = clock

        def forward(batch: Any) -> Any:
            with clock.measure("forward"):
                return model(batch)

        super().__init__(
            model, optimizer, device, execute_all_batches=True, custom_model_fwd=forward
        )

    def progress(self, dataloader_iter: Iterator[Any]) -> Any:
        outputs = super().progress(dataloader_iter)
        self._clock.stop("optimizer")
        self._clock.end_step()
        return outputs

    def _backward(self, losses: Tensor) -> None:
        with self._clock.measure("backward"):
            super()._backward(losses)
        self._clock.start("optimizer")  # it is all that is left of the step

    def start_sparse_data_dist(self, *arguments: Any, **keywords: Any) -> None:
        with self._on_its_stream(), self._clock.measure("communication"):
            super().start_sparse_data_dist(*arguments, **keywords)

    def wait_sparse_data_dist(self, *arguments: Any, **keywords: Any) -> None:
        with self._on_its_stream(), self._clock.measure("communication"):
            super().wait_sparse_data_dist(*arguments, **keywords)

    def _on_its_stream(self) -> AbstractContextManager[Any]:
        """Where the exchange of ids is queued, so that events there enclose it."""
        return self._stream_context(self._data_dist_stream)
