/* The decoder's layers on a CPU in fp32: linears over weights in panels, and one step of all layers in a single call.
 *
 * A row's result depends on that row alone: each output is one sum over the inputs in order, whatever the other rows are and
 * however many threads there are. So a step gives the same bits as its parts called one by one.
 */

#include <math.h>

#include "decode.h"

/* Outputs stand in panels of two vectors, [input][2 vectors]: a panel is read from front to back. SUMS rows at once keep all
 * sums in registers: 16 of AVX-512's 32, 8 of AVX2's 16. */
#if defined(__AVX512F__)
#define WIDTH 16
#define SUMS 8
#else
#define WIDTH 8
#define SUMS 4
#endif
#define PANEL (2 * WIDTH)
#define AHEAD (16 * PANEL) /* weights that are asked for before they are needed: processors don't look past a page's end */
#define ROWS_AT_ONCE 128   /* of many rows: what goes through all panels before the next ones, small enough for a cache */

typedef float vector __attribute__((vector_size(4 * WIDTH)));

typedef struct {
    const float *panels; /* (P, inputs, PANEL); a gated linear's panel is a vector of gates, then one of ups */
    const float *bias;   /* (outputs,) or null */
    int64_t inputs, outputs;
    int64_t gated; /* outputs are silu(gate) * up */
} Linear;

typedef struct {
    Linear qkv, out, gate_up, down;
    const float *input_norm, *mlp_norm; /* (D,) */
    const Attention *halves;
    float input_eps, mlp_eps;
} Layer;

typedef struct {
    const Layer *layers;
    const float *embeds;      /* (R, D) */
    const float *additions;   /* (L, R, D), to the input of every interval-th layer; or null */
    const float *final_norm;  /* (D,) */
    float *x, *normed;        /* (R, D) each, scratch as the next three */
    float *qkv;               /* (R, W) */
    float *attended;          /* (R, H * E) */
    float *inner;             /* (R, I) */
    float *out;               /* (R, D), normed */
    int64_t num_layers, num_halves, cache_type, rows, size, interval;
    float final_eps;
} Step;

int64_t adgen_panel(void) { return PANEL; }

static inline float silu(float g) {
    float e = exp_negative(g < 0.0f ? g : -g);
    return g * (g < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* `rows` (a constant where this is inlined) rows of x times one panel. */
__attribute__((always_inline)) static inline void multiply(const float *x, int64_t inputs, const float *panel, const int rows,
                                                           vector sums[SUMS][2]) {
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (vector){0};
    for (int64_t i = 0; i < inputs; i++, panel += PANEL) {
        __builtin_prefetch(panel + AHEAD);
        if (PANEL > 16) __builtin_prefetch(panel + AHEAD + 16);
        vector first = LOAD_AS(vector, panel), second = LOAD_AS(vector, panel + WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            sums[r][0] += x[r * inputs + i] * first;
            sums[r][1] += x[r * inputs + i] * second;
        }
    }
}

static void multiply_rows(const float *x, int64_t inputs, const float *panel, int rows, vector sums[SUMS][2]) {
    switch (rows) {
    case 1: multiply(x, inputs, panel, 1, sums); break;
    case 2: multiply(x, inputs, panel, 2, sums); break;
    case 3: multiply(x, inputs, panel, 3, sums); break;
    case 4: multiply(x, inputs, panel, 4, sums); break;
#if SUMS > 4
    case 5: multiply(x, inputs, panel, 5, sums); break;
    case 6: multiply(x, inputs, panel, 6, sums); break;
    case 7: multiply(x, inputs, panel, 7, sums); break;
    default: multiply(x, inputs, panel, 8, sums);
#endif
    }
}

static int64_t outputs_of_panel(const Linear *linear) { return linear->gated ? WIDTH : PANEL; }

static int64_t num_panels(const Linear *linear) {
    return (linear->outputs + outputs_of_panel(linear) - 1) / outputs_of_panel(linear);
}

/* One panel's outputs of all rows: out (rows, outputs); `add` adds to what stands there. */
static void one_panel(const Linear *linear, int64_t panel, const float *x, int64_t rows, float *out, int add) {
    int64_t first = panel * outputs_of_panel(linear), count = linear->outputs - first;
    count = count < outputs_of_panel(linear) ? count : outputs_of_panel(linear);
    const float *weights = linear->panels + panel * linear->inputs * PANEL;
    for (int64_t begin = 0; begin < rows; begin += SUMS) {
        int now = rows - begin < SUMS ? (int)(rows - begin) : SUMS;
        vector sums[SUMS][2];
        multiply_rows(x + begin * linear->inputs, linear->inputs, weights, now, sums);
        for (int r = 0; r < now; r++) {
            float values[PANEL], *to = out + (begin + r) * linear->outputs + first;
            memcpy(values, sums[r], sizeof values);
            if (linear->gated)
                for (int64_t i = 0; i < WIDTH; i++) values[i] = silu(values[i]) * values[i + WIDTH];
            if (linear->bias)
                for (int64_t i = 0; i < count; i++) values[i] += linear->bias[first + i];
            if (add)
                for (int64_t i = 0; i < count; i++) to[i] += values[i];
            else
                memcpy(to, values, (size_t)count * sizeof(float));
        }
    }
}

/* In a parallel region; its end waits for all threads. */
static void apply(const Linear *linear, const float *x, int64_t rows, float *out, int add) {
    int64_t panels = num_panels(linear);
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; panel++) one_panel(linear, panel, x, rows, out, add);
}

/* out (rows, outputs) of x (rows, inputs). */
void adgen_linear(const Linear *linear, const float *x, int64_t rows, float *out) {
    int64_t panels = num_panels(linear), blocks = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t panel = 0; panel < panels; panel++) {
            int64_t first = block * ROWS_AT_ONCE, count = rows - first < ROWS_AT_ONCE ? rows - first : ROWS_AT_ONCE;
            one_panel(linear, panel, x + first * linear->inputs, count, out + first * linear->outputs, 0);
        }
}

