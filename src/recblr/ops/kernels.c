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

#define ROWS 32     /* events of a sequence between two states that bd_lru keeps; known to cpu.py */
#define CHANNELS 128 /* at most, that the backward kernels hold in their buffers at a time */
#define ALIGNED _Alignas(64)

/* e^x = scale (1 + p), scale = 2^k. p is a polynomial in f = x log2(e) - k, |f| <= 1/2, with a relative
 * error below 4e-8, so that e^x - 1 is as exact near 0 as e^x. Rounding x log2(e) costs what a change
 * in the last bit of x does. It is k that is held within the exponents of float32, not x: compilers
 * follow a bound on x through the arithmetic as a case of its own, and lose a third of the speed. */
INLINE float exp_parts(float x, float *scale) {
    float t = x * 1.44269504f;
    union { float f; int32_t i; } k = {.f = t + (12582912.0f + 127)}; /* no fraction; low bits k + 127 */
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
