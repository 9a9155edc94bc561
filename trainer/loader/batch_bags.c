/* A batch out of pieces of several windows: what rows and bags are, then the bags' values.

   The columns of a window are its keys', those of queries first, and five further ones of one value
   a row: user, item, count, feedback, weight. The last piece may be of extra candidates, which have
   no query's keys, users, feedback and weights. */

#include <stdint.h>
#include <string.h>

#define AHEAD 16
#define LINE 64
#define AT_ONCE 4

#define INLINE static inline __attribute__((always_inline))

struct column {
    const char *values, *end;
    /* Of each row's bag, which is values[start] .. values[stop - 1]; 0: a row is one value. */
    const char *start, *stop;
    /* Bytes from one row to the next: among the starts and the stops, or else among the values. */
    int64_t step;
    /* Bytes of a value, below 0 where it has a sign, and bytes of a start. */
    int64_t type, bytes;
};

struct piece {
    const struct column *columns;
    int64_t first, rows;
};

enum { USER, ITEM, COUNT, FEEDBACK, WEIGHT };

/* The start, or the stop, of a row's bag. */
INLINE int64_t bound(const struct column *of, const char *bounds, int64_t row, int64_t bytes) {
    const char *at = bounds + row * of->step;
    return bytes == 4 ? *(const int32_t *)at : *(const int64_t *)at;
}

INLINE int64_t lengths_of(const struct column *of, int64_t first, int64_t rows, int64_t bytes,
                          int64_t *out) {
    int64_t total = 0;
    for (int64_t row = 0; row < rows; row++) {
        out[row] = bound(of, of->stop, first + row, bytes) - bound(of, of->start, first + row, bytes);
        total += out[row];
    }
    return total;
}

static int64_t piece_lengths(const struct piece *piece, int64_t key, int64_t *out) {
    const struct column *of = piece->columns + key;
    if (of->start && of->bytes == 4) return lengths_of(of, piece->first, piece->rows, 4, out);
    if (of->start) return lengths_of(of, piece->first, piece->rows, 8, out);
    for (int64_t row = 0; row < piece->rows; row++) out[row] = 1;
    return piece->rows;
}

/* Bags are short: as many values as fit are copied at once, and what is too many is written over by
   the next bag. At the ends of both arrays they are copied one by one. */
#define COPY(name, value)                                                                       \
    INLINE int64_t *name##_bags(const struct column *of, int64_t first, int64_t rows,           \
                                int64_t bytes, int64_t *out, const int64_t *out_end) {          \
        const value *all = (const value *)of->values, *end = (const value *)of->end;            \
        for (int64_t row = first; row < first + rows; row++) {                                  \
            if (row + AHEAD < first + rows) {                                                   \
                const value *next = all + bound(of, of->start, row + AHEAD, bytes);             \
                const value *last = all + bound(of, of->stop, row + AHEAD, bytes);              \
                for (; next < last; next += LINE / sizeof(value)) __builtin_prefetch(next);     \
            }                                                                                   \
            const value *bag = all + bound(of, of->start, row, bytes);                          \
            const int64_t length = all + bound(of, of->stop, row, bytes) - bag;                 \
            if (bag + length + AT_ONCE <= end && out + length + AT_ONCE <= out_end) {           \
                int64_t place = 0;                                                              \
                do {                                                                            \
                    value some[AT_ONCE];                                                        \
                    memcpy(some, bag + place, sizeof some);                                     \
                    for (int64_t each = 0; each < AT_ONCE; each++)                              \
                        out[place + each] = some[each];                                         \
                    place += AT_ONCE;                                                           \
                } while (place < length);                                                       \
            } else {                                                                            \
                for (int64_t place = 0; place < length; place++) out[place] = bag[place];       \
            }                                                                                   \
            out += length;                                                                      \
        }                                                                                       \
        return out;                                                                             \
    }                                                                                           \
    static int64_t *name(const struct column *of, int64_t first, int64_t rows, int64_t *out,    \
                         const int64_t *out_end) {                                              \
        if (of->start && of->bytes == 4) return name##_bags(of, first, rows, 4, out, out_end);  \
        if (of->start) return name##_bags(of, first, rows, 8, out, out_end);                    \
        for (int64_t row = first; row < first + rows; row++)                                    \
            *out++ = *(const value *)(of->values + row * of->step);                             \
        return out;                                                                             \
    }

