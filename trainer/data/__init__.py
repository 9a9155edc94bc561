"""From source files to batches: prepare, order, load."""
