/* One decoding step's memory-bound parts on a CPU: attention over a long cache, and the draw of image tokens.
 *
 * A row's result depends on that row alone: its sums run over its own tokens in a fixed order, whatever its neighbours
 * hold and however many threads there are. Arithmetic is fp32; caches may be narrower.
 *
 * C for GCC and Clang with OpenMP; no processor is named.
 */

#include "decode.h"

#define BLOCK 64    /* tokens between two rescalings of the running softmax */
#define SMALL -3.0e38f

/* log for positive normal x (Cephes logf), 2 ulp; vectorises. */
static inline float log_positive(float x) {
    uint32_t bits = as_bits(x);
    int32_t e = (int32_t)(bits >> 23) - 126;
    float m = as_float((bits & 0x007fffffu) | 0x3f000000u); /* [0.5, 1) */
    int32_t low = m < 0.70710678f;
    e -= low;
    m = (low ? m + m : m) - 1.0f;
    float z = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    p = p * m * z + (float)e * -2.12194440e-4f - 0.5f * z;
    return m + p + (float)e * 0.693359375f;
}

/* -- cache elements ------------------------------------------------------------------------------------------------ */

static inline float load_bf16(uint16_t v) { return as_float((uint32_t)v << 16); }

static inline uint16_t store_bf16(float f) { /* nearest, ties to even; no NaN reaches a cache */
    uint32_t bits = as_bits(f);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* IEEE half and e4m3fn share one trick: exponent and mantissa moved into place, then one multiplication mends the bias
 * and makes subnormals right. */
static inline float load_f16(uint16_t v) {
    float magnitude = as_float((uint32_t)(v & 0x7fffu) << 13) * 0x1p112f;
    return as_float(as_bits(magnitude) | ((uint32_t)(v & 0x8000u) << 16));
}

static inline float load_f8(uint8_t v) {
    float magnitude = as_float((uint32_t)(v & 0x7fu) << 20) * 0x1p120f;
    return as_float(as_bits(magnitude) | ((uint32_t)(v & 0x80u) << 24));
}

static inline uint32_t round_magnitude(uint32_t bits, int drop) {
    return (bits + ((1u << (drop - 1)) - 1u) + ((bits >> drop) & 1u)) >> drop;
}

static inline uint16_t store_f16(float f) { /* saturates at 65504 */
    uint32_t sign = (as_bits(f) >> 16) & 0x8000u;
    float magnitude = as_float(as_bits(f) & 0x7fffffffu);
    magnitude = magnitude > 65504.0f ? 65504.0f : magnitude;
    /* Below the smallest normal, adding 2^23 rounds to a whole number of the smallest step. */
    uint32_t half = magnitude < 0x1p-14f ? as_bits(magnitude * 0x1p24f + 0x1p23f) & 0x7ffu
                                         : round_magnitude(as_bits(magnitude * 0x1p-112f), 13);
    return (uint16_t)(sign | half);
}

static inline uint8_t store_f8(float f) { /* saturates at 448 */
    uint32_t sign = (as_bits(f) >> 24) & 0x80u;
    float magnitude = as_float(as_bits(f) & 0x7fffffffu);
    magnitude = magnitude > 448.0f ? 448.0f : magnitude;
    uint32_t byte = magnitude < 0x1p-6f ? as_bits(magnitude * 0x1p9f + 0x1p23f) & 0xfu
                                        : round_magnitude(as_bits(magnitude * 0x1p-120f), 20);
    return (uint8_t)(sign | byte);
}

/* -- vectors ------------------------------------------------------------------------------------------------------- */

static inline floats load_all_f32(const float *from) { return LOAD_AS(floats, from); }

static inline floats load_all_bf16(const uint16_t *from) {
    return (floats)(__builtin_convertvector(LOAD_AS(shorts, from), words) << 16);
}

static inline floats load_all_f16(const uint16_t *from) {
    words wide = __builtin_convertvector(LOAD_AS(shorts, from), words);
    floats magnitude = (floats)((wide & 0x7fffu) << 13) * 0x1p112f;
    return (floats)((words)magnitude | ((wide & 0x8000u) << 16));
}

static inline floats load_all_f8(const uint8_t *from) {
    /* By way of shorts: from bytes to words in one go GCC 12 moves each byte alone. Subnormals apart, and not by the trick
     * above: one in a hundred of usual numbers is one here, and a processor takes long over float's own subnormals. */
    words wide = __builtin_convertvector(__builtin_convertvector(LOAD_AS(bytes, from), shorts), words);
    words normal = ((wide & 0x7fu) << 20) + (120u << 23);
    words subnormal = (words)(__builtin_convertvector(wide & 7u, floats) * 0x1p-9f);
    words is_normal = (words)((wide & 0x78u) != 0u);
    return (floats)((normal & is_normal) | (subnormal & ~is_normal) | ((wide & 0x80u) << 24));
}

static inline float total(floats v) {
    half_floats half[2];
    memcpy(half, &v, sizeof v);
    half[0] += half[1];
    quarter_floats quarter[2];
    memcpy(quarter, half, sizeof half[0]);
    quarter[0] += quarter[1];
    return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

/* -- attention ----------------------------------------------------------------------------------------------------- */

typedef struct {
    float top, sum;
    floats out[MAX_HEAD / LANES];
} Running;

static void rotate(const float *x, const float *cosine, const float *sine, float *out, int64_t width) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        out[i] = x[i] * cosine[i] - x[i + half] * sine[i];
        out[i + half] = x[i + half] * cosine[i + half] + x[i] * sine[i + half];
    }
}

