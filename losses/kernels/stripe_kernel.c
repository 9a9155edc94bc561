/* One stripe of rows against all columns: the two passes of losses/kernels/compiled.py over exponentials.

   `reduce*` takes scores, adds the bias, raises 2 to them, sets masked pairs to 0, and adds each
   row's sum and its product with the candidates; it keeps the exponentials. `spread*` multiplies
   them with the weighted queries: the candidates' gradient.

   Shapes: R rows of the stripe (a multiple of ROWS), C columns and D width (of PANEL); all padded.
   Columns come in panels of PANEL. float32: query [R][D], packed [C/PANEL][D][PANEL], candidate
   [C][D], kept [C/PANEL][R][PANEL], gradient [R][D] or [C][D]. bf16: the same with two neighbours
   along the summed axis side by side in a word: query [R][D/2], packed [C/PANEL][D/2][PANEL],
   candidate [C/2][D], kept [C/PANEL][R/2][PANEL], weighted [R/2][D]; sums are float32 everywhere.

   Results do not depend on the number of threads: every output element is summed by one thread, in
   one order. GNU vector extensions give each target its own vector width. */

#include <stdint.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 8
#elif defined(__AVX__)
#define LANES 8
#define ROWS 4
#else
#define LANES 4
#define ROWS 8
#endif
#define PANEL (2 * LANES)
#define BLOCK 8 /* panels whose exponentials stay in a core's cache between the steps of a pass */

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
#define INLINE static inline __attribute__((always_inline))
#define EACH_ROW(i) _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++)

INLINE vec load(const float *from) { return *(const unaligned *)from; }
INLINE void store(float *to, vec value) { *(unaligned *)to = value; }

INLINE void load_tile(vec tile[ROWS][2], const float *from, int64_t stride) {
  EACH_ROW(i) tile[i][0] = load(from + i * stride), tile[i][1] = load(from + i * stride + LANES);
}

INLINE void store_tile(float *to, int64_t stride, vec tile[ROWS][2]) {
  EACH_ROW(i) store(to + i * stride, tile[i][0]), store(to + i * stride + LANES, tile[i][1]);
}

/* tile[i] += sum over k of a[k * a_k + i * a_i] * (PANEL floats at b + k * b_k) */
INLINE void multiply(vec tile[ROWS][2], int64_t depth, const float *a, int64_t a_k, int64_t a_i,
                     const float *b, int64_t b_k) {
  for (int64_t k = 0; k < depth; k++, a += a_k, b += b_k) {
    vec b0 = load(b), b1 = load(b + LANES);
    EACH_ROW(i) {
      float x = a[i * a_i];
      tile[i][0] += x * b0;
      tile[i][1] += x * b1;
    }
  }
}

/* 2 ** x for x of at most 127; 0 below -126.5. Polynomial of Cephes: relative error 2e-7. */
INLINE vec exp2_vec(vec x) {
  const vec magic = (vec){} + 12582912.0f; /* 1.5 * 2 ** 23: the sum's low bits hold round(x) */
  const vec lowest = (vec){} - 127.0f;
  ints above = x > lowest;
  x = (vec)(((ints)x & above) | ((ints)lowest & ~above));
  vec rounded = x + magic;
  vec f = x - (rounded - magic);
  vec p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.0f;
  return p * (vec)(((ints)rounded << 23) + (127 << 23));
}

INLINE void store_powers(float *to, vec tile[ROWS][2]) {
  EACH_ROW(i) tile[i][0] = exp2_vec(tile[i][0]), tile[i][1] = exp2_vec(tile[i][1]);
  store_tile(to, PANEL, tile);
}

INLINE float sum_of(vec values) {
  float total = 0;
  for (int lane = 0; lane < LANES; lane++) total += values[lane];
  return total;
}

/* Columns that leave a row: entries first_entry[row] to first_entry[row + 1], each a range of
   `column` (columns in the order of their keys, ascending within a key). */
typedef struct {
  const int64_t *column;
  int64_t *next; /* of every entry, the first place not yet masked */
  const int64_t *end;
  const int64_t *first_entry;
} Rule;

/* Sets the masked pairs of rows [first, last) up to panel p1 to 0; `exps` is panel p0 of [R][PANEL]
   panels. A hit counts as the column's copies. Hidden columns and pairs that another rule has masked
   are 0 already: not counted. */
