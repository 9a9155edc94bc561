"""What there is to see of a run: one table of panels, three dashboards; and one of servers.

Grafana's JSON (trainer/live/grafana.py) is made of the panels' queries; the live page and the
report draw the same panels from RUN/metrics.jsonl and validation.jsonl, by the panels' keys.
"""

from trainer.live.panels.losses import LOSSES
from trainer.live.panels.overview import OVERVIEW
from trainer.live.panels.requests import REQUESTS
from trainer.live.panels.system import SYSTEM

DASHBOARDS = (OVERVIEW, LOSSES, SYSTEM)
"""Of runs."""
OF_GRAFANA = (*DASHBOARDS, REQUESTS)
"""All that Grafana shows: no file of a run says what a server does."""
