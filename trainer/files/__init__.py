"""Paths and URIs, and files that are whole or not there."""
