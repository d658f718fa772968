/* The items that may be among the best of a query, by a scan of all items in int8, for retrieval.py.
 * Included by kernels.c.
 *
 * Axes: V items, D4 the width of a vector divided by four, B queries. The vectors are unsigned, 128 more
 * than their numbers, as the instruction of VNNI multiplies unsigned by signed. They lie in groups of
 * GROUP items, interleaved by four numbers: (groups, D4, GROUP, 4). */
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#define GROUP 16     /* _GROUP in candidates.py */
#define TILE 1024    /* items whose products are in memory at a time, a multiple of GROUP */
#define LOOK 64      /* products of which first only the largest is compared, a divisor of TILE */
#define QUERIES 4    /* for each pass over a tile */
#define NO_ITEM INT32_MIN /* the product of a hidden item, below any other */

typedef void products_fn(
    const uint8_t *, int64_t, int64_t, const int8_t *, const int32_t *, int64_t, int32_t *);

/* products (Q, TILE) of groups * GROUP items with Q queries, each plus its bias. */
KERNEL static void products_plain(
    const uint8_t *items, int64_t groups, int64_t D4, const int8_t *queries,
    const int32_t *bias, int64_t Q, int32_t *products) {
    for (int64_t q = 0; q < Q; q++, queries += 4 * D4, products += TILE)
        for (int64_t g = 0; g < groups; g++) {
            int32_t sums[GROUP];
            for (int64_t v = 0; v < GROUP; v++) sums[v] = bias[q];
            const uint8_t *group = items + g * D4 * GROUP * 4;
            for (int64_t d = 0; d < D4; d++, group += GROUP * 4)
                for (int64_t v = 0; v < GROUP; v++)
                    for (int64_t n = 0; n < 4; n++) sums[v] += group[4 * v + n] * queries[4 * d + n];
            memcpy(products + g * GROUP, sums, sizeof sums);
        }
}

#if defined(__x86_64__) && defined(__GNUC__)
#define VNNI __attribute__((target("avx512f,avx512vnni")))

/* Q is a constant after inlining, so that the sums stay in registers. */
VNNI INLINE void products_of(
    const uint8_t *items, int64_t groups, int64_t D4, const int8_t *queries,
    const int32_t *bias, const int64_t Q, int32_t *products) {
    for (int64_t g = 0; g < groups; g++, products += GROUP) {
        __m512i sums[QUERIES];
        for (int64_t q = 0; q < Q; q++) sums[q] = _mm512_set1_epi32(bias[q]);
        for (int64_t d = 0; d < D4; d++, items += GROUP * 4) {
            const __m512i group = _mm512_loadu_si512(items);
            for (int64_t q = 0; q < Q; q++) {
                int32_t four;
                memcpy(&four, queries + (q * D4 + d) * 4, sizeof four);
                sums[q] = _mm512_dpbusd_epi32(sums[q], group, _mm512_set1_epi32(four));
            }
        }
        for (int64_t q = 0; q < Q; q++) _mm512_storeu_si512(products + q * TILE, sums[q]);
    }
}

VNNI static void products_vnni(
    const uint8_t *items, int64_t groups, int64_t D4, const int8_t *queries,
    const int32_t *bias, int64_t Q, int32_t *products) {
    switch (Q) {
        case 1: products_of(items, groups, D4, queries, bias, 1, products); break;
        case 2: products_of(items, groups, D4, queries, bias, 2, products); break;
        case 3: products_of(items, groups, D4, queries, bias, 3, products); break;
        default: products_of(items, groups, D4, queries, bias, 4, products);
    }
}
#endif

/* Whether this processor multiplies int8 fast. */
int32_t has_vnni(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni");
#else
    return 0;
#endif
}

/* Replace the root of a heap (k,), its smallest number. */
INLINE void replace_least(int32_t *heap, int64_t k, int32_t number) {
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < k; i = child) {
        if (child + 1 < k && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= number) break;
        heap[i] = heap[child];
    }
    heap[i] = number;
}

/* The least product of a candidate, by the heap of the k best products. */
INLINE int32_t limit_of(const int32_t *heap, int64_t margin) {
    const int64_t limit = heap[0] - margin;
    return heap[0] == NO_ITEM || limit <= NO_ITEM ? NO_ITEM + 1 : (int32_t)limit;
}

