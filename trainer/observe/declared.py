"""Every metric Tandem serves, in one table: dashboards, alerts and docs are held to it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One declared metric; `label` names the one label it may carry, of a few bounded values."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str | None = None


METRICS = (
    # Throughput and time
    Metric("tandem_steps_total", "counter", "Optimizer steps this rank has finished."),
    Metric("tandem_examples_total", "counter", "Training rows this rank has trained on."),
    Metric("tandem_step_seconds", "histogram", "Wall time of a training step."),
    Metric(
        "tandem_step_phase_seconds",
        "histogram",
        "Time of a part of a step: data_wait, forward, backward, optimizer; and communication, of "
        "ids, and of candidates inside forward and backward. Device time on a GPU.",
        label="phase",
    ),
    # Learning
    Metric("tandem_loss", "gauge", "Mean training loss since the last reading, of all ranks."),
    Metric("tandem_rank_loss", "gauge", "The same of this rank's rows; its mean is tandem_loss."),
    Metric("tandem_nonfinite_steps_total", "counter", "Steps with a NaN or Inf loss or gradient."),
    Metric(
        "tandem_loss_part",
        "gauge",
        "The loss's own terms, score and logQ statistics by name, mean of all ranks.",
        label="part",
    ),
    Metric(
        "tandem_gradient_norm",
        "gauge",
        "L2 norm of a gradient: towers, or pooled (of this rank's pooled embeddings).",
        label="group",
    ),
    Metric(
        "tandem_learning_rate", "gauge", "Learning rate of a group: tables, towers.", label="group"
    ),
    Metric("tandem_embedding_norm", "gauge", "Mean L2 norm of a table's rows.", label="table"),
    Metric(
        "tandem_table_rows_touched",
        "gauge",
        "Different rows of a table that this rank's last batch looked up.",
        label="table",
    ),
    Metric(
        "tandem_unique_id_share",
        "gauge",
        "Different rows by look-ups of a table, in this rank's last batch.",
        label="table",
    ),
    Metric(
        "tandem_unknown_value_share",
        "gauge",
        "Share of a feature's bags that are empty or hold the unknown value, in the last batch.",
        label="feature",
    ),
    Metric(
        "tandem_evaluation",
        "gauge",
        "Last value of an evaluation metric on the validation split, as ndcg@20; with --windows, "
        "on the window in training before it was trained on.",
        label="metric",
    ),
    Metric("tandem_evaluation_seconds", "histogram", "Time of an evaluation while training."),
    # Where the run stands
    Metric("tandem_step", "gauge", "Global step the run has reached."),
    Metric("tandem_total_steps", "gauge", "Global step at which the run will end."),
    Metric("tandem_epoch", "gauge", "Epochs of the data that are trained, with the fraction."),
    Metric("tandem_window", "gauge", "With --windows, number of the window in training."),
    Metric(
        "tandem_rows_admitted_total",
        "counter",
        "With --windows, items and users met for the first time since the start.",
        label="side",
    ),
    Metric(
        "tandem_last_step_timestamp_seconds",
        "gauge",
        "Unix time of the last finished step; at first, of the start.",
    ),
    Metric(
        "tandem_progress_timestamp_seconds",
        "gauge",
        "Unix time of the last sign that work goes forward: a step, queries of an evaluation, "
        "bytes of a checkpoint; at first, of the start.",
    ),
    Metric(
        "tandem_clock_timestamp_seconds",
        "gauge",
        "Unix time on this rank's machine when it was asked: what ages are reckoned from.",
    ),
    Metric(
        "tandem_phase",
        "gauge",
        "1 for what this rank is at, 0 for what it was at before: starting, training, evaluating, "
        "checkpointing, stopped, failed, finished.",
        label="phase",
    ),
    Metric("tandem_finished", "gauge", "1 once the run has come to its end, else 0."),
    Metric("tandem_world_size", "gauge", "Ranks that train together."),
    Metric("tandem_restarts_total", "counter", "Times the run was started anew in its folder."),
    Metric("tandem_rows_dropped_total", "counter", "Rows read but not trained on.", label="reason"),
    Metric(
        "tandem_dataset_rows_dropped",
        "gauge",
        "Rows `prepare` left out, by reason.",
        label="reason",
    ),
    # Checkpoints
    Metric("tandem_checkpoint_seconds", "histogram", "Time a step waited for a checkpoint."),
    Metric("tandem_checkpoint_write_seconds", "histogram", "Time a checkpoint took to be whole."),
    Metric(
        "tandem_checkpoint_timestamp_seconds",
        "gauge",
        "Unix time of the newest whole checkpoint; of the start, before the first.",
    ),
    Metric("tandem_checkpoint_interval_steps", "gauge", "Steps between two checkpoints."),
    Metric("tandem_checkpoint_failures_total", "counter", "Checkpoints that could not be written."),
    # Memory and devices
    Metric("tandem_host_memory_bytes", "gauge", "Resident memory of this rank's process."),
    Metric(
        "tandem_device_memory_bytes",
        "gauge",
        "Device memory: allocated (tensors of this rank), reserved (by its allocator), total (of "
        "the device); 0 on a CPU.",
        label="kind",
    ),
    Metric("tandem_gpu_utilization", "gauge", "Share of time this GPU ran kernels; 0 on a CPU."),
)

SERVER_METRICS = (
    Metric(
        "tandem_serve_requests_total",
        "counter",
        "Requests for recommendations and similar items, by status of HTTP.",
        label="status",
    ),
    Metric("tandem_serve_request_seconds", "histogram", "From a whole request to its answer."),
    Metric("tandem_serve_batch_seconds", "histogram", "Time of answering a batch of requests."),
    Metric("tandem_serve_batched_total", "counter", "Requests that batches held."),
    Metric("tandem_serve_waiting", "gauge", "Requests that wait for their turn."),
    Metric("tandem_serve_bundle_step", "gauge", "Training step of the bundle that answers."),
    Metric("tandem_serve_bundle_changes", "gauge", "Changes to another bundle so far."),
    Metric("tandem_serve_bundle_failures", "gauge", "Bundles that could not be changed to."),
)
"""Of `tandem serve`."""
