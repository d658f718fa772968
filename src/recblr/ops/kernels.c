/* The recurrence on a CPU: gates, scan and output gate in one pass over memory, forward and
 * backward; at the end, one step of the whole model.
 *
 * cpu.py calls the functions through ctypes and splits the channels, or the users of a step, among
 * threads. Rows are the events of all sequences laid end to end, (N, C) row-major; sequence b has
 * the rows offsets[b] .. offsets[b+1]-1. Every inner loop runs over channels, which are independent,
 * so the compiler vectorises it. kernels.h holds the functions of sequences; it is included once for
 * each element type.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One library for every x86 processor: the loader selects the widest version that it supports. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL
#endif
#define INLINE static inline __attribute__((always_inline))

#define ROWS 32      /* events between two states that bd_lru keeps for backward; _ROWS in cpu.py */
#define CHANNELS 128 /* in the buffers of the backward kernels at a time */
#define USERS 16     /* for each pass over the weights in recblr_step */
#define ALIGNED _Alignas(64)

/* e^x = scale (1 + p), scale = 2^k. p is a polynomial in f = x log2(e) - k, |f| <= 1/2, with a
 * relative error below 4e-8, so e^x - 1 is as exact near 0 as e^x. Rounding x log2(e) has the effect
 * of a change in the last bit of x. The code clamps k to the exponents of float32, not x: GCC would
 * compile a clamp of x into a separate branch, which is a third slower. */
INLINE float exp_parts(float x, float *scale) {
    float t = x * 1.44269504f;
    union { float f; int32_t i; } k = {.f = t + (12582912.0f + 127)}; /* low bits: k + 127 */
    float f = t - (k.f - (12582912.0f + 127));
    float p = 1.53533096e-4f;
    p = p * f + 1.33989390e-3f;
    p = p * f + 9.61843785e-3f;
    p = p * f + 5.55033237e-2f;
    p = p * f + 2.40226477e-1f;
    p = p * f + 6.93147182e-1f;
    const int32_t zero = 0x4b400000; /* the bits of 12582912 */
    k.i = k.i < zero + 1 ? zero + 1 : k.i > zero + 254 ? zero + 254 : k.i;
    union { uint32_t i; float f; } power = {.i = (uint32_t)k.i << 23};
    *scale = power.f;
    return p * f;
}

INLINE float expm1_(float x) {
    float scale, p = exp_parts(x, &scale);
    return (scale - 1.0f) + scale * p;
}

INLINE float sigmoid(float x) {
    float scale, p = exp_parts(-x, &scale);
    return 1.0f / (1.0f + (scale + scale * p));
}

/* A 32-bit hash. Dropout draws its mask from the hash of (seed, position), so backward draws the same
 * mask again and none is stored. */
INLINE uint32_t mix(uint32_t x) {
    x ^= x >> 16; x *= 0x7feb352du;
    x ^= x >> 15; x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

typedef uint16_t bfloat16;
INLINE float load_bfloat16(bfloat16 value) {
    union { uint32_t i; float f; } u = {.i = (uint32_t)value << 16};
    return u.f;
}
INLINE bfloat16 store_bfloat16(float value) { /* round to nearest, ties to even; keep NaN */
    union { float f; uint32_t i; } u = {.f = value};
    uint32_t rounded = (u.i + 0x7fffu + ((u.i >> 16) & 1u)) >> 16;
    return (bfloat16)(value == value ? rounded : 0x7fc0u);
}

#define NAME(function) function##_float32
#define SCALAR float
#define LOAD(value) (value)
#define STORE(value) (value)
#include "kernels.h"
#undef NAME
#undef SCALAR
#undef LOAD
#undef STORE

#define NAME(function) function##_bfloat16
#define SCALAR bfloat16
#define LOAD(value) load_bfloat16(value)
#define STORE(value) store_bfloat16(value)
#include "kernels.h"

/* y (n, O) = x (n, I) weight (I, O) + bias (O,), or without bias if NULL. Eight rows of weight are
 * applied to all n rows of x before the next eight are read. */
INLINE void linear(
    float *restrict y, const float *restrict x, const float *restrict weight,
    const float *restrict bias, int64_t n, int64_t I, int64_t O) {
    for (int64_t u = 0; u < n; u++)
        for (int64_t o = 0; o < O; o++) y[u * O + o] = bias ? bias[o] : 0.0f;
    for (int64_t i = 0; i < I; i += 8)
        for (int64_t u = 0; u < n; u++) {
            const float *restrict in = x + u * I + i, *restrict w = weight + i * O;
            float *restrict out = y + u * O;
            if (i + 8 <= I)
                for (int64_t o = 0; o < O; o++) {
                    float sum = out[o];
                    for (int j = 0; j < 8; j++) sum += in[j] * w[j * O + o];
                    out[o] = sum;
                }
            else
                for (int64_t j = 0; j < I - i; j++)
                    for (int64_t o = 0; o < O; o++) out[o] += in[j] * w[j * O + o];
        }
}

INLINE float sum_of(const float *restrict x, int64_t n) {
    float lanes[16] = {0}, sum = 0.0f;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] += x[i + j];
    for (; i < n; i++) sum += x[i];
    for (int j = 0; j < 16; j++) sum += lanes[j];
    return sum;
}

