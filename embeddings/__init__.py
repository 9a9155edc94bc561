"""Tandem's sharded embedding tables: what a table is, how it is initialised, sharded and optimised.

TorchRec holds the tables and FBGEMM's kernels look them up and update them; this package states
the tables a two-tower model needs and turns them into a `DistributedModelParallel` model on any
number of ranks, on CPUs and GPUs by the same path. It knows nothing of data, losses or training.
"""
