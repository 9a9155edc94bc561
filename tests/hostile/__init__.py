"""Hostile input, drawn from a seed, for every command: see `case.py`, `judge.py`, `__main__.py`.

HOSTILE_SEED=7 HOSTILE_SECONDS=600 make test-hostile
"""
