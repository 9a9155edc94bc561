"""Loss and negatives, for the modeller."""

from trainer.live.panels.panel import RANK, RUN, Dashboard, Panel, Query, gauge, parts
from trainer.live.panels.shared import LOSS

LOSSES = Dashboard(
    "tandem-loss",
    "Tandem loss and negatives",
    "What the loss sees: scores, negatives, corrections, norms.",
    (
        (
            "Loss",
            (
                LOSS,
                Panel(
                    "Loss by rank",
                    "Each rank's rows alone; the mean over ranks is the training loss.",
                    "nats",
                    (Query(f"tandem_rank_loss{{{RANK}}}", "{{run}} rank {{rank}}"),),
                    ("rank_loss/",),
                ),
                Panel(
                    "Parts of the loss",
                    "The reduction over negatives (log-sum-exp for the softmax losses), the "
                    "positive's term, both after logQ, and the part of disliked rows.",
                    "nats",
                    (parts("reduction_mean", "positive_term_mean", "disliked_part"),),
                    ("reduction_mean", "positive_term_mean", "disliked_part"),
                ),
                Panel(
                    "Steps with a loss that is not finite",
                    "The run stops at the first.",
                    "steps",
                    (
                        Query(
                            f"sum by (run) (tandem_nonfinite_steps_total{{{RUN}}})",
                            "{{run}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Scores, negatives and their logQ",
            (
                Panel(
                    "Mean scores",
                    "Divided by the temperature, before logQ: learning draws the two apart.",
                    "nats",
                    (parts("positive_score_mean", "negative_score_mean"),),
                    ("positive_score_mean", "negative_score_mean"),
                ),
                Panel(
                    "Spread of scores",
                    "Standard deviation over rows, and over rows and columns.",
                    "nats",
                    (parts("positive_score_spread", "negative_score_spread"),),
                    ("positive_score_spread", "negative_score_spread"),
                ),
                Panel(
                    "Effective temperature",
                    "Of the positive and of the negatives.",
                    "",
                    (parts("temperature", "negative_temperature"),),
                    ("temperature", "negative_temperature"),
                ),
                Panel(
                    "Negatives of a row",
                    "Columns left after masks.",
                    "rows",
                    (parts("negatives_mean"),),
                    ("negatives_mean",),
                ),
                Panel(
                    "Accidental hits",
                    "Share of columns masked for being the row's own positive, or known to it.",
                    "share",
                    (parts("hit_share"),),
                    ("hit_share",),
                ),
                Panel(
                    "Rows without negatives",
                    "Rows a step whose columns are all masked.",
                    "rows",
                    (parts("empty_rows"),),
                    ("empty_rows",),
                ),
                Panel(
                    "logQ of the columns",
                    "Mean and standard deviation; 0 where there is no correction.",
                    "nats",
                    (parts("logq_mean", "logq_spread"),),
                    ("logq_mean", "logq_spread"),
                ),
                Panel(
                    "Error of the streaming estimator",
                    "Mean distance from the logQ of exact counts (negatives.log_q=streaming).",
                    "nats",
                    (parts("estimator_error"),),
                    ("estimator_error",),
                ),
            ),
        ),
        (
            "Optimization",
            (
                Panel(
                    "Gradient norms",
                    "Of the towers, and of each rank's pooled embeddings.",
                    "",
                    (
                        Query(
                            f"max by (run, group) (tandem_gradient_norm{{{RANK}}})",
                            "{{run}} {{group}}",
                        ),
                    ),
                    ("gradient_norm/",),
                    log_scale=True,
                ),
                Panel(
                    "Learning rates",
                    "Of the tables' fused optimizer and of the towers' AdamW.",
                    "",
                    (gauge("tandem_learning_rate", "{{run}} {{group}}", by="run, group"),),
                    ("learning_rate/",),
                    log_scale=True,
                ),
                Panel(
                    "Norm of table rows",
                    "Mean L2 norm, from a sample of each table.",
                    "",
                    (
                        Query(
                            f"avg by (run, table) (tandem_embedding_norm{{{RANK}}})",
                            "{{run}} {{table}}",
                        ),
                    ),
                    ("embedding_norm/",),
                ),
            ),
        ),
        (
            "Look-ups of a rank's last batch",
            (
                Panel(
                    "Table rows touched",
                    "Different rows looked up.",
                    "rows",
                    (
                        Query(
                            f"avg by (run, table) (tandem_table_rows_touched{{{RANK}}})",
                            "{{run}} {{table}}",
                        ),
                    ),
                    ("table_rows_touched/",),
                ),
                Panel(
                    "Share of different ids",
                    "Different rows by look-ups: low where few items take most of the batch.",
                    "share",
                    (
                        Query(
                            f"avg by (run, table) (tandem_unique_id_share{{{RANK}}})",
                            "{{run}} {{table}}",
                        ),
                    ),
                    ("unique_id_share/",),
                ),
                Panel(
                    "Share of unknown values",
                    "Bags that are empty or out of vocabulary.",
                    "share",
                    (
                        Query(
                            f"avg by (run, feature) (tandem_unknown_value_share{{{RANK}}})",
                            "{{run}} {{feature}}",
                        ),
                    ),
                    ("unknown_value_share/",),
                ),
            ),
        ),
    ),
)
