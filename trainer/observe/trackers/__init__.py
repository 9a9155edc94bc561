"""Trackers: where else a run's lines are told, beside metrics.jsonl."""
