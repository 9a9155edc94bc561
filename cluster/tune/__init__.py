"""Hyperparameter search over trials that Ray runs."""
