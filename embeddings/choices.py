"""What a table may be set to, by name. Imports no torch, so that a config is read at once."""

from typing import Literal

TableOptimizer = Literal["rowwise_adagrad", "adagrad", "sgd", "adam"]
TablePrecision = Literal["fp32", "fp16"]
Sharding = Literal["row_wise", "table_wise"]
Placement = Literal["device", "uvm_caching"]
"""device: whole shards in the device's memory. uvm_caching: shards in host memory, with the rows
in use cached on the GPU."""
