"""A bundle: what answers are given from, in files that are mapped. Knows neither runs nor training.

Nothing here imports torch before a query has to be computed by a program.
"""
