/* The bags of a batch out of pieces of several windows: lengths first, then values.

   keys x pieces of addresses, key after key. A piece's rows of a key are bags values[start[r]] ..
   values[stop[r] - 1], or values[r] alone where start is 0. Values become 64-bit integers. */

#include <stdint.h>

#define AHEAD 8
#define LINE 64

/* lengths: keys x stride, zero where no piece has rows; sizes: values of each key. */
void bag_lengths(int64_t keys, int64_t pieces, int64_t stride, const int64_t *const *start,
                 const int64_t *const *stop, const int64_t *rows, int64_t *lengths,
                 int64_t *sizes) {
    for (int64_t key = 0; key < keys; key++) {
        int64_t *out = lengths + key * stride;
        int64_t total = 0;
        for (int64_t piece = key * pieces; piece < (key + 1) * pieces; piece++) {
            const int64_t *from = start[piece], *to = stop[piece];
            for (int64_t row = 0; row < rows[piece]; row++) {
                const int64_t length = from ? to[row] - from[row] : 1;
                out[row] = length;
                total += length;
            }
            out += rows[piece];
        }
        sizes[key] = total;
    }
}

#define COPY(type)                                                                              \
    {                                                                                           \
        const type *all = values[piece];                                                        \
        if (!from) {                                                                            \
            for (int64_t row = 0; row < rows[piece]; row++) *out++ = all[row];                  \
            break;                                                                              \
        }                                                                                       \
        for (int64_t row = 0; row < rows[piece]; row++) {                                       \
            if (row + AHEAD < rows[piece]) {                                                    \
                const char *next = (const char *)(all + from[row + AHEAD]);                     \
                const char *end = (const char *)(all + to[row + AHEAD]);                        \
                for (; next < end; next += LINE) __builtin_prefetch(next);                      \
            }                                                                                   \
            const type *bag = all + from[row];                                                  \
            const int64_t length = to[row] - from[row];                                         \
            for (int64_t place = 0; place < length; place++) out[place] = bag[place];           \
            out += length;                                                                      \
        }                                                                                       \
        break;                                                                                  \
    }

/* types: bytes of a value of each piece, below 0 where it has a sign. */
void bag_values(int64_t keys, int64_t pieces, const void *const *values,
                const int64_t *const *start, const int64_t *const *stop, const int64_t *rows,
                const int64_t *types, int64_t *out) {
    for (int64_t piece = 0; piece < keys * pieces; piece++) {
        const int64_t *from = start[piece], *to = stop[piece];
        switch (types[piece]) {
            case 1: COPY(uint8_t)
            case -1: COPY(int8_t)
            case -2: COPY(int16_t)
            case -4: COPY(int32_t)
            case -8: COPY(int64_t)
        }
    }
}
