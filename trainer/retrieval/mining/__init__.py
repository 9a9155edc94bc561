"""Hard negatives out of a trained run."""
