"""Exact top k over a sharded catalog."""
