"""Amounts of memory, as people write them."""

from __future__ import annotations

import re

from trainer.base.mistake import Mistake


def bytes_of(size: str, flag: str, example: str = "4GB") -> int:
    """Bytes of a size: `4GB` is 4e9, `4 GiB` is 4 x 2^30, `4` is 4.

    Raises:
        Mistake: on what is none, with the flag's name.
    """
    found = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]*)?)\s*([kmgt]?)(i?)b?\s*", size.lower())
    if found is None or (found[3] and not found[2]):
        raise Mistake(f"{flag} {size!r} is no size: write for example {example}")
    power = " kmgt".index(found[2] or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def as_bytes(size: float) -> str:
    """In B, KiB, MiB or GiB, whichever gives a number of three digits."""
    for unit, scale in (("B", 1), ("KiB", 1024), ("MiB", 1024**2)):
        if size < 1000 * scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1024**3:,.1f} GiB"
