"""Inputs, towers, task, tables' start, optimizers; and a trained run opened again."""
