"""The overview, for anyone: is it running, is it learning, when is it done?"""

from trainer.live.panels.panel import RANK, RUN, Dashboard, Panel, Query, gauge
from trainer.live.panels.shared import DATA_WAIT, EVALUATION, LOSS, THROUGHPUT

OVERVIEW = Dashboard(
    "tandem-overview",
    "Tandem overview",
    "Is it running, is it learning, when is it done?",
    (
        (
            "Now",
            (
                Panel(
                    "Progress",
                    "Steps done of all steps.",
                    "share",
                    (
                        Query(
                            f"max by (run) (tandem_step{{{RUN}}})"
                            f" / max by (run) (tandem_total_steps{{{RUN}}})",
                            "{{run}}",
                        ),
                    ),
                    kind="number",
                ),
                Panel(
                    "Time left",
                    "Steps left at the speed of the last minute; evaluations come on top.",
                    "s",
                    (
                        Query(
                            f"(max by (run) (tandem_total_steps{{{RUN}}})"
                            f" - max by (run) (tandem_step{{{RUN}}}))"
                            f" * avg by (run) (rank:tandem_step_seconds:mean1m{{{RUN}}})",
                            "{{run}}",
                        ),
                    ),
                    kind="number",
                ),
                Panel(
                    "Ranks up",
                    "Ranks whose metrics can be read, of those that train together.",
                    "share",
                    (
                        Query(
                            f'sum by (run) (up{{job="tandem",{RUN}}})'
                            f" / max by (run) (tandem_world_size{{{RUN}}})",
                            "{{run}}",
                        ),
                    ),
                    kind="number",
                    limits=((0, "red"), (1, "green")),
                ),
                Panel(
                    "Restarts",
                    "Starts of the run after the first: failures and resumes.",
                    "",
                    (Query(f"max by (run) (tandem_restarts_total{{{RUN}}})", "{{run}}"),),
                    kind="number",
                    limits=((1, "orange"),),
                ),
                Panel(
                    "Finished",
                    "Whether the run has come to its end.",
                    "",
                    (gauge("tandem_finished", "{{run}}"),),
                    kind="number",
                    words=((0, "running"), (1, "finished")),
                ),
                Panel(
                    "Alerts firing",
                    "Tandem's alerts that are firing now; docs/runbooks says what to do.",
                    "",
                    (
                        Query(
                            'sum(ALERTS{alertname=~"Tandem.*",alertstate="firing"}) or vector(0)',
                            "alerts",
                        ),
                    ),
                    kind="number",
                    limits=((0, "green"), (1, "red")),
                ),
            ),
        ),
        ("Learning", (EVALUATION, LOSS)),
        (
            "Windows",
            (
                Panel(
                    "Window in training",
                    "Number of the window that is trained on, with train --windows.",
                    "",
                    (gauge("tandem_window", "{{run}}"),),
                    ("window",),
                ),
                Panel(
                    "New items and users",
                    "Met for the first time: since the start, and in each window.",
                    "rows",
                    (
                        Query(
                            f"max by (run, side) (tandem_rows_admitted_total{{{RUN}}})",
                            "{{run}} {{side}}",
                        ),
                    ),
                    ("window/new_items", "window/new_users"),
                ),
            ),
        ),
        (
            "Speed",
            (
                THROUGHPUT,
                Panel(
                    "Step time",
                    "Wall time of a step, a mean.",
                    "s",
                    (Query(f"rank:tandem_step_seconds:mean1m{{{RANK}}}", "{{run}} rank {{rank}}"),),
                    ("step_seconds",),
                ),
                DATA_WAIT,
                Panel(
                    "Epochs trained",
                    "Passes over the training data, with their fraction.",
                    "",
                    (gauge("tandem_epoch", "{{run}}"),),
                    ("epochs_trained",),
                ),
            ),
        ),
    ),
)
