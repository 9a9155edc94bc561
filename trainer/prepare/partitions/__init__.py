"""One partition of users at a time, from staged rows to files of events."""