/* Scores of a block -> weights of its tokens, in place; returns what all earlier weights shrink by. */
static inline float soften(Running *run, float *scores, int64_t size) {
    float top = run->top, sum = 0.0f;
    for (int64_t t = 0; t < size; t++) top = scores[t] > top ? scores[t] : top;
    for (int64_t t = 0; t < size; t++) scores[t] = exp_negative(scores[t] - top);
    for (int64_t t = 0; t < size; t++) sum += scores[t];
    float shrink = exp_negative(run->top - top);
    run->top = top;
    run->sum = run->sum * shrink + sum;
    return shrink;
}

/* For each type of cache: writing, and looking with heads of a whole number of vectors (CHUNKS is constant where it is
 * inlined with a constant, so that a query and its result stay in registers) or of any width. */
#define ATTEND(NAME, TYPE, LOAD, LOAD_ALL, STORE)                                                                       \
    static void NAME##_put(TYPE *to, const float *from, int64_t width) {                                                \
        for (int64_t i = 0; i < width; i++) to[i] = STORE(from[i]);                                                     \
    }                                                                                                                   \
    __attribute__((always_inline)) static inline void NAME##_look_whole(                                                \
        Running *run, const float *query, const TYPE *keys, const TYPE *values, int64_t count, const int64_t CHUNKS) {  \
        float scores[BLOCK];                                                                                            \
        floats q[MAX_HEAD / LANES], out[MAX_HEAD / LANES];                                                              \
        for (int64_t c = 0; c < CHUNKS; c++) q[c] = load_all_f32(query + c * LANES), out[c] = run->out[c];              \
        for (int64_t begin = 0; begin < count; begin += BLOCK) {                                                        \
            int64_t size = count - begin < BLOCK ? count - begin : BLOCK;                                               \
            const TYPE *key = keys + begin * CHUNKS * LANES, *value = values + begin * CHUNKS * LANES;                  \
            for (int64_t t = 0; t < size; t++, key += CHUNKS * LANES) {                                                 \
                floats dot = q[0] * LOAD_ALL(key);                                                                      \
                for (int64_t c = 1; c < CHUNKS; c++) dot += q[c] * LOAD_ALL(key + c * LANES);                           \
                scores[t] = total(dot);                                                                                 \
            }                                                                                                           \
            float shrink = soften(run, scores, size);                                                                   \
            for (int64_t c = 0; c < CHUNKS; c++) out[c] *= shrink;                                                      \
            for (int64_t t = 0; t < size; t++, value += CHUNKS * LANES)                                                 \
                for (int64_t c = 0; c < CHUNKS; c++) out[c] += scores[t] * LOAD_ALL(value + c * LANES);                 \
        }                                                                                                               \
        for (int64_t c = 0; c < CHUNKS; c++) run->out[c] = out[c];                                                      \
    }                                                                                                                   \
    static void NAME##_look_any(Running *run, const float *query, const TYPE *keys, const TYPE *values, int64_t count,  \
                                int64_t width) {                                                                        \
        float scores[BLOCK], *out = (float *)run->out;                                                                  \
        for (int64_t begin = 0; begin < count; begin += BLOCK) {                                                        \
            int64_t size = count - begin < BLOCK ? count - begin : BLOCK;                                               \
            for (int64_t t = 0; t < size; t++) {                                                                        \
                const TYPE *key = keys + (begin + t) * width;                                                           \
                float dot = 0.0f;                                                                                       \
                for (int64_t i = 0; i < width; i++) dot += query[i] * LOAD(key[i]);                                     \
                scores[t] = dot;                                                                                        \
            }                                                                                                           \
            float shrink = soften(run, scores, size);                                                                   \
            for (int64_t i = 0; i < width; i++) out[i] *= shrink;                                                       \
            for (int64_t t = 0; t < size; t++) {                                                                        \
                const TYPE *value = values + (begin + t) * width;                                                       \
                for (int64_t i = 0; i < width; i++) out[i] += scores[t] * LOAD(value[i]);                               \
            }                                                                                                           \
        }                                                                                                               \
    }                                                                                                                   \
    /* Let a query look at `count` tokens more. */                                                                      \
    static void NAME##_look(Running *run, const float *query, const void *keys, const void *values, int64_t first,      \
                            int64_t count, int64_t width) {                                                             \
        const TYPE *key = (const TYPE *)keys + first * width, *value = (const TYPE *)values + first * width;            \
        if (width == 64) NAME##_look_whole(run, query, key, value, count, 4);                                           \
        else if (width == 128) NAME##_look_whole(run, query, key, value, count, 8);                                     \
        else if (width % LANES == 0) NAME##_look_whole(run, query, key, value, count, width / LANES);                   \
        else NAME##_look_any(run, query, key, value, count, width);                                                     \
    }                                                                                                                   \
    static void NAME(const Attention *a, int64_t row, int64_t group) {                                                  \
        int64_t width = a->width, per_group = a->heads / a->groups, length = a->lengths[row];                           \
        const float *fresh = a->qkv + row * (a->heads + 2 * a->groups) * width;                                         \
        const float *cosine = a->cosine + row * width, *sine = a->sine + row * width;                                   \
        int64_t first = (row * a->groups + group) * a->capacity;                                                        \
        float rotated[MAX_HEAD];                                                                                        \
        rotate(fresh + (a->heads + group) * width, cosine, sine, rotated, width);                                       \
        NAME##_put((TYPE *)a->keys + (first + length) * width, rotated, width);                                         \
        NAME##_put((TYPE *)a->values + (first + length) * width, fresh + (a->heads + a->groups + group) * width, width);\
        for (int64_t h = group * per_group; h < (group + 1) * per_group; h++) {                                         \
            Running run = {.top = SMALL, .sum = 0.0f};                                                                  \
            memset(run.out, 0, sizeof run.out);                                                                         \
            rotate(fresh + h * width, cosine, sine, rotated, width);                                                    \
            for (int64_t i = 0; i < width; i++) rotated[i] *= a->scale;                                                 \
            if (a->num_shared)                                                                                          \
                NAME##_look(&run, rotated, a->prefix_keys, a->prefix_values, group * a->num_shared, a->num_shared,      \
                            width);                                                                                     \
            NAME##_look(&run, rotated, a->keys, a->values, first, length + 1, width);                                   \
            float *out = a->out + (row * a->heads + h) * width, *sum = (float *)run.out;                                \
            for (int64_t i = 0; i < width; i++) out[i] = sum[i] / run.sum;                                              \
        }                                                                                                               \
    }

