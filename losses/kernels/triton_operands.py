"""Triton kernels that lay out what the others take: rows and columns in order of their ids, cut
into pieces, with their further columns.

Shapes: as in `triton_kernel.py`.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers and numbers that Triton types itself)

import triton
import triton.language as tl

from losses.kernels.triton_tiles import LOG2_E, LOWEST, E, further_columns, long


@triton.jit
def query_kernel(
    source, order, out, num_rows, row_stride, width, unit,
    R: tl.constexpr, D: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """[B, width] times `unit`, in order, as pieces [P, row_stride, D], zero past B and `width`."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    given = row < num_rows
    place = tl.load(order + row, mask=given, other=0)
    _cut(source, out, row, place, given, row_stride, width, unit, D, PIECES)


@triton.jit
def candidate_kernel(
    source, order, bias, copies, out, further, copies_out, num_given, num_columns, width, unit,
    R: tl.constexpr, D: tl.constexpr, PIECES: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """[C, width] in order as pieces [P, num_columns, D]; their further columns of the bias times
    `unit`, and copies, 0 of hidden ones."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    given = row < num_given
    place = tl.load(order + row, mask=given, other=0)
    _cut(source, out, row, place, given, num_columns, width, 1.0, D, PIECES)
    bias_R = unit * tl.load(bias + place, mask=given, other=float("-inf"))
    copies_R = tl.full((R,), 1.0, tl.float32)
    if COPIES:
        copies_R = tl.load(copies + place, mask=given, other=0.0)
    hidden = bias_R == float("-inf")
    tl.store(copies_out + row, tl.where(hidden, 0.0, copies_R))
    cut_RE = further_columns(tl.where(hidden, LOWEST, bias_R), R)
    column = tl.arange(0, E)
    # The rows' are ones and then pieces, the columns' pieces and then ones.
    turned = tl.where(column < 3, column + 3, tl.where(column < 6, column - 3, column))
    tl.store(further + row[:, None] * E + turned[None, :], cut_RE)


@triton.jit
def _cut(
    source, out, row, place, given, stride, width, unit, D: tl.constexpr, PIECES: tl.constexpr
):
    """Rows at `place` of the source as pieces at `row`."""
    column = tl.arange(0, D)
    inside = given[:, None] & (column < width)[None, :]
    left = tl.load(source + place.to(tl.int64)[:, None] * width + column[None, :], inside, 0.0)
    left *= unit
    for piece in tl.static_range(PIECES):
        large = left.to(tl.bfloat16)
        at = (piece * long(stride) + row)[:, None] * D + column[None, :]
        tl.store(out + at, large)
        left -= large.to(tl.float32)


@triton.jit
def row_kernel(
    reduction, gradient, least, order, further, factor, num_rows,
    R: tl.constexpr, ELEMENT: tl.constexpr, LEAN: tl.constexpr,
):  # fmt: skip
    """What the backward takes of rows, in order: further columns, and a factor of the slope. Of
    `exp` the reduction is subtracted; LEAN, unless a gradient is negative, with the log of the
    gradient added, and no factor."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    given_R = row < num_rows
    place_R = tl.load(order + row, mask=given_R, other=0)
    gradient_R = tl.load(gradient + place_R, mask=given_R, other=0.0)
    added_R = tl.zeros((R,), tl.float32)
    if ELEMENT == 0:
        # A row without negatives has a reduction of -inf and a gradient of 0.
        reduction_R = tl.load(reduction + place_R, mask=given_R, other=0.0)
        added_R = tl.where(reduction_R == float("-inf"), 0.0, -reduction_R * LOG2_E)
        if LEAN:
            signed = tl.load(least) < 0
            in_log_R = tl.where(gradient_R == 0, LOWEST, tl.log2(gradient_R) + added_R)
            added_R = tl.where(signed, added_R, in_log_R)
    tl.store(factor + row, gradient_R)
    tl.store(further + row[:, None] * E + tl.arange(0, E)[None, :], further_columns(added_R, R))
