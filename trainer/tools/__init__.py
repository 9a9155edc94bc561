"""`tandem doctor` and `tandem plan`."""
