/* The recurrence on a CPU: gates, scan and output gate in one pass over memory, forward and backward.
 *
 * Plain C without Python, called through ctypes by cpu.py, which splits the channels among threads.
 * Rows are the events of all sequences laid end to end, (N, C) row-major; sequence b has the rows
 * offsets[b] .. offsets[b+1]-1. Every inner loop runs over channels, which are independent, so that
 * the compiler vectorises it. kernels.h holds the functions and is included once per element type.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One library for every x86 processor: the loader picks the widest version it can run. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL
#endif
#define INLINE static inline __attribute__((always_inline))

/* exp(x) - 1 = 2^k (1 + p) - 1 with x = k ln 2 + f, |f| <= ln 2 / 2, p = exp(f) - 1 by its Taylor
 * series (error below 2^-24). Exact near 0, where 1 - exp(x) would cancel. x is held in [-87, 87]. */
INLINE float expm1_(float x) {
    x = x > 87.0f ? 87.0f : x < -87.0f ? -87.0f : x;
    float k = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest whole number */
    float f = x - k * 0.693145752f - k * 1.42860677e-6f;     /* ln 2 in two parts */
    float p = 1.0f / 5040;
    p = p * f + 1.0f / 720;
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f * f + f;
    union { int32_t i; float f; } scale = {.i = ((int32_t)k + 127) << 23};
    return scale.f * p + (scale.f - 1.0f);
}

INLINE float sigmoid(float x) { return 1.0f / (2.0f + expm1_(-x)); }

/* 32 mixed bits of a position: dropout draws its mask from (seed, position), so that backward draws
 * the same one again and nothing is stored. */
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
INLINE bfloat16 store_bfloat16(float value) { /* to nearest, ties to even; NaN stays NaN */
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