static void mask(int64_t num_rules, Rule *rules, int64_t R, int64_t first, int64_t last, int64_t p0,
                 int64_t p1, const float *copies, float *exps, double *hits) {
  for (Rule *rule = rules; rule < rules + num_rules; rule++)
    for (int64_t row = first; row < last; row++)
      for (int64_t v = rule->first_entry[row]; v < rule->first_entry[row + 1]; v++)
        for (; rule->next[v] < rule->end[v]; rule->next[v]++) {
          int64_t c = rule->column[rule->next[v]];
          if (c >= p1 * PANEL) break;
          float *place = exps + ((c / PANEL - p0) * R + row) * PANEL + c % PANEL;
          if (*place != 0) hits[row] += copies[c];
          *place = 0;
        }
}

int rows_multiple(void) { return ROWS; }
int panel_columns(void) { return PANEL; }
int block_columns(void) { return BLOCK * PANEL; }

void reduce(int threads, int64_t R, int64_t C, int64_t D, const float *query, const float *packed,
            const float *candidate, const float *bias, const float *copies, int64_t num_rules,
            Rule *rules, float *kept, float *sum, double *hits, float *gradient) {
  int64_t groups = R / ROWS, panels = C / PANEL, parts = 2 * threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t part = 0; part < parts; part++) {
    int64_t first = groups * part / parts, last = groups * (part + 1) / parts;
    for (int64_t p0 = 0; p0 < panels; p0 += BLOCK) {
      int64_t p1 = p0 + BLOCK < panels ? p0 + BLOCK : panels;
      vec tile[ROWS][2];
      for (int64_t row = first * ROWS; row < last * ROWS; row += ROWS)
        for (int64_t p = p0; p < p1; p++) {
          load_tile(tile, bias + p * PANEL, 0);
          multiply(tile, D, query + row * D, 1, D, packed + p * PANEL * D, PANEL);
          store_powers(kept + (p * R + row) * PANEL, tile);
        }
      mask(num_rules, rules, R, first * ROWS, last * ROWS, p0, p1, copies, kept + p0 * R * PANEL,
           hits);
      for (int64_t row = first * ROWS; row < last * ROWS; row += ROWS) {
        EACH_ROW(i) {
          vec total = {};
          for (int64_t p = p0; p < p1; p++) {
            const float *exps = kept + (p * R + row + i) * PANEL;
            total += load(exps) + load(exps + LANES);
          }
          sum[row + i] += sum_of(total);
        }
        for (int64_t d = 0; d < D; d += PANEL) {
          load_tile(tile, gradient + row * D + d, D);
          for (int64_t p = p0; p < p1; p++)
            multiply(tile, PANEL, kept + (p * R + row) * PANEL, 1, PANEL,
                     candidate + p * PANEL * D + d, D);
          store_tile(gradient + row * D + d, D, tile);
        }
      }
    }
  }
}

void spread(int threads, int64_t R, int64_t C, int64_t D, const float *weighted, const float *kept,
            float *gradient) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
  for (int64_t p = 0; p < C / PANEL; p++)
    for (int64_t w = 0; w < PANEL; w += ROWS)
      for (int64_t d = 0; d < D; d += PANEL) {
        float *out = gradient + (p * PANEL + w) * D + d;
        vec tile[ROWS][2];
        load_tile(tile, out, D);
        multiply(tile, R, kept + p * R * PANEL + w, PANEL, 1, weighted + d, D);
        store_tile(out, D, tile);
      }
}

#if defined(__AVX512BF16__)
#include <immintrin.h>

/* As `multiply`, over pairs along k. */
INLINE void multiply_pairs(vec tile[ROWS][2], int64_t depth, const int32_t *a, int64_t a_k,
                           int64_t a_i, const int32_t *b, int64_t b_k) {
  for (int64_t k = 0; k < depth; k++, a += a_k, b += b_k) {
    __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + LANES);
    EACH_ROW(i) {
      __m512bh x = (__m512bh)_mm512_set1_epi32(a[i * a_i]);
      tile[i][0] = (vec)_mm512_dpbf16_ps((__m512)tile[i][0], x, b0);
      tile[i][1] = (vec)_mm512_dpbf16_ps((__m512)tile[i][1], x, b1);
    }
  }
}

/* PANEL floats to bf16, rounded to nearest. */
INLINE __m512i to_bf16(const float *from) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)load(from + LANES), (__m512)load(from));
}

