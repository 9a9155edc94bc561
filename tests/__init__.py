"""Tests. A package, so that ours win over a foreign package of the same name."""
