"""Retrieval losses. Imports torch alone."""
