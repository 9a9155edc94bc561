"""Measures of rankings, and the popularity baseline."""
