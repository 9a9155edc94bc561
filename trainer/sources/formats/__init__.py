"""Formats of sources, a file each. known.py has them all; tables.py is for those of columns."""