COPY(copy_u1, uint8_t)
COPY(copy_i1, int8_t)
COPY(copy_i2, int16_t)
COPY(copy_i4, int32_t)
COPY(copy_i8, int64_t)

static int64_t *copy(const struct piece *piece, int64_t column, int64_t *out,
                     const int64_t *out_end) {
    const struct column *of = piece->columns + column;
    switch (of->type) {
        case 1: return copy_u1(of, piece->first, piece->rows, out, out_end);
        case -1: return copy_i1(of, piece->first, piece->rows, out, out_end);
        case -2: return copy_i2(of, piece->first, piece->rows, out, out_end);
        case -4: return copy_i4(of, piece->first, piece->rows, out, out_end);
        default: return copy_i8(of, piece->first, piece->rows, out, out_end);
    }
}

/* rows: of the batch, without the extra candidates. Writes how many values each key has, users,
   items and counts of all rows and extra candidates, lengths of bags, key after key, weights (32
   bits) and feedback (8). Returns the rows that have a user. */
int64_t batch_rows(int64_t keys, int64_t query_keys, int64_t pieces, const struct piece *all,
                   int64_t rows, int64_t *sizes, int64_t *user, int64_t *item, int64_t *count,
                   int64_t *lengths, int32_t *weight, int8_t *feedback) {
    int64_t stride = 0, real = 0;
    for (int64_t piece = 0; piece < pieces; piece++) {
        copy(all + piece, keys + ITEM, item + stride, item + stride + all[piece].rows);
        copy(all + piece, keys + COUNT, count + stride, count + stride + all[piece].rows);
        if (stride < rows) {
            const struct column *of = all[piece].columns + keys;
            const int64_t first = all[piece].first, end = first + all[piece].rows;
            const int64_t bytes = of[FEEDBACK].type == -1 ? 1 : of[FEEDBACK].type == -4 ? 4 : 8;
            copy(all + piece, keys + USER, user + stride, user + stride + all[piece].rows);
            int64_t to = stride;
            for (int64_t row = first; row < end; row++, to++) {
                const char *at = of[FEEDBACK].values + row * of[FEEDBACK].step;
                feedback[to] = bytes == 1   ? *(const int8_t *)at
                               : bytes == 4 ? (int8_t) * (const int32_t *)at
                                            : (int8_t) * (const int64_t *)at;
                weight[to] = *(const int32_t *)(of[WEIGHT].values + row * of[WEIGHT].step);
                real += user[to] >= 0;
            }
        }
        stride += all[piece].rows;
    }
    for (int64_t key = 0; key < keys; key++) {
        const int64_t *end = lengths + stride;
        sizes[key] = 0;
        for (int64_t piece = 0; piece < pieces; piece++) {
            if (key < query_keys && lengths + stride - end == rows) break;
            sizes[key] += piece_lengths(all + piece, key, lengths);
            lengths += all[piece].rows;
        }
        while (lengths < end) *lengths++ = 0;
    }
    return real;
}

/* The values of all keys, whose number batch_rows has said. */
void batch_values(int64_t keys, int64_t query_keys, int64_t pieces, const struct piece *all,
                  int64_t rows, int64_t *out, const int64_t *out_end) {
    for (int64_t key = 0; key < keys; key++) {
        int64_t done = 0;
        for (int64_t piece = 0; piece < pieces; piece++) {
            if (key < query_keys && done == rows) break;
            out = copy(all + piece, key, out, out_end);
            done += all[piece].rows;
        }
    }
}
