"""What --effort may ask for; imports nothing, so that --help comes at once."""

from typing import Literal

Effort = Literal["quick", "normal", "best"]
