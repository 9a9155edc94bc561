"""Names of files of a run that rooms below `trainer/run` know as well."""

CONFIG_FILE = "config.json"
"""A folder that has it is a run's."""
SUMMARY_FILE = "summary.json"
"""How its last start ended."""
