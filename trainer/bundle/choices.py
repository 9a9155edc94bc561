"""What a bundle may be made of; imports nothing, so that --help comes at once."""

from typing import Literal

ATTRIBUTES = "items/attributes.parquet"
Precision = Literal["float32", "float16", "int8"]
