"""`tandem serve`, for whoever keeps it answering: how much, how fast, what fails, from what."""

from trainer.live.panels.panel import Dashboard, Panel, Query

SERVERS = 'instance=~"$instance"'
BAD = f'{SERVERS},status=~"5.."'
RATE = "[$__rate_interval]"


def _requests(by: str = "", labels: str = SERVERS) -> str:
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate(tandem_serve_requests_total{{{labels}}}{RATE}))"


def _quantile(quantile: float, metric: str) -> Query:
    rate = f"rate({metric}_bucket{{{SERVERS}}}{RATE})"
    return Query(
        f"histogram_quantile({quantile}, sum by (le) ({rate}))", f"p{round(quantile * 100)}"
    )


def _each_second(metric: str) -> str:
    return f"sum by (instance) (rate({metric}{{{SERVERS}}}{RATE}))"


def _of_each(metric: str) -> Query:
    return Query(f"{metric}{{{SERVERS}}}", "{{instance}}")


FAILED = Query(
    f"(sum(rate(tandem_serve_requests_total{{{BAD}}}{RATE})) or vector(0)) / ({_requests()} > 0)",
    "failed",
)
REQUEST, BATCH = "tandem_serve_request_seconds", "tandem_serve_batch_seconds"
REQUESTS = Dashboard(
    "tandem-requests",
    "Tandem requests",
    "Servers of recommendations: how many requests, how fast, what fails, from which bundle?",
    (
        (
            "Now",
            (
                Panel(
                    "Requests a second",
                    "Of all servers chosen above.",
                    "requests/s",
                    (Query(_requests(), "requests"),),
                    kind="number",
                ),
                Panel(
                    "Requests that failed",
                    "Share with a status from 500 on; 503 says that too many wait.",
                    "share",
                    (FAILED,),
                    kind="number",
                    limits=((0.001, "orange"), (0.01, "red")),
                ),
                Panel(
                    "Median time",
                    "From a whole request to its answer.",
                    "s",
                    (_quantile(0.5, REQUEST),),
                    kind="number",
                ),
                Panel(
                    "99 % are answered within",
                    "From a whole request to its answer; one in a hundred takes longer.",
                    "s",
                    (_quantile(0.99, REQUEST),),
                    kind="number",
                ),
                Panel(
                    "Requests that wait",
                    "For their turn, on all servers; more than --waiting are turned away with 503.",
                    "",
                    (Query(f"sum(tandem_serve_waiting{{{SERVERS}}})", "waiting"),),
                    kind="number",
                ),
                Panel(
                    "Bundle's step",
                    "Training step of the oldest bundle that answers.",
                    "steps",
                    (Query(f"min(tandem_serve_bundle_step{{{SERVERS}}})", "step"),),
                    kind="number",
                ),
            ),
        ),
        (
            "Requests",
            (
                Panel(
                    "Requests by status",
                    "400 and 422: what was asked for is not there, or of no form; 413: too large; "
                    "503: too many wait, or an answer took too long.",
                    "requests/s",
                    (Query(_requests("status"), "{{status}}"),),
                ),
                Panel(
                    "Time of a request",
                    "From a whole request to its answer, of all servers.",
                    "s",
                    (_quantile(0.5, REQUEST), _quantile(0.99, REQUEST)),
                    log_scale=True,
                ),
                Panel(
                    "Requests by server",
                    "Those that stand behind one load balancer should have about the same.",
                    "requests/s",
                    (Query(_requests("instance"), "{{instance}}"),),
                ),
            ),
        ),
        (
            "Batches and bundles",
            (
                Panel(
                    "Requests a batch",
                    "What arrives while others are answered is answered together.",
                    "",
                    (
                        Query(
                            f"{_each_second('tandem_serve_batched_total')}"
                            f" / ({_each_second(f'{BATCH}_count')} > 0)",
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "Time of a batch",
                    "Of the answering alone, without the wait for it.",
                    "s",
                    (_quantile(0.5, BATCH), _quantile(0.99, BATCH)),
                    log_scale=True,
                ),
                Panel(
                    "Bundle that answers",
                    "Its training step, by server; servers of one link change within seconds.",
                    "steps",
                    (_of_each("tandem_serve_bundle_step"),),
                ),
                Panel(
                    "Changes of bundle",
                    "So far, by server.",
                    "",
                    (_of_each("tandem_serve_bundle_changes"),),
                ),
                Panel(
                    "Bundles that were refused",
                    "Damaged, or of other digests: the one before answers on; the log says why.",
                    "",
                    (_of_each("tandem_serve_bundle_failures"),),
                ),
                Panel(
                    "Waiting by server",
                    "Requests that wait for their turn.",
                    "",
                    (_of_each("tandem_serve_waiting"),),
                ),
            ),
        ),
    ),
    of="servers",
)
