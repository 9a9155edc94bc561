"""Exact search, evaluation, recommendation, export."""
