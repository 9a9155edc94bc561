"""The reduction over negatives as Triton kernels for CUDA: forward, and recomputing backward.

Log Q bias and id masks are applied inside the tile, in registers; no score is ever written to
memory. Each row has an id that it must not meet and, on request, a list of them. Of `exp` queries
and bias are multiplied by log2(e) before, so that exp2 takes scores as they are. Operands may be
float32 or bfloat16, accumulation is float32. Imported only where it is used: Triton is no
dependency of CPU users.

Shapes: B rows, C columns, D width; tiles of R rows and W columns; S parts of the walked axis.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers and numbers that Triton types itself)

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _dot(first, second, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Matrix product accumulated in float32; Triton's interpreter has no bfloat16 product."""
    if WIDEN:
        return tl.dot(first.to(tl.float32), second.to(tl.float32), input_precision=PRECISION)
    return tl.dot(first, second, input_precision=PRECISION)


@triton.jit
def _tile_scores(
    query_RD, candidate_WD, bias_W, row_id_R, column_id_W, listed, first_R, last_R,
    HAS_LISTS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """[R, W] scores in float32; -inf where masked, as where the bias is."""
    score_RW = _dot(query_RD, tl.trans(candidate_WD), PRECISION, WIDEN)
    score_RW += bias_W[None, :]
    hit_RW = row_id_R[:, None] == column_id_W[None, :]
    if HAS_LISTS:
        for place in range(tl.max(last_R - first_R, 0)):
            id_R = tl.load(listed + first_R + place, mask=first_R + place < last_R, other=-2)
            hit_RW = hit_RW | (id_R[:, None] == column_id_W[None, :])
    return tl.where(hit_RW, float("-inf"), score_RW)


@triton.jit
def _load_tile(pointer, first, limit, width, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """[SIZE, WIDTH] rows of a matrix of `width` columns, zero outside it."""
    row = first + tl.arange(0, SIZE)
    column = tl.arange(0, WIDTH)
    inside = (row < limit)[:, None] & (column < width)[None, :]
    return tl.load(
        pointer + row.to(tl.int64)[:, None] * width + column[None, :], mask=inside, other=0.0
    )


@triton.jit
def _load_vector(pointer, first, limit, other, SIZE: tl.constexpr):
    place = first + tl.arange(0, SIZE)
    return tl.load(pointer + place, mask=place < limit, other=other)


@triton.jit
def _derivative(score_RW, copies_W, reduction_R, gradient_R, ELEMENT: tl.constexpr):
    """[R, W] gradient of the loss with respect to every score."""
    if ELEMENT == 0:
        # A row without negatives has a reduction of -inf and a gradient of 0.
        finite_R = tl.where(reduction_R == float("-inf"), 0.0, reduction_R * _LOG2_E)
        slope_RW = tl.exp2(score_RW - finite_R[:, None])
    elif ELEMENT == 1:
        slope_RW = copies_W[None, :] / (1.0 + tl.exp2(-score_RW * _LOG2_E))
    else:
        slope_RW = tl.where(score_RW > 0, copies_W[None, :], 0.0)
    return slope_RW * gradient_R[:, None]


@triton.jit
def forward_kernel(
    query, candidate, bias, copies, row_id, column_id, listed, list_first, list_last, reduction,
    negatives, num_rows, num_columns, width, columns_of_part,
    R: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
    ELEMENT: tl.constexpr, HAS_LISTS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of rows against one part of the columns: [S, B] partial reductions and counts."""
    first_row, part = tl.program_id(0) * R, tl.program_id(1)
    query_RD = _load_tile(query, first_row, num_rows, width, R, D)
    row_id_R = _load_vector(row_id, first_row, num_rows, -2, R)
    first_R = _load_vector(list_first, first_row, num_rows, 0, R) if HAS_LISTS else row_id_R
    last_R = _load_vector(list_last, first_row, num_rows, 0, R) if HAS_LISTS else row_id_R
    top_R = tl.full((R,), float("-inf"), tl.float32)
    sum_R = tl.zeros((R,), tl.float32)
    count_R = tl.zeros((R,), tl.float32)
    last_column = tl.minimum((part + 1) * columns_of_part, num_columns)
    for first in range(part * columns_of_part, last_column, W):
        candidate_WD = _load_tile(candidate, first, last_column, width, W, D)
        bias_W = _load_vector(bias, first, last_column, float("-inf"), W)
        copies_W = _load_vector(copies, first, last_column, 0.0, W)
        id_W = _load_vector(column_id, first, last_column, -1, W)
        score_RW = _tile_scores(
            query_RD, candidate_WD, bias_W, row_id_R, id_W, listed, first_R, last_R,
            HAS_LISTS, PRECISION, WIDEN,
        )  # fmt: skip
        count_R += tl.sum(tl.where(score_RW == float("-inf"), 0.0, copies_W[None, :]), 1)
        if ELEMENT == 0:
            moved_R = tl.maximum(top_R, tl.max(score_RW, 1))
            finite_R = tl.where(moved_R == float("-inf"), 0.0, moved_R)
            sum_R *= tl.exp2(top_R - finite_R)
            sum_R += tl.sum(tl.exp2(score_RW - finite_R[:, None]), 1)
            top_R = moved_R
        elif ELEMENT == 1:
            small_RW = tl.exp2(-tl.abs(score_RW) * _LOG2_E)
            plus_RW = tl.maximum(score_RW, 0.0) + tl.log(1.0 + small_RW)
            sum_R += tl.sum(plus_RW * copies_W[None, :], 1)
        else:
            sum_R += tl.sum(tl.maximum(score_RW, 0.0) * copies_W[None, :], 1)
    if ELEMENT == 0:
        finite_R = tl.where(top_R == float("-inf"), 0.0, top_R)
        sum_R = (tl.log2(sum_R) + finite_R) * _LN_2
    row = first_row + tl.arange(0, R)
    tl.store(reduction + part * num_rows + row, sum_R, mask=row < num_rows)
    tl.store(negatives + part * num_rows + row, count_R, mask=row < num_rows)


@triton.jit
def query_gradient_kernel(
    query, candidate, bias, copies, row_id, column_id, listed, list_first, list_last, reduction,
    gradient, out, num_rows, num_columns, width, columns_of_part,
    R: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
    ELEMENT: tl.constexpr, HAS_LISTS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of rows against one part of the columns: [S, B, D] partial gradients."""
    first_row, part = tl.program_id(0) * R, tl.program_id(1)
    query_RD = _load_tile(query, first_row, num_rows, width, R, D)
    row_id_R = _load_vector(row_id, first_row, num_rows, -2, R)
    first_R = _load_vector(list_first, first_row, num_rows, 0, R) if HAS_LISTS else row_id_R
    last_R = _load_vector(list_last, first_row, num_rows, 0, R) if HAS_LISTS else row_id_R
    reduction_R = _load_vector(reduction, first_row, num_rows, 0.0, R)
    gradient_R = _load_vector(gradient, first_row, num_rows, 0.0, R)
    sum_RD = tl.zeros((R, D), tl.float32)
    last_column = tl.minimum((part + 1) * columns_of_part, num_columns)
    for first in range(part * columns_of_part, last_column, W):
        candidate_WD = _load_tile(candidate, first, last_column, width, W, D)
        bias_W = _load_vector(bias, first, last_column, float("-inf"), W)
        copies_W = _load_vector(copies, first, last_column, 0.0, W)
        id_W = _load_vector(column_id, first, last_column, -1, W)
        score_RW = _tile_scores(
            query_RD, candidate_WD, bias_W, row_id_R, id_W, listed, first_R, last_R,
            HAS_LISTS, PRECISION, WIDEN,
        )  # fmt: skip
        slope_RW = _derivative(score_RW, copies_W, reduction_R, gradient_R, ELEMENT)
        sum_RD += _dot(slope_RW.to(candidate_WD.dtype), candidate_WD, PRECISION, WIDEN)
    row, column = first_row + tl.arange(0, R), tl.arange(0, D)
    place = (part * num_rows + row).to(tl.int64)[:, None] * width + column[None, :]
    tl.store(out + place, sum_RD, mask=(row < num_rows)[:, None] & (column < width)[None, :])


@triton.jit
def candidate_gradient_kernel(
    query, candidate, bias, copies, row_id, column_id, listed, list_first, list_last, reduction,
    gradient, out, num_rows, num_columns, width, rows_of_part,
    R: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
    ELEMENT: tl.constexpr, HAS_LISTS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of columns against one part of the rows: [S, C, D] partial gradients."""
    first_column, part = tl.program_id(0) * W, tl.program_id(1)
    candidate_WD = _load_tile(candidate, first_column, num_columns, width, W, D)
    bias_W = _load_vector(bias, first_column, num_columns, float("-inf"), W)
    copies_W = _load_vector(copies, first_column, num_columns, 0.0, W)
    id_W = _load_vector(column_id, first_column, num_columns, -1, W)
    sum_WD = tl.zeros((W, D), tl.float32)
    last_row = tl.minimum((part + 1) * rows_of_part, num_rows)
    for first in range(part * rows_of_part, last_row, R):
        query_RD = _load_tile(query, first, last_row, width, R, D)
        row_id_R = _load_vector(row_id, first, last_row, -2, R)
        first_R = _load_vector(list_first, first, last_row, 0, R) if HAS_LISTS else row_id_R
        last_R = _load_vector(list_last, first, last_row, 0, R) if HAS_LISTS else row_id_R
        reduction_R = _load_vector(reduction, first, last_row, 0.0, R)
        gradient_R = _load_vector(gradient, first, last_row, 0.0, R)
        score_RW = _tile_scores(
            query_RD, candidate_WD, bias_W, row_id_R, id_W, listed, first_R, last_R,
            HAS_LISTS, PRECISION, WIDEN,
        )  # fmt: skip
        slope_RW = _derivative(score_RW, copies_W, reduction_R, gradient_R, ELEMENT)
        slope_WR = tl.trans(slope_RW).to(query_RD.dtype)
        sum_WD += _dot(slope_WR, query_RD, PRECISION, WIDEN)
    if ELEMENT == 0:
        sum_WD *= _LN_2  # the queries are in units of log2
    place_W, column = first_column + tl.arange(0, W), tl.arange(0, D)
    place = (part * num_columns + place_W).to(tl.int64)[:, None] * width + column[None, :]
    inside = (place_W < num_columns)[:, None] & (column < width)[None, :]
    tl.store(out + place, sum_WD, mask=inside)
