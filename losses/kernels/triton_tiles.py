"""What the Triton kernels are made of: tiles of operands, scores, masks and weighted sums.

Shapes: tiles of R rows and W columns; X of what a program holds, Y of what it walks over; D width,
P pieces, E further columns.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers and numbers that Triton types itself)

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
E = tl.constexpr(16)
"""Least depth of a product."""
LOWEST = tl.constexpr(-1e30)
"""In place of a bias of -inf, which would make NaN of the product's zeros."""


@triton.jit
def long(number):
    return tl.full((), 0, tl.int64) + number


@triton.jit
def dot(first, second, sum, WIDEN: tl.constexpr):
    """sum + first @ second; Triton's interpreter has no bfloat16 product."""
    if WIDEN:
        return tl.dot(first.to(tl.float32), second.to(tl.float32), sum, input_precision="ieee")
    else:
        return tl.dot(first, second, sum)


@triton.jit
def scores(held_P, extra_XE, walked_P, extra_YE, PIECES: tl.constexpr, WIDEN: tl.constexpr):
    """[X, Y] held @ walked.T and their further columns', small products first."""
    zero_XY = tl.zeros((extra_XE.shape[0], extra_YE.shape[0]), tl.float32)
    score_XY = dot(extra_XE, tl.trans(extra_YE), zero_XY, WIDEN)
    for order in tl.static_range(PIECES):
        for one in tl.static_range(PIECES - order):
            other_P = walked_P[PIECES - 1 - order - one]
            score_XY = dot(held_P[one], tl.trans(other_P), score_XY, WIDEN)
    return score_XY


@triton.jit
def weighted(weight, pieces, sum, PIECES: tl.constexpr, WIDEN: tl.constexpr):
    """sum + weight @ rows; of several pieces the two largest of both."""
    large = weight.to(tl.bfloat16)
    if PIECES > 1:
        small = (weight - large.to(tl.float32)).to(tl.bfloat16)
        sum = dot(small, pieces[0], sum, WIDEN)
        sum = dot(large, pieces[1], sum, WIDEN)
    return dot(large, pieces[0], sum, WIDEN)


@triton.jit
def further_columns(first_X, SIZE: tl.constexpr):
    """[X, E] bfloat16 to be met with the columns' (bias in three pieces, then ones): ones, and
    three pieces of a number of each row."""
    large_X = first_X.to(tl.bfloat16)
    left_X = first_X - large_X.to(tl.float32)
    middle_X = left_X.to(tl.bfloat16)
    small_X = (left_X - middle_X.to(tl.float32)).to(tl.bfloat16)
    column = tl.arange(0, E)[None, :]
    one_XE = tl.where((column < 3), 1.0, tl.zeros((SIZE, E), tl.float32)).to(tl.bfloat16)
    one_XE = tl.where(column == 3, large_X[:, None], one_XE)
    one_XE = tl.where(column == 4, middle_X[:, None], one_XE)
    return tl.where(column == 5, small_X[:, None], one_XE)


@triton.jit
def tile(pointer, first, SIZE: tl.constexpr, D: tl.constexpr):
    """[SIZE, D] rows of a matrix."""
    place = tl.arange(0, SIZE)[:, None] * D + tl.arange(0, D)[None, :]
    return tl.load(pointer + long(first) * D + place)


@triton.jit
def pieces_of(pointer, first, size, SIZE: tl.constexpr, D: tl.constexpr, PIECES: tl.constexpr):
    """The pieces of SIZE rows of an operand [P, size, D]."""
    one = tile(pointer, first, SIZE, D)
    if PIECES == 1:
        return (one,)
    else:
        two = tile(pointer, long(size) + first, SIZE, D)
        return (one, two, tile(pointer, long(size) * 2 + first, SIZE, D))


@triton.jit
def inside(place_Y, low_X, high_X):
    """bool [X, Y]"""
    return (place_Y[None, :] >= low_X[:, None]) & (place_Y[None, :] < high_X[:, None])


@triton.jit
def lists_of(
    list_first, list_last, place_R, given_R, first_place, last_place, LISTS: tl.constexpr
):  # fmt: skip
    """Where the list of each row begins and ends, and the ranges that lists are made of."""
    if LISTS:
        from_R = tl.load(list_first + place_R, mask=given_R, other=0)
        to_R = tl.load(list_last + place_R, mask=given_R, other=0)
        return from_R, to_R, first_place, last_place
    else:
        return place_R, place_R, first_place, last_place


@triton.jit
def listed(hit, column_W, lists, LISTS: tl.constexpr, FLIPPED: tl.constexpr):
    """`hit` bool [R, W], or FLIPPED, and the columns in the ranges of each row's list."""
    if LISTS:
        from_R, to_R, first_place, last_place = lists
        for place in range(tl.max(to_R - from_R, 0)):
            listed_R = from_R + place < to_R
            low_R = tl.load(first_place + from_R + place, mask=listed_R, other=0)
            high_R = tl.load(last_place + from_R + place, mask=listed_R, other=0)
            among = inside(column_W, low_R, high_R)
            if FLIPPED:
                among = tl.trans(among)
            hit = hit | among
    return hit


@triton.jit
def zero_if_none(score):
    """0 in place of the largest score of none."""
    return tl.where(score < LOWEST * 0.5, 0.0, score)


@triton.jit
def softplus_or_hinge(score, copies, ELEMENT: tl.constexpr):
    """(element of each score, its derivative), both times the column's copies."""
    if ELEMENT == 1:
        value = tl.maximum(score, 0.0) + tl.log(1.0 + tl.exp2(-tl.abs(score) * LOG2_E))
        return value * copies, copies / (1.0 + tl.exp2(-score * LOG2_E))
    else:
        return tl.maximum(score, 0.0) * copies, tl.where(score > 0, copies, 0.0)


@triton.jit
def store_rows(out, row, given, width, sum_XD, D: tl.constexpr):
    """Rows of a matrix of `width` columns."""
    column = tl.arange(0, D)
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(out + place, sum_XD, mask=given[:, None] & (column < width)[None, :])
