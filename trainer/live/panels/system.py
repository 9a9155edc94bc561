"""Time, memory, checkpoints and data, for the operator."""

from trainer.live.panels.panel import (
    RANK,
    RUN,
    Dashboard,
    Panel,
    Query,
    gauge,
    mean_of,
    quantile_of,
)
from trainer.live.panels.shared import CHECKPOINT_AGE, DATA_WAIT, since

SYSTEM = Dashboard(
    "tandem-system",
    "Tandem system",
    "Where time and memory go, and what would be lost.",
    (
        (
            "Ranks",
            (
                Panel(
                    "Targets up",
                    "1 where Prometheus reads a rank.",
                    "",
                    (Query(f'up{{job="tandem",{RANK}}}', "{{run}} rank {{rank}}"),),
                ),
                Panel(
                    "Ranks that train together",
                    "Changes where nodes leave an elastic run or come back.",
                    "",
                    (gauge("tandem_world_size", "{{run}}"),),
                ),
                Panel(
                    "What ranks are at",
                    "1 for a rank's phase: one in another than the rest is waited for.",
                    "",
                    (gauge("tandem_phase", "{{run}} rank {{rank}} {{phase}}"),),
                ),
                Panel(
                    "Since the last sign of progress",
                    "Steps, queries of an evaluation, bytes of a checkpoint are such signs.",
                    "s",
                    (
                        Query(
                            since("progress", RANK),
                            "{{run}} rank {{rank}}",
                        ),
                    ),
                ),
                Panel(
                    "Since the last finished step",
                    "Grows during an evaluation, too, which is no step.",
                    "s",
                    (
                        Query(
                            since("last_step", RANK),
                            "{{run}} rank {{rank}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Time of a step",
            (
                Panel(
                    "Step time, median and 95th percentile",
                    "A rank that is slower than the others holds all of them up.",
                    "s",
                    (
                        quantile_of(0.5, "tandem_step_seconds"),
                        quantile_of(0.95, "tandem_step_seconds"),
                    ),
                    ("step_seconds",),
                ),
                Panel(
                    "Parts of a step",
                    "Communication is the exchange of ids and, inside forward and backward, of "
                    "candidates; it waits for other ranks. Device time on a GPU.",
                    "s",
                    (
                        Query(
                            "avg by (run, phase) "
                            f"(rank:tandem_step_phase_seconds:mean1m{{{RANK}}})",
                            "{{run}} {{phase}}",
                        ),
                    ),
                    ("phase_seconds/",),
                ),
                DATA_WAIT,
                Panel(
                    "Steps a second by rank",
                    "Equal on all ranks, but for the moment of reading.",
                    "steps/s",
                    (
                        Query(
                            f"rate(tandem_steps_total{{{RANK}}}[$__rate_interval])",
                            "{{run}} rank {{rank}}",
                        ),
                    ),
                ),
                Panel(
                    "Rows a second by rank",
                    "Padding at an epoch's end is not counted.",
                    "rows/s",
                    (
                        Query(
                            f"rate(tandem_examples_total{{{RANK}}}[$__rate_interval])",
                            "{{run}} rank {{rank}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Memory and devices",
            (
                Panel(
                    "Host memory",
                    "Resident memory of each rank.",
                    "bytes",
                    (Query(f"tandem_host_memory_bytes{{{RANK}}}", "{{run}} rank {{rank}}"),),
                    ("host_memory_bytes",),
                ),
                Panel(
                    "Device memory",
                    "Held by tensors, held by the allocator, and the device's. 0 on a CPU.",
                    "bytes",
                    (
                        Query(
                            f"tandem_device_memory_bytes{{{RANK}}}",
                            "{{run}} rank {{rank}} {{kind}}",
                        ),
                    ),
                    ("device_memory_bytes/",),
                ),
                Panel(
                    "GPU utilization",
                    "Share of time with a kernel running. 0 on a CPU.",
                    "share",
                    (Query(f"tandem_gpu_utilization{{{RANK}}}", "{{run}} rank {{rank}}"),),
                    ("gpu_utilization",),
                ),
            ),
        ),
        (
            "Checkpoints and evaluations",
            (
                CHECKPOINT_AGE,
                Panel(
                    "Time taken by checkpoints",
                    "What a step waits for the copy, and until one is whole on disk.",
                    "s",
                    (
                        mean_of("tandem_checkpoint_seconds", legend="{{run}} step waits"),
                        mean_of("tandem_checkpoint_write_seconds", legend="{{run}} until whole"),
                    ),
                    ("checkpoint_seconds", "checkpoint_write_seconds"),
                ),
                Panel(
                    "Steps between checkpoints",
                    "As configured.",
                    "steps",
                    (gauge("tandem_checkpoint_interval_steps", "{{run}}"),),
                ),
                Panel(
                    "Failed checkpoints",
                    "Could not be written: a full disk, say. Training goes on.",
                    "",
                    (
                        Query(
                            f"sum by (run) (tandem_checkpoint_failures_total{{{RUN}}})",
                            "{{run}}",
                        ),
                    ),
                    ("checkpoint_failures",),
                ),
                Panel(
                    "Time taken by an evaluation",
                    "Training stands still meanwhile.",
                    "s",
                    (mean_of("tandem_evaluation_seconds"),),
                    ("evaluation_seconds",),
                ),
            ),
        ),
        (
            "Data",
            (
                Panel(
                    "Rows dropped while reading",
                    "Of corrupt row groups, with data.skip_corrupt.",
                    "rows",
                    (
                        Query(
                            f"sum by (run, reason) (tandem_rows_dropped_total{{{RUN}}})",
                            "{{run}} {{reason}}",
                        ),
                    ),
                    ("rows_dropped",),
                ),
                Panel(
                    "Rows dropped by prepare",
                    "By reason; 0 where nothing was.",
                    "rows",
                    (gauge("tandem_dataset_rows_dropped", "{{run}} {{reason}}", by="run, reason"),),
                ),
            ),
        ),
        (
            "Ray nodes",
            (
                Panel(
                    "CPU of nodes",
                    "Served by Ray.",
                    "share",
                    (Query("ray_node_cpu_utilization / 100", "{{ip}}"),),
                    source="ray",
                ),
                Panel(
                    "Memory of nodes",
                    "Used, of the total; served by Ray.",
                    "bytes",
                    (
                        Query("ray_node_mem_used", "{{ip}} used"),
                        Query("ray_node_mem_total", "{{ip}} total"),
                    ),
                    source="ray",
                ),
            ),
        ),
    ),
)
