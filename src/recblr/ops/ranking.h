/* The best items after one history, for serving: what the memory of transitions adds, and the search of
 * a small catalogue. Included by kernels.c. */

/* log(1 + x) for x >= 0: with 1 + x = 2^e z and s = (z - 1) / (z + 1), log z = 2 (s + s^3/3 + ...). The
 * last term corrects for the rounding of 1 + x. */
INLINE float log1p_(float x) {
    const float y = 1.0f + x;
    union { float f; int32_t i; } z = {.f = y};
    const int32_t e = (z.i - 0x3f3504f3) >> 23; /* z is then between the roots of 1/2 and of 2 */
    z.i -= e << 23;
    const float s = (z.f - 1.0f) / (z.f + 1.0f), q = s * s;
    const float p = 1.0f + q * (1.0f / 3 + q * (1.0f / 5 + q * (1.0f / 7 + q * (1.0f / 9))));
    return (float)e * 0.693147181f + 2.0f * s * p + (x - (y - 1.0f)) / y;
}

/* The items with a term of the memory after a history, ascending, and the terms w log(1 + c m) with
 * m = sum over k of weights[k] * row rows[k] of the matrix (V, V). m (V,) and seen, a bit for each item,
 * are zero on entry and on return. Returns the number of items. */
KERNEL int64_t transition_terms(
    const int64_t *restrict ends, const int32_t *restrict columns, const float *restrict data,
    const int64_t *restrict rows, const float *restrict weights, int64_t K, int64_t V,
    float w, float c, float *restrict m, uint64_t *restrict seen,
    int64_t *restrict items, float *restrict terms) {
    int64_t count = 0;
    for (int64_t k = 0; k < K; k++)
        for (int64_t n = ends[rows[k]]; n < ends[rows[k] + 1]; n++) {
            m[columns[n]] += weights[k] * data[n];
            seen[columns[n] / 64] |= (uint64_t)1 << columns[n] % 64;
        }
    for (int64_t word = 0; word <= (V - 1) / 64; word++) {
        for (uint64_t bits = seen[word]; bits; bits &= bits - 1) {
            const int64_t item = word * 64 + __builtin_ctzll(bits);
            items[count] = item;
            terms[count++] = m[item];
            m[item] = 0.0f;
        }
        seen[word] = 0;
    }
    for (int64_t n = 0; n < count; n++) terms[n] = w * log1p_(c * terms[n]);
    return count;
}

/* Whether result a comes after result b: a lower score, or the same score and a later item. */
INLINE int is_after(const float *scores, const int64_t *items, int64_t a, int64_t b) {
    return scores[a] < scores[b] || (scores[a] == scores[b] && items[a] > items[b]);
}

/* Restore a heap of n results, the last one at the root, of which only place i may be wrong. */
INLINE void sift(float *scores, int64_t *items, int64_t n, int64_t i) {
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && is_after(scores, items, child + 1, child)) child++;
        if (!is_after(scores, items, child, i)) return;
        const float score = scores[i];
        const int64_t item = items[i];
        scores[i] = scores[child], items[i] = items[child];
        scores[child] = score, items[child] = item;
    }
}

/* Offer a result to n results, of which only the best k are kept: as a heap once there are k. Returns
 * their number. */
INLINE int64_t offer(float *scores, int64_t *items, int64_t n, int64_t k, float score, int64_t item) {
    if (n == k) {
        if (score <= scores[0]) return n; /* items come in ascending order */
        scores[0] = score, items[0] = item;
        sift(scores, items, n, 0);
        return n;
    }
    scores[n] = score, items[n] = item;
    if (++n == k)
        for (int64_t i = k / 2; i-- > 0;) sift(scores, items, k, i);
    return n;
}

/* Sort the n results of offer, best first. */
INLINE void sort_results(float *scores, int64_t *items, int64_t n, int64_t k) {
    if (n < k)
        for (int64_t i = n / 2; i-- > 0;) sift(scores, items, n, i);
    for (int64_t last = n - 1; last > 0; last--) { /* the root, the worst that is left, to the end */
        const float score = scores[0];
        const int64_t item = items[0];
        scores[0] = scores[last], items[0] = items[last];
        scores[last] = score, items[last] = item;
        sift(scores, items, last, 0);
    }
}

#define SUMS 16 /* of a product, so that the compiler vectorises it */
#define TOGETHER 32 /* items whose vectors lie interleaved; _TOGETHER in ranking.py */

/* The best k of V items, best first, equal scores by item: the product of the query (D,) with the vector
 * of each item, plus the values of A items. H items are left out. vectors is (blocks, D, TOGETHER), all
 * (blocks * TOGETHER,) a buffer. Returns the number of results, -1 if a score is not finite, -2 if an
 * item is not in 0 .. V-1. */
KERNEL int64_t best_items(
    const float *restrict vectors, const float *restrict query, int64_t V, int64_t D,
    const int64_t *restrict added, const float *restrict values, int64_t A,
    const int64_t *restrict hidden, int64_t H, int64_t k,
    float *restrict all, float *restrict scores, int64_t *restrict items) {
    for (int64_t first = 0; first < V; first += TOGETHER, vectors += D * TOGETHER) {
        float sums[TOGETHER] = {0};
        for (int64_t d = 0; d < D; d++)
            for (int64_t v = 0; v < TOGETHER; v++) sums[v] += query[d] * vectors[d * TOGETHER + v];
        memcpy(all + first, sums, sizeof sums);
    }
    for (int64_t a = 0; a < A; a++) {
        if (added[a] < 0 || added[a] >= V) return -2;
        all[added[a]] += values[a];
    }
    float finite = 0.0f;
    for (int64_t v = 0; v < V; v++) finite += 0.0f * all[v]; /* NaN if a score is not finite */
    if (finite != 0.0f) return -1;
    for (int64_t h = 0; h < H; h++) {
        if (hidden[h] < 0 || hidden[h] >= V) return -2;
        all[hidden[h]] = -INFINITY;
    }
    int64_t n = 0;
    for (int64_t v = 0; v < V; v++)
        if (all[v] != -INFINITY) n = offer(scores, items, n, k, all[v], v);
    sort_results(scores, items, n, k);
    return n;
}

/* The best k of n candidates, items in ascending order, as best_items; vectors is (V, D). The values of A
 * items are in ascending order of items. A score does not depend on the other candidates. Returns the
 * number of results, or -1 if a score is not finite. */
KERNEL int64_t best_of(
    const float *restrict vectors, const float *restrict query, int64_t D,
    const int64_t *restrict candidates, int64_t n, const int64_t *restrict added,
    const float *restrict values, int64_t A, int64_t k,
    float *restrict scores, int64_t *restrict items) {
    int64_t a = 0, kept = 0;
    for (int64_t c = 0; c < n; c++) {
        const float *vector = vectors + candidates[c] * D;
        float sums[SUMS] = {0}, score = 0.0f;
        int64_t d = 0;
        for (; d + SUMS <= D; d += SUMS)
            for (int64_t s = 0; s < SUMS; s++) sums[s] += query[d + s] * vector[d + s];
        for (; d < D; d++) score += query[d] * vector[d];
        for (int64_t s = 0; s < SUMS; s++) score += sums[s];
        while (a < A && added[a] < candidates[c]) a++;
        if (a < A && added[a] == candidates[c]) score += values[a];
        if (!isfinite(score)) return -1;
        kept = offer(scores, items, kept, k, score, candidates[c]);
    }
    sort_results(scores, items, kept, k);
    return kept;
}
