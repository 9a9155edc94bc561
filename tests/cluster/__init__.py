"""Tests of launching, the command line and what they are made of."""
