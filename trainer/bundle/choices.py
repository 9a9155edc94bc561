"""What a bundle may be made of; imports nothing, so that --help comes at once."""

from typing import Literal

Precision = Literal["float32", "float16", "int8"]
