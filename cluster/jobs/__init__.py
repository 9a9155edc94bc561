"""Jobs on a cluster that runs: submitted, followed, stopped."""
