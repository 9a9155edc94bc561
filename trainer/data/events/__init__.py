"""The events of a dataset: read, written, and sliced into histories and queries."""
