"""Tandem on Ray: launching, submitting, the command line. The only package that knows Ray."""

import tandem as tandem  # the other packages are ours, whatever else has their names