/* Words of (even[j], odd[j]) for the PANEL columns of two rows. */
INLINE void store_interleaved(int32_t *to, __m512i even, __m512i odd) {
  __m512i even0 = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(even));
  __m512i even1 = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(even, 1));
  __m512i odd0 = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(odd));
  __m512i odd1 = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(odd, 1));
  _mm512_storeu_si512(to, _mm512_or_si512(even0, _mm512_slli_epi32(odd0, 16)));
  _mm512_storeu_si512(to + LANES, _mm512_or_si512(even1, _mm512_slli_epi32(odd1, 16)));
}

/* Sums of one panel's rows, and its values as bf16: pairs along columns in `along`, pairs along
   rows in `kept`. */
INLINE void round_tile(const float *exps, int32_t *along, int32_t *kept, vec total[ROWS]) {
  _Pragma("GCC unroll 4") for (int i = 0; i < ROWS; i += 2) {
    const float *row = exps + i * PANEL;
    total[i] += load(row) + load(row + LANES);
    total[i + 1] += load(row + PANEL) + load(row + PANEL + LANES);
    __m512i even = to_bf16(row), odd = to_bf16(row + PANEL);
    _mm512_storeu_si512(along + i * LANES, even);
    _mm512_storeu_si512(along + (i + 1) * LANES, odd);
    store_interleaved(kept + i / 2 * PANEL, even, odd);
  }
}

/* `exps`: R * BLOCK * PANEL floats of scratch. */
void reduce_bf16(int threads, int64_t R, int64_t C, int64_t D, const int32_t *query,
                 const int32_t *packed, const int32_t *candidate, const float *bias,
                 const float *copies, int64_t num_rules, Rule *rules, int32_t *kept, float *exps,
                 float *sum, double *hits, float *gradient) {
  int64_t groups = R / ROWS, panels = C / PANEL, parts = 2 * threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t part = 0; part < parts; part++) {
    int64_t first = groups * part / parts, last = groups * (part + 1) / parts;
    int32_t along[BLOCK * ROWS * LANES];
    for (int64_t p0 = 0; p0 < panels; p0 += BLOCK) {
      int64_t p1 = p0 + BLOCK < panels ? p0 + BLOCK : panels;
      vec tile[ROWS][2];
      for (int64_t row = first * ROWS; row < last * ROWS; row += ROWS)
        for (int64_t p = p0; p < p1; p++) {
          load_tile(tile, bias + p * PANEL, 0);
          multiply_pairs(tile, D / 2, query + row * D / 2, 1, D / 2, packed + p * PANEL * D / 2,
                         PANEL);
          store_powers(exps + ((p - p0) * R + row) * PANEL, tile);
        }
      mask(num_rules, rules, R, first * ROWS, last * ROWS, p0, p1, copies, exps, hits);
      for (int64_t row = first * ROWS; row < last * ROWS; row += ROWS) {
        vec total[ROWS] = {};
        for (int64_t p = p0; p < p1; p++)
          round_tile(exps + ((p - p0) * R + row) * PANEL, along + (p - p0) * ROWS * LANES,
                     kept + (p * R + row) / 2 * PANEL, total);
        EACH_ROW(i) sum[row + i] += sum_of(total[i]);
        for (int64_t d = 0; d < D; d += PANEL) {
          load_tile(tile, gradient + row * D + d, D);
          for (int64_t p = p0; p < p1; p++)
            multiply_pairs(tile, LANES, along + (p - p0) * ROWS * LANES, 1, LANES,
                           candidate + p * LANES * D + d, D);
          store_tile(gradient + row * D + d, D, tile);
        }
      }
    }
  }
}

void spread_bf16(int threads, int64_t R, int64_t C, int64_t D, const int32_t *weighted,
                 const int32_t *kept, float *gradient) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
  for (int64_t p = 0; p < C / PANEL; p++)
    for (int64_t w = 0; w < PANEL; w += ROWS)
      for (int64_t d = 0; d < D; d += PANEL) {
        float *out = gradient + (p * PANEL + w) * D + d;
        vec tile[ROWS][2];
        load_tile(tile, out, D);
        multiply_pairs(tile, R / 2, kept + p * R / 2 * PANEL + w, PANEL, 1, weighted + d, D);
        store_tile(out, D, tile);
      }
}
#endif
