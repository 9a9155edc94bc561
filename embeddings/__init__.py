"""Sharded embedding tables."""
