"""Stored vectors and their search: files, codes, what passes a filter, the k best."""
