/* The rows that are trained on, out of the events of some users, and what each row sees.

   Events lie user by user, each user's in time order. A row is WIDTH numbers: user, item, feedback,
   the bits of its weight, and where its `history` and `disliked` begin and end among their values. */

#include <stdint.h>
#include <string.h>

#define WIDTH 8

/* pool: by split, whether its events are read. chunk: 0, or the length of the chunks that lists are
   cut into (histories.cut_into_chunks). carried, event_weight: 0 where there are none.
   room: rows that `rows` has space for. places: values of each list that lie before these; values
   written to each list when done. Returns the rows that there are. */
int64_t training_rows(int64_t users, const int64_t *user, const int64_t *offsets,
                      const int32_t *item, const int64_t *time, const int8_t *kind,
                      const int8_t *feedback, const int8_t *split, const uint8_t *carried,
                      const float *event_weight, const float *kind_weight, const uint8_t *pool,
                      int64_t positives_only, int64_t limit, int64_t chunk, int64_t room,
                      int64_t *places, int32_t *history, int32_t *disliked, int32_t *event,
                      int32_t *rows) {
    const int64_t before[2] = {places[0], places[1]}, stride = chunk > 1 ? chunk / 2 : 1;
    int64_t count = 0, held[2] = {0, 0};
    for (int64_t place = 0; place < users; place++) {
        const int64_t first[2] = {held[0], held[1]};
        int64_t seen[2] = {held[0], held[1]};
        for (int64_t at = offsets[place]; at < offsets[place + 1]; at++) {
            if (at == offsets[place] || time[at] != time[at - 1]) {
                seen[0] = held[0];
                seen[1] = held[1];
            }
            const int64_t read = pool[split[at]], liked = feedback[at];
            const int64_t wanted = positives_only ? liked > 0 : liked != 0;
            if (read && wanted && !(carried && carried[at])) {
                if (count < room) {
                    int32_t *row = rows + count * WIDTH;
                    float weight = kind_weight[kind[at]];
                    if (event_weight) weight *= event_weight[at];
                    row[0] = (int32_t)user[place];
                    row[1] = item[at];
                    row[2] = (liked > 0) - (liked < 0);
                    memcpy(row + 3, &weight, sizeof weight);
                    for (int64_t list = 0; list < 2; list++) {
                        int64_t start = first[list];
                        const int64_t beyond = seen[list] - start - limit;
                        if (beyond > 0)
                            start += chunk ? (beyond + stride - 1) / stride * stride : beyond;
                        row[4 + 2 * list] = (int32_t)(before[list] + start);
                        row[5 + 2 * list] = (int32_t)(before[list] + seen[list]);
                    }
                    event[count] = (int32_t)at;
                }
                count++;
            }
            history[held[0]] = item[at];
            disliked[held[1]] = item[at];
            held[0] += read & (liked >= 0);
            held[1] += read & (liked < 0);
        }
    }
    places[0] = held[0];
    places[1] = held[1];
    return count;
}
