"""The trainer proper: configuration, model, loop, checkpoints. Runs under Ray or torchrun alike."""
