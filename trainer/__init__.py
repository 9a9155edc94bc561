"""Tandem's trainer proper: configuration, model, loop, checkpoints. Under Ray or torchrun alike."""

import tandem as tandem  # the other packages are ours, whatever else has their names
