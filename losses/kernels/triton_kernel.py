"""The reduction over negatives as Triton kernels for CUDA: forward, and the candidates' gradient.

The forward gives the queries' gradient too: a softmax's is its mean of candidates, summed beside
the weights. The backward computes scores once more, for the candidates. So both together make four
products and two exponentials a score, and no two programs add to one place: the same bits each
time.

Rows and columns lie in order of their ids, so that those that must not meet are ranges of places: a
mask costs two comparisons with numbers of what a program holds, and nothing is read of what it
walks over but operands. With lists each row has further such ranges. Bias and what is subtracted
of a row are 16 further columns of the score's product. Operands are padded with rows that are
zero, and hidden as columns. No score is ever written to memory. Of `exp` queries and bias are
multiplied by log2(e) before, so that exp2 takes scores as they are.

Operands are bfloat16: bf16's one piece, or a float32 cut into three of 8 bits each, whose sum it
is. Scores of those are six products (error 2**-24), gradients three (2**-16). Accumulation is
float32. Imported only where it is used: Triton is no dependency of CPU users.

Shapes: B rows, C columns, D width (a power of 2, as operands are padded), P pieces, E = 16 further
columns; tiles of R rows and W columns; S parts of the walked axis.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers and numbers that Triton types itself)

import triton
import triton.language as tl

from losses.kernels.triton_tiles import (
    LN_2,
    LOWEST,
    E,
    further_columns,
    inside,
    listed,
    lists_of,
    long,
    pieces_of,
    scores,
    softplus_or_hinge,
    store_rows,
    tile,
    weighted,
    zero_if_none,
)

_LEAST_SUM, _MOST_SUM = tl.constexpr(2.0**-60), tl.constexpr(2.0**100)


@triton.jit
def forward_kernel(
    query, candidate, further, copies, row_order, own_first, own_last, first_place, last_place,
    list_first, list_last, reduction, hits, mean, lost,
    num_rows, row_stride, num_columns, width, columns_of_part,
    R: tl.constexpr, W: tl.constexpr, D: tl.constexpr, PIECES: tl.constexpr,
    ELEMENT: tl.constexpr, LISTS: tl.constexpr, WIDEN: tl.constexpr, GRADIENT: tl.constexpr,
    MOVING: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    """One tile of rows against one part of the columns: [S, B] partial reductions and, with lists,
    copies of columns hit, and [S, B, D] their gradients to the queries.

    Of `exp` scores are taken less the largest met so far (MOVING), or less that of the first tile:
    then `lost` tells of each program whether its sums left what float32 holds. AGAIN: of those
    programs alone.
    """
    first_row, part = tl.program_id(0) * R, tl.program_id(1)
    program = part * tl.num_programs(0) + tl.program_id(0)
    if AGAIN:  # noqa: SIM102 (Triton would read where it must not)
        if tl.load(lost + program) == 0:
            return
    query_P = pieces_of(query, first_row, row_stride, R, D, PIECES)
    row = first_row + tl.arange(0, R)
    given_R = row < num_rows
    place_R = tl.load(row_order + row, mask=given_R, other=0)
    low_R = tl.load(own_first + row, mask=given_R, other=0)
    high_R = tl.load(own_last + row, mask=given_R, other=0)
    lists = lists_of(list_first, list_last, place_R, given_R, first_place, last_place, LISTS)
    begin = part * columns_of_part
    end = tl.minimum(begin + columns_of_part, num_columns)
    shift_R = tl.zeros((R,), tl.float32)
    extra_RE = further_columns(shift_R, R)
    if ELEMENT == 0 and not MOVING:
        candidate_P = pieces_of(candidate, begin, num_columns, W, D, PIECES)
        score_RW = scores(query_P, extra_RE, candidate_P, tile(further, begin, W, E), PIECES, WIDEN)
        column_W = begin + tl.arange(0, W)
        hit_RW = listed(inside(column_W, low_R, high_R), column_W, lists, LISTS, False)
        shift_R = zero_if_none(tl.max(tl.where(hit_RW, LOWEST, score_RW), 1))
        extra_RE = further_columns(-shift_R, R)
    else:
        shift_R = tl.full((R,), LOWEST, tl.float32)
    sum_R = tl.zeros((R,), tl.float32)
    hits_R = tl.zeros((R,), tl.float32)
    sum_RD = tl.zeros((R, D), tl.float32)
    for first in range(begin, end, W):
        candidate_P = pieces_of(candidate, first, num_columns, W, D, PIECES)
        score_RW = scores(query_P, extra_RE, candidate_P, tile(further, first, W, E), PIECES, WIDEN)
        column_W = first + tl.arange(0, W)
        hit_RW = listed(inside(column_W, low_R, high_R), column_W, lists, LISTS, False)
        if LISTS:
            copies_W = tl.load(copies + column_W)
            hits_R += tl.sum(tl.where(hit_RW, copies_W[None, :], 0.0), 1)
        score_RW = tl.where(hit_RW, LOWEST, score_RW)
        if ELEMENT == 0:
            if MOVING:
                moved_R = tl.maximum(shift_R, tl.max(score_RW, 1))
                factor_R = tl.exp2(shift_R - zero_if_none(moved_R))
                sum_R *= factor_R
                sum_RD *= factor_R[:, None]
                shift_R = moved_R
                score_RW -= zero_if_none(moved_R)[:, None]
            weight_RW = tl.exp2(score_RW)
            sum_R += tl.sum(weight_RW, 1)
        else:
            copies_W = tl.load(copies + column_W)
            value_RW, weight_RW = softplus_or_hinge(score_RW, copies_W[None, :], ELEMENT)
            sum_R += tl.sum(value_RW, 1)
        if GRADIENT:
            sum_RD = weighted(weight_RW, candidate_P, sum_RD, PIECES, WIDEN)
    if ELEMENT == 0:
        if not MOVING:
            held_R = (sum_R > _LEAST_SUM) & (sum_R < _MOST_SUM)
            tl.store(lost + program, 1 - tl.min(held_R.to(tl.int32), 0))
        sum_RD /= tl.where(sum_R == 0, 1.0, sum_R)[:, None]
        sum_R = (tl.log2(sum_R) + zero_if_none(shift_R)) * LN_2
    place_R = tl.load(row_order + row, mask=given_R, other=0) + part * long(num_rows)
    tl.store(reduction + place_R, sum_R, mask=given_R)
    tl.store(hits + place_R, hits_R, mask=given_R)
    if GRADIENT:
        store_rows(mean, place_R, given_R, width, sum_RD, D)


@triton.jit
def candidate_gradient_kernel(
    query, candidate, further, copies, column_order, column_first, column_last,
    row_order, first_place, last_place, list_first, list_last,
    row_further, factor, least, out,
    num_rows, row_stride, num_columns, columns_given, width, rows_of_part,
    R: tl.constexpr, W: tl.constexpr, D: tl.constexpr, PIECES: tl.constexpr,
    ELEMENT: tl.constexpr, LISTS: tl.constexpr, WIDEN: tl.constexpr,
    LEAN: tl.constexpr, EITHER: tl.constexpr,
):  # fmt: skip
    """One tile of columns against one part of the rows: [S, C, D] partial gradients. LEAN: the
    rows' further columns hold their factors. EITHER: only if that is so, or is not."""
    if EITHER:  # noqa: SIM102
        if (tl.load(least) < 0) == LEAN:
            return
    first_column, part = tl.program_id(0) * W, tl.program_id(1)
    column_W = first_column + tl.arange(0, W)
    given_W = column_W < columns_given
    candidate_P = pieces_of(candidate, first_column, num_columns, W, D, PIECES)
    extra_WE = tile(further, first_column, W, E)
    low_W = tl.load(column_first + column_W, mask=given_W, other=0)
    high_W = tl.load(column_last + column_W, mask=given_W, other=0)
    copies_W = tl.load(copies + column_W)
    sum_WD = tl.zeros((W, D), tl.float32)
    begin = part * rows_of_part
    end = tl.minimum(begin + rows_of_part, row_stride)
    for first in range(begin, end, R):
        query_P = pieces_of(query, first, row_stride, R, D, PIECES)
        extra_RE = tile(row_further, first, R, E)
        score_WR = scores(candidate_P, extra_WE, query_P, extra_RE, PIECES, WIDEN)
        row = first + tl.arange(0, R)
        hit_WR = inside(row, low_W, high_W)
        if LISTS:
            given_R = row < num_rows
            place_R = tl.load(row_order + row, mask=given_R, other=0)
            lists = lists_of(list_first, list_last, place_R, given_R, first_place, last_place, True)
            hit_WR = listed(hit_WR, column_W, lists, True, True)
        score_WR = tl.where(hit_WR, LOWEST, score_WR)
        if ELEMENT == 0:
            slope_WR = tl.exp2(score_WR)
        else:
            _, slope_WR = softplus_or_hinge(score_WR, copies_W[:, None], ELEMENT)
        if not LEAN:
            slope_WR *= tl.load(factor + row)[None, :]
        sum_WD = weighted(slope_WR, query_P, sum_WD, PIECES, WIDEN)
    if ELEMENT == 0:
        sum_WD *= LN_2  # the queries are in units of log2
    place_W = tl.load(column_order + column_W, mask=given_W, other=0)
    store_rows(out, part * long(columns_given) + place_W, given_W, width, sum_WD, D)