/* h (n, D) = LayerNorm(h + out), equation (3); overwrites out. */
INLINE void add_norm(
    float *restrict h, float *restrict out, const float *restrict weight,
    const float *restrict bias, int64_t n, int64_t D) {
    for (int64_t u = 0; u < n; u++, h += D, out += D) {
        for (int64_t d = 0; d < D; d++) h[d] += out[d];
        const float mean = sum_of(h, D) / (float)D;
        for (int64_t d = 0; d < D; d++) {
            h[d] -= mean;
            out[d] = h[d] * h[d];
        }
        const float scale = 1.0f / sqrtf(sum_of(out, D) / (float)D + 1e-12f);
        for (int64_t d = 0; d < D; d++) h[d] = h[d] * scale * weight[d] + bias[d];
    }
}

/* A pointer to the next ``size`` floats of a buffer; advances the buffer. */
#define TAKE(buffer, size) ((buffer) += (size), (buffer) - (size))

/* One more event of the users first .. end-1 by the whole model, with the lines of Algorithm 1.
 * weights: in the order of models/fused_step.py. items: (B,). before, after: (B, L, W, C), for each
 * layer the state of the recurrence, then the last inputs of the convolution. hidden: (B, D).
 * Returns -1, or the first user with an item outside 0 .. V-1. */
KERNEL int64_t recblr_step(
    const float *restrict weights, const int64_t *restrict items, const float *restrict before,
    float *restrict hidden, float *restrict after,
    int64_t V, int64_t D, int64_t C, int64_t W, int64_t L, int64_t first, int64_t end) {
    for (int64_t u = first; u < end; u++)
        if (items[u] < 0 || items[u] >= V) return u;
    const int64_t most = end - first < USERS ? end - first : USERS;
    float *const memory = malloc((size_t)(most * 5 * (C + D)) * sizeof(float)), *rest = memory;
    float *restrict xz = TAKE(rest, most * 2 * C), *restrict ri = TAKE(rest, most * 2 * C);
    float *restrict x = TAKE(rest, most * C);
    float *restrict inner = TAKE(rest, most * 4 * D), *restrict out = TAKE(rest, most * D);
    for (int64_t from = first; from < end; from += USERS) {
        const int64_t n = end - from < USERS ? end - from : USERS;
        float *restrict h = hidden + from * D;
        for (int64_t u = 0; u < n; u++)
            memcpy(h + u * D, weights + items[from + u] * D, (size_t)D * sizeof(float));
        const float *w = weights + V * D;
        for (int64_t l = 0; l < L; l++) {
            linear(xz, h, TAKE(w, D * 2 * C), NULL, n, D, 2 * C); /* lines 1, 2 */
            const float *restrict kernel = TAKE(w, W * C), *restrict bias = TAKE(w, C);
            for (int64_t u = 0; u < n; u++) { /* line 4 */
                const float *restrict inputs = before + (((from + u) * L + l) * W + 1) * C;
                float *restrict kept = after + (((from + u) * L + l) * W + 1) * C;
                float *restrict sum = x + u * C, *restrict now = xz + u * 2 * C;
                for (int64_t c = 0; c < C; c++) sum[c] = bias[c] + kernel[(W - 1) * C + c] * now[c];
                for (int64_t k = 0; k < W - 1; k++)
                    for (int64_t c = 0; c < C; c++) sum[c] += kernel[k * C + c] * inputs[k * C + c];
                for (int64_t c = 0; c < C; c++) sum[c] *= sigmoid(sum[c]);
                if (W > 1) {
                    memcpy(kept, inputs + C, (size_t)((W - 2) * C) * sizeof(float));
                    memcpy(kept + (W - 2) * C, now, (size_t)C * sizeof(float));
                }
            }
            const float *gates = TAKE(w, C * 2 * C);
            linear(ri, x, gates, TAKE(w, 2 * C), n, C, 2 * C);
            const float *restrict decay = TAKE(w, C);
            for (int64_t u = 0; u < n; u++) { /* lines 5, 6 */
                const float *restrict state = before + ((from + u) * L + l) * W * C;
                const float *restrict r = ri + u * 2 * C, *restrict i = r + C;
                const float *restrict z = xz + u * 2 * C + C;
                float *restrict next = after + ((from + u) * L + l) * W * C;
                float *restrict y = x + u * C; /* holds x on entry */
                for (int64_t c = 0; c < C; c++) {
                    float q = expm1_(-decay[c] * sigmoid(r[c])), beta = sqrtf(-q * (2.0f + q));
                    next[c] = state[c] + q * state[c] + beta * sigmoid(i[c]) * y[c];
                    y[c] = next[c] * z[c] * sigmoid(z[c]);
                }
            }
            linear(out, x, TAKE(w, C * D), NULL, n, C, D); /* line 7 */
            const float *norm = TAKE(w, D);
            add_norm(h, out, norm, TAKE(w, D), n, D);
            const float *wide = TAKE(w, D * 4 * D);
            linear(inner, h, wide, TAKE(w, 4 * D), n, D, 4 * D); /* (4) */
            for (int64_t k = 0; k < n * 4 * D; k++) inner[k] *= sigmoid(inner[k]);
            const float *narrow = TAKE(w, 4 * D * D);
            linear(out, inner, narrow, TAKE(w, D), n, 4 * D, D);
            norm = TAKE(w, D);
            add_norm(h, out, norm, TAKE(w, D), n, D);
        }
    }
    free(memory);
    return -1;
}

#include "ranking.h"
#include "candidates.h"