#define SAME(x) (x)
ATTEND(attend_f32, float, SAME, load_all_f32, SAME)
ATTEND(attend_bf16, uint16_t, load_bf16, load_all_bf16, store_bf16)
ATTEND(attend_f16, uint16_t, load_f16, load_all_f16, store_f16)
ATTEND(attend_f8, uint8_t, load_f8, load_all_f8, store_f8)

void adgen_attend_one(const Attention *a, int64_t row, int64_t group, int type) {
    if (a->active && !a->active[row]) {
        int64_t size = a->heads / a->groups * a->width;
        memset(a->out + row * a->heads * a->width + group * size, 0, (size_t)size * sizeof(float));
    } else if (type == FLOAT32) {
        attend_f32(a, row, group);
    } else if (type == BFLOAT16) {
        attend_bf16(a, row, group);
    } else if (type == FLOAT16) {
        attend_f16(a, row, group);
    } else {
        attend_f8(a, row, group);
    }
}

/* Append each row's new token to its cache and let its queries look at all of it, in one go for several halves. No two of
 * them may share a cache: their rows run in any order. Returns 0, or 1 for what it does not know. */
int adgen_attend(const Attention *halves, int64_t num_halves, int type) {
    int64_t total = 0;
    for (int64_t h = 0; h < num_halves; h++) {
        if (type < FLOAT32 || type > FLOAT8 || halves[h].width > MAX_HEAD) return 1;
        total += halves[h].rows * halves[h].groups;
    }
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t task = 0; task < total; task++) {
        const Attention *a = halves;
        int64_t left = task;
        while (left >= a->rows * a->groups) left -= a->rows * a->groups, a++;
        adgen_attend_one(a, left / a->groups, left % a->groups, type);
    }
    return 0;
}

