"""Tandem's trainer proper: configuration, model, loop, checkpoints. Under Ray or torchrun alike."""

import tandem_start as tandem_start  # the other packages are ours, whatever else has their names
