"""From source files to a dataset."""
