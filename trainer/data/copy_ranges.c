/* Copies of ranges of ids, end to end, as 64-bit integers or of the type they are of.

   The ranges lie all over an array that no cache holds: the next ones are fetched meanwhile. */

#include <stdint.h>

#define AHEAD 8
#define LINE 64

#define COPY(name, type, target)                                                                \
    void name(const type *values, const int64_t *start, const int64_t *stop, int64_t count,     \
              target *out) {                                                                    \
        for (int64_t range = 0; range < count; range++) {                                       \
            if (range + AHEAD < count) {                                                        \
                const char *next = (const char *)(values + start[range + AHEAD]);               \
                const char *end = (const char *)(values + stop[range + AHEAD]);                 \
                for (; next < end; next += LINE) __builtin_prefetch(next);                      \
            }                                                                                   \
            const type *from = values + start[range];                                           \
            const int64_t length = stop[range] - start[range];                                  \
            for (int64_t place = 0; place < length; place++) out[place] = from[place];          \
            out += length;                                                                      \
        }                                                                                       \
    }

COPY(widen_ranges_4, int32_t, int64_t)
COPY(copy_ranges_1, int8_t, int8_t)
COPY(copy_ranges_2, int16_t, int16_t)
COPY(copy_ranges_4, int32_t, int32_t)
COPY(copy_ranges_8, int64_t, int64_t)

/* Where the bags of some rows lie, and their offsets when they lie end to end; returns their size.
   A row is the 32-bit number found `step` bytes after the one before it. */
int64_t find_bags(const int32_t *offsets, const char *rows, int64_t step, int64_t count,
                  int64_t *start, int64_t *stop, int64_t *out) {
    int64_t total = 0;
    for (int64_t place = 0; place < count; place++, rows += step) {
        if (place + 2 * AHEAD < count)
            __builtin_prefetch(offsets + *(const int32_t *)(rows + 2 * AHEAD * step));
        const int32_t row = *(const int32_t *)rows;
        start[place] = offsets[row];
        stop[place] = offsets[row + 1];
        out[place] = total;
        total += stop[place] - start[place];
    }
    out[count] = total;
    return total;
}
