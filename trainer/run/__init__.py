"""A run's folder: config, state, lock, checkpoints."""
