"""Ranks of a run, what they agree on, and what they tell the process that started them."""
