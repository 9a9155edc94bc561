"""The losses, one a file: what a row's loss is, computed from one reduction over its negatives.

`losses/choices.py` is the table that names them; `formula.py` says what each of them has.
"""
