"""Metrics, progress, time of parts, HTTP: nothing here knows a model."""
