"""Rows put in order by several keys at once: sorts of plain numbers, which are the fast ones.

Shapes: E = rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

WORD = 64
"""Bits of a number that is sorted."""


class _Field(NamedTuple):
    """Some bits of a key, and where they lie in a word."""

    key: int
    low: int
    bits: int
    at: int


def order_by(*keys_E: np.ndarray) -> np.ndarray:
    """The places of the rows by integer keys, the first one first; equal rows stay in order.

    A word holds bits of the keys above the row's place, so that sorting the words sorts the places:
    numpy sorts numbers five times faster than it finds their order. Keys that are too wide for a
    word are sorted from their last bits on, word after word.

    Returns:
        int64 [E].
    """
    length = len(keys_E[0])
    if not length:
        return np.empty(0, dtype=np.int64)
    lowest = [key.min() for key in keys_E]
    widths = [
        (int(key.max()) - int(low)).bit_length() for key, low in zip(keys_E, lowest, strict=True)
    ]
    place_bits = (length - 1).bit_length()
    places = np.uint64((1 << place_bits) - 1)
    order_E: np.ndarray | None = None
    for fields in _words(widths, WORD - place_bits):
        word_E = np.zeros(length, dtype=np.uint64)
        for field in fields:
            low = np.uint64(int(lowest[field.key]) % (1 << WORD))
            bits_E = keys_E[field.key].astype(np.uint64) - low  # wraps, as negative keys need it
            bits_E >>= np.uint64(field.low)
            bits_E &= np.uint64((1 << field.bits) - 1)
            bits_E <<= np.uint64(field.at + place_bits)
            word_E |= bits_E
        if order_E is not None:
            word_E = word_E[order_E]
        word_E |= np.arange(length, dtype=np.uint64)
        word_E.sort()
        word_E &= places
        place_E = word_E.view(np.int64)
        order_E = place_E if order_E is None else order_E[place_E]
    return np.arange(length) if order_E is None else order_E


def _words(widths: list[int], room: int) -> Iterator[list[_Field]]:
    """The bits of all keys dealt to words of `room` bits, the last key's lowest bits first."""
    fields: list[_Field] = []
    used = 0
    for key in reversed(range(len(widths))):
        low = 0
        while low < widths[key]:
            bits = min(widths[key] - low, room - used)
            fields.append(_Field(key, low, bits, used))
            low, used = low + bits, used + bits
            if used == room:
                yield fields
                fields, used = [], 0
    if fields:
        yield fields


def begins_of(*keys_E: np.ndarray) -> np.ndarray:
    """Rows that differ from the one before in some key, bool [E]: where groups of equals begin."""
    begins_E = np.zeros(len(keys_E[0]), dtype=bool)
    begins_E[:1] = True
    for key_E in keys_E:
        begins_E[1:] |= key_E[1:] != key_E[:-1]
    return begins_E
