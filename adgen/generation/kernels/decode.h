/* What the kernels share: numbers as bits, exp, vectors, and the arguments of an attention. */

#ifndef ADGEN_DECODE_H
#define ADGEN_DECODE_H

#include <stdint.h>
#include <string.h>

#define MAX_HEAD 256 /* checked by the caller */

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, FLOAT8 = 3 }; /* of a cache; FLOAT8 is e4m3fn */

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* exp for x <= 0: range reduction and a polynomial (Cephes expf), 2 ulp; vectorises. */
static inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = (float)(int32_t)(x * 1.44269504f - 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * as_float((uint32_t)((int32_t)n + 127) << 23);
}

/* Sixteen numbers at once, in the compiler's own portable vectors: one AVX-512 register, two of AVX2, four of NEON. */
#define LANES 16
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float half_floats __attribute__((vector_size(2 * LANES)));
typedef float quarter_floats __attribute__((vector_size(LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

#define LOAD_AS(KIND, FROM) ({ KIND loaded; memcpy(&loaded, FROM, sizeof loaded); loaded; })

typedef struct {
    const float *qkv;         /* (R, (H + 2 G) * E): queries, keys and values of the new tokens, not yet rotated */
    const float *cosine;      /* (R, E) */
    const float *sine;        /* (R, E) */
    float *out;               /* (R, H * E) */
    void *keys;               /* (R, G, K, E) */
    void *values;             /* (R, G, K, E) */
    const void *prefix_keys;  /* (G, K', E), the shared tokens before every row's own; or null */
    const void *prefix_values;
    const int64_t *lengths;   /* (R,) tokens that a row's cache holds; the new one is written behind them */
    const uint8_t *active;    /* (R,) rows at work; the others get zeros and their cache stays as it is; null: all */
    int64_t rows, heads, groups, width, capacity, num_shared; /* R, H, G, E, K, K' */
    float scale;
} Attention;

/* One row's queries of one key/value head; adgen_attend does all of them. */
void adgen_attend_one(const Attention *a, int64_t row, int64_t group, int type);

#endif
