"""Planted data, whose best answer is known."""