/* Remove the candidates below a limit; the number of the others. */
INLINE int64_t remove_below(int32_t *items, int32_t *products, int64_t count, int32_t limit) {
    int64_t kept = 0;
    for (int64_t n = 0; n < count; n++)
        if (products[n] >= limit) {
            items[kept] = items[n];
            products[kept++] = products[n];
        }
    return kept;
}

/* For each of B queries the items whose product, with the values of `added` items, is at most `margin`
 * below the k-th best product of the items that are not `hidden`; at least all of them if there are
 * fewer than k.
 *
 * queries (B, D4, 4) and bias (B,), minus 128 times the sum of a query. For each query: counts[b] items
 * `added`, ascending, the value of each, which times units[b] is in units of the products, and
 * counts[B + b] items `hidden`, ascending. at (2, B) and best (B, k) are buffers.
 * Returns in `number` (B,) the number of candidates of each query, and these in `found` (B, capacity),
 * ascending; -1 if more than half of the capacity is candidates. products (B, capacity) a buffer. */
KERNEL void find_candidates(
    const uint8_t *items, int64_t V, int64_t D4,
    const int8_t *queries, const int32_t *bias, const int64_t *margins, int64_t B, int64_t k,
    const int64_t *const *added, const float *const *values, const double *units,
    const int64_t *const *hidden, const int64_t *counts, int64_t *at, int32_t *best,
    int64_t capacity, int32_t *found, int32_t *products, int64_t *number, int32_t vnni) {
    products_fn *multiply = products_plain;
#if defined(__x86_64__) && defined(__GNUC__)
    if (vnni) multiply = products_vnni;
#endif
    int32_t tile[QUERIES * TILE];
    memset(at, 0, 2 * (size_t)B * sizeof *at);
    memset(number, 0, (size_t)B * sizeof *number);
    for (int64_t n = 0; n < B * k; n++) best[n] = NO_ITEM;
    for (int64_t first = 0; first < V; first += TILE) {
        const int64_t end = first + TILE < V ? first + TILE : V;
        const int64_t groups = (end - first + GROUP - 1) / GROUP;
        for (int64_t begin = 0; begin < B; begin += QUERIES) {
            const int64_t Q = B - begin < QUERIES ? B - begin : QUERIES;
            multiply(items + first * D4 * 4, groups, D4, queries + begin * D4 * 4, bias + begin, Q, tile);
            for (int64_t b = begin; b < begin + Q; b++) {
                int32_t *sums = tile + (b - begin) * TILE;
                int64_t *a = at + b, *h = at + B + b;
                for (; *a < counts[b] && added[b][*a] < end; ++*a)
                    sums[added[b][*a] - first] += (int32_t)rint(values[b][*a] * units[b]);
                for (; *h < counts[B + b] && hidden[b][*h] < end; ++*h)
                    sums[hidden[b][*h] - first] = NO_ITEM;
                for (int64_t v = end - first; v < TILE; v++) sums[v] = NO_ITEM;
                if (number[b] < 0) continue;
                int32_t *own = found + b * capacity, *own_products = products + b * capacity;
                int64_t count = number[b];
                int32_t limit = limit_of(best + b * k, margins[b]);
                for (int64_t look = 0; look < end - first; look += LOOK) {
                    int32_t largest = NO_ITEM;
                    for (int64_t v = look; v < look + LOOK; v++)
                        largest = sums[v] > largest ? sums[v] : largest;
                    if (largest < limit) continue;
                    if (count > capacity - LOOK) {
                        count = remove_below(own, own_products, count, limit);
                        if (count > capacity / 2) {
                            count = -1;
                            break;
                        }
                    }
                    for (int64_t v = look; v < look + LOOK; v++) {
                        if (sums[v] < limit) continue;
                        own[count] = (int32_t)(first + v);
                        own_products[count++] = sums[v];
                        if (sums[v] > best[b * k]) {
                            replace_least(best + b * k, k, sums[v]);
                            limit = limit_of(best + b * k, margins[b]);
                        }
                    }
                }
                number[b] = count;
            }
        }
    }
    for (int64_t b = 0; b < B; b++)
        if (number[b] >= 0)
            number[b] = remove_below(found + b * capacity, products + b * capacity, number[b],
                                     limit_of(best + b * k, margins[b]));
}
