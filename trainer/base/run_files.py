"""Names of files of a run that rooms below `trainer/run` know as well."""

CONFIG_FILE = "config.json"
"""A folder that has it is a run's."""
SUMMARY_FILE = "summary.json"
"""How its last start ended."""
TRIES_FILE = "tries.jsonl"
"""What was tried on its data before it began; it may stand there without a run."""
