"""Batches of a dataset: their order, windows, candidates, reading ahead."""
