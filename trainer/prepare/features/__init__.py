"""Attributes, vectors, context and kinds of events: columns of a source typed and encoded."""
