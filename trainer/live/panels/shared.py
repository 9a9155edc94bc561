"""Panels that stand on several dashboards."""

from trainer.live.panels.panel import RANK, RUN, Panel, Query, gauge


def since(moment: str, chosen: str) -> str:
    """Seconds since a rank's moment, by the clock of its own machine; `chosen`: labels."""
    clock = f"tandem_clock_timestamp_seconds{{{chosen}}}"
    return f"{clock} - tandem_{moment}_timestamp_seconds{{{chosen}}}"


SHOWN_METRICS = "(recall|ndcg|popularity/ndcg)@.*"
LOSS = Panel(
    "Training loss",
    "Mean over the rows of all ranks since the last reading; short last batches are left out.",
    "nats",
    (gauge("tandem_loss", "{{run}}"),),
    ("loss",),
)
THROUGHPUT = Panel(
    "Throughput",
    "Training rows a second, of all ranks together.",
    "rows/s",
    (Query(f"run:tandem_examples:rate1m{{{RUN}}}", "{{run}}"),),
    ("examples_per_second",),
)
EVALUATION = Panel(
    "Evaluation",
    "On the validation split while training, over the whole catalog; of a run by windows on each "
    "window before it is trained on.",
    "share",
    (
        Query(
            f'max by (run, metric) (tandem_evaluation{{{RUN},metric=~"{SHOWN_METRICS}"}})',
            "{{run}} {{metric}}",
        ),
    ),
    ("@",),
)
DATA_WAIT = Panel(
    "Share of time waiting for data",
    "Above 30 % the reader cannot keep up with training.",
    "share",
    (Query(f"rank:tandem_data_wait:share1m{{{RANK}}}", "{{run}} rank {{rank}}"),),
    ("data_wait_share",),
)
CHECKPOINT_AGE = Panel(
    "Checkpoint age",
    "Training that would be lost if the run failed now.",
    "s",
    (
        Query(
            f"max by (run) ({since('checkpoint', RUN)})",
            "{{run}}",
        ),
    ),
)