/* -- drawing image tokens ------------------------------------------------------------------------------------------ */

/* Philox-4x32-10; the same words as adgen.generation.sampling.philox. */
static inline void philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1, uint32_t *out) {
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

#define CHUNK 256 /* codes drawn at once */

/* codes (R,): argmax of (u + w (c - u)) / temperature + Gumbel noise of (seed, step, stream); without noise where
 * temperature is 0. conditional and unconditional are (R, V). Ties go to the lowest code. */
void adgen_draw(const float *conditional, const float *unconditional, const int64_t *seeds, const int64_t *steps,
                int64_t stream, float weight, float temperature, int64_t rows, int64_t size, int64_t *codes) {
#pragma omp parallel for schedule(static, 1)
    for (int64_t row = 0; row < rows; row++) {
        const float *c = conditional + row * size, *u = unconditional + row * size;
        uint32_t k0 = (uint32_t)seeds[row], k1 = (uint32_t)((uint64_t)seeds[row] >> 32);
        float best = SMALL;
        int64_t code = 0;
        for (int64_t begin = 0; begin < size; begin += CHUNK) {
            int64_t count = size - begin < CHUNK ? size - begin : CHUNK;
            float values[CHUNK];
            uint32_t words[CHUNK];
            for (int64_t i = 0; i < count; i++) values[i] = u[begin + i] + weight * (c[begin + i] - u[begin + i]);
            if (temperature > 0.0f) {
                for (int64_t i = 0; i < CHUNK / 4; i++)
                    philox((uint32_t)(begin / 4 + i), (uint32_t)steps[row], (uint32_t)stream, 0, k0, k1, words + 4 * i);
                for (int64_t i = 0; i < count; i++) {
                    float uniform = ((float)(int32_t)(words[i] >> 9) + 0.5f) * 0x1p-23f;
                    values[i] = values[i] / temperature - log_positive(-log_positive(uniform));
                }
            }
            for (int64_t i = 0; i < count; i++)
                if (values[i] > best) best = values[i], code = begin + i;
        }
        codes[row] = code;
    }
}