static void norm(const float *x, const float *weight, float eps, float *out, int64_t size) {
    float squares = 0.0f;
    for (int64_t i = 0; i < size; i++) squares += x[i] * x[i];
    float scale = 1.0f / sqrtf(squares / (float)size + eps);
    for (int64_t i = 0; i < size; i++) out[i] = weight[i] * (x[i] * scale);
}

static void norm_rows(const Step *s, const float *weight, float eps, const float *addition, float *out) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < s->rows; row++) {
        float *x = s->x + row * s->size;
        if (addition)
            for (int64_t i = 0; i < s->size; i++) x[i] += addition[row * s->size + i];
        norm(x, weight, eps, out + row * s->size, s->size);
    }
}

static void attend_rows(const Step *s, const Layer *layer) {
    int64_t total = 0;
    for (int64_t h = 0; h < s->num_halves; h++) total += layer->halves[h].rows * layer->halves[h].groups;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < total; task++) {
        const Attention *a = layer->halves;
        int64_t left = task;
        while (left >= a->rows * a->groups) left -= a->rows * a->groups, a++;
        adgen_attend_one(a, left / a->groups, left % a->groups, (int)s->cache_type);
    }
}

/* A token more for each row, through all layers: one parallel region, in which threads wait for each other but never end. */
void adgen_step(const Step *s) {
    memcpy(s->x, s->embeds, (size_t)(s->rows * s->size) * sizeof(float));
#pragma omp parallel
    {
        for (int64_t index = 0; index < s->num_layers; index++) {
            const Layer *layer = s->layers + index;
            int adds = s->additions && index % s->interval == 0;
            norm_rows(s, layer->input_norm, layer->input_eps,
                      adds ? s->additions + index / s->interval * s->rows * s->size : 0, s->normed);
            apply(&layer->qkv, s->normed, s->rows, s->qkv, 0);
            attend_rows(s, layer);
            apply(&layer->out, s->attended, s->rows, s->x, 1);
            norm_rows(s, layer->mlp_norm, layer->mlp_eps, 0, s->normed);
            apply(&layer->gate_up, s->normed, s->rows, s->inner, 0);
            apply(&layer->down, s->inner, s->rows, s->x, 1);
        }
        norm_rows(s, s->final_norm, s->final_eps, 0, s->out);
    }
}
