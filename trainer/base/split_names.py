"""What the parts of a dataset are called, in the order of what may be learnt from before what."""

SPLITS = ("train", "validation", "test")
