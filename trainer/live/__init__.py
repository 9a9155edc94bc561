"""Watching a run: the panels, Grafana's dashboards, Tandem's own live page, Prometheus."""
