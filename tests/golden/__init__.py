"""Loss curves that a refactoring leaves bit-identical."""
