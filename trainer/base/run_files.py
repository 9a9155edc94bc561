"""Names of files of a run that rooms below `trainer/run` know as well."""

CONFIG_FILE = "config.json"
"""A folder that has it is a run's."""
SUMMARY_FILE = "summary.json"
"""How its last start ended."""
TRIES_FILE = "tries.jsonl"
"""What was tried on its data before it began; it may stand there without a run."""
TRIES_FOLDER = "tries"
"""Where they are trained; each is gone when it is over."""
SEARCH_FILES = ("trials.json", "comparison.json")
"""Of a search's or a comparison's folder, whose runs are one among many."""
CHOICE_FILE = "choice.json"
"""What came of that; it may stand there without a run, too."""
