/* The functions of kernels.c for one element type: SCALAR in memory, float32 in the arithmetic.
 * Each works on the channels first .. last-1 of all rows. */

/* Equations (5)-(8) and line 6 of Algorithm 1. x, r, i, z: (N, C), r, i and z before their
 * nonlinearity; decay = softplus(lambda): (C,). h (N, C) receives every state (backward needs it),
 * last (B, C) the last one; start (B, C) is the state before the first event. */
KERNEL void NAME(bd_lru_forward)(
    const SCALAR *restrict x, const SCALAR *restrict r, const SCALAR *restrict i,
    const SCALAR *restrict z, const float *restrict decay, const int64_t *restrict offsets,
    const float *restrict start, SCALAR *restrict y, float *restrict h, float *restrict last,
    int64_t B, int64_t C, int64_t first, int64_t end) {
    for (int64_t b = 0; b < B; b++) {
        float *restrict state = last + b * C;
        memcpy(state + first, start + b * C + first, (size_t)(end - first) * sizeof(float));
        for (int64_t t = offsets[b]; t < offsets[b + 1]; t++) {
            const int64_t row = t * C;
            for (int64_t c = first; c < end; c++) {
                float q = expm1_(-decay[c] * sigmoid(LOAD(r[row + c]))); /* alpha - 1 */
                float beta = sqrtf(-q * (2.0f + q));                     /* sqrt(1 - alpha^2) */
                float gate = LOAD(z[row + c]);
                float now = state[c] + q * state[c]
                          + beta * sigmoid(LOAD(i[row + c])) * LOAD(x[row + c]);
                state[c] = h[row + c] = now;
                y[row + c] = STORE(now * gate * sigmoid(gate));
            }
        }
    }
}

/* Gradients of the above, from the last event to the first; the gates are computed anew.
 * dlast (B, C) comes in as the gradient of the last state and leaves as that of the first.
 * ddecay (C,), in float64, is the sum over events of d log(alpha) * log(alpha), which stays bounded
 * where the derivative of sqrt(1 - alpha^2) does not; divided by decay it is the gradient. */
KERNEL void NAME(bd_lru_backward)(
    const SCALAR *restrict x, const SCALAR *restrict r, const SCALAR *restrict i,
    const SCALAR *restrict z, const float *restrict decay, const int64_t *restrict offsets,
    const float *restrict start, const float *restrict h, const SCALAR *restrict dy,
    SCALAR *restrict dx, SCALAR *restrict dr, SCALAR *restrict di, SCALAR *restrict dz,
    double *restrict ddecay, float *restrict dlast,
    int64_t B, int64_t C, int64_t first, int64_t end) {
    float *restrict sum = malloc((size_t)C * sizeof(float));
    for (int64_t b = 0; b < B; b++) {
        float *restrict carry = dlast + b * C;
        memset(sum, 0, (size_t)C * sizeof(float));
        for (int64_t t = offsets[b + 1] - 1; t >= offsets[b]; t--) {
            const int64_t row = t * C;
            const float *restrict before = t > offsets[b] ? h + row - C : start + b * C;
            for (int64_t c = first; c < end; c++) {
                float gate = LOAD(z[row + c]), open = sigmoid(gate);
                float recurrence = sigmoid(LOAD(r[row + c])), input = sigmoid(LOAD(i[row + c]));
                float log_alpha = -decay[c] * recurrence, q = expm1_(log_alpha), alpha = 1.0f + q;
                float square = -q * (2.0f + q), beta = sqrtf(square);
                float out = LOAD(dy[row + c]), value = LOAD(x[row + c]);
                float g = carry[c] + out * gate * open;
                float dbeta = g * input * value;
                /* d log(alpha) * log(alpha); the floor only meets square = 0, where it is 0 / 1 */
                float slope = log_alpha * alpha
                            * (g * before[c] - dbeta * alpha / sqrtf(square > 1e-37f ? square : 1.0f));
                dz[row + c] = STORE(out * h[row + c] * open * (1.0f + gate * (1.0f - open)));
                dx[row + c] = STORE(g * beta * input);
                di[row + c] = STORE(g * beta * value * input * (1.0f - input));
                dr[row + c] = STORE(slope * (1.0f - recurrence));
                sum[c] += slope;
                carry[c] = g * alpha;
            }
        }
        for (int64_t c = first; c < end; c++) ddecay[c] += sum[c];
    }
    free(sum);
}

/* Causal depthwise convolution and SiLU (line 4 of Algorithm 1): y_t = SiLU(bias + sum_k w_k x_{t-W+1+k}).
 * weight: (W, C); before (B, W-1, C) holds the inputs that precede each sequence, oldest first. */
KERNEL void NAME(conv_silu_forward)(
    const SCALAR *restrict x, const float *restrict weight, const float *restrict bias,
    const int64_t *restrict offsets, const SCALAR *restrict before, SCALAR *restrict y,
    int64_t B, int64_t C, int64_t W, int64_t first, int64_t end) {
    float *restrict sum = malloc((size_t)C * sizeof(float));
    for (int64_t b = 0; b < B; b++) {
        const SCALAR *earlier = before + (b + 1) * (W - 1) * C; /* row -1 of the sequence is just below */
        for (int64_t t = offsets[b]; t < offsets[b + 1]; t++) {
            for (int64_t c = first; c < end; c++) sum[c] = bias[c];
            for (int64_t k = 0; k < W; k++) {
                const int64_t s = t - (W - 1) + k;
                const SCALAR *restrict input = s < offsets[b] ? earlier + (s - offsets[b]) * C : x + s * C;
                const float *restrict w = weight + k * C;
                for (int64_t c = first; c < end; c++) sum[c] += w[c] * LOAD(input[c]);
            }
            for (int64_t c = first; c < end; c++) y[t * C + c] = STORE(sum[c] * sigmoid(sum[c]));
        }
    }
    free(sum);
}

/* Gradients of the above. dweight (W, C) and dbias (C,) are summed over events in float64. */
KERNEL void NAME(conv_silu_backward)(
    const SCALAR *restrict x, const float *restrict weight, const float *restrict bias,
    const int64_t *restrict offsets, const SCALAR *restrict before, const SCALAR *restrict dy,
    SCALAR *restrict dx, double *restrict dweight, double *restrict dbias, SCALAR *restrict dbefore,
    int64_t B, int64_t C, int64_t W, int64_t first, int64_t end) {
    float *restrict ring = malloc((size_t)((W + 1) * C) * sizeof(float)); /* dsum of events t .. t+W-1 */
    float *restrict sum = ring + W * C;
    for (int64_t b = 0; b < B; b++) {
        const SCALAR *earlier = before + (b + 1) * (W - 1) * C;
        const int64_t start = offsets[b], T = offsets[b + 1] - start;
        memset(ring, 0, (size_t)(W * C) * sizeof(float));
        for (int64_t t = T - 1; t >= -(W - 1); t--) { /* below 0: the inputs before the sequence */
            float *restrict dsum = ring + ((t + W) % W) * C;
            for (int64_t c = first; c < end; c++) dsum[c] = 0.0f;
            if (t >= 0) {
                const SCALAR *restrict dout = dy + (start + t) * C;
                for (int64_t c = first; c < end; c++) sum[c] = bias[c];
                for (int64_t k = 0; k < W; k++) {
                    const int64_t s = t - (W - 1) + k;
                    const SCALAR *restrict input = s < 0 ? earlier + s * C : x + (start + s) * C;
                    const float *restrict w = weight + k * C;
                    for (int64_t c = first; c < end; c++) sum[c] += w[c] * LOAD(input[c]);
                }
                for (int64_t c = first; c < end; c++) {
                    float open = sigmoid(sum[c]);
                    dsum[c] = LOAD(dout[c]) * open * (1.0f + sum[c] * (1.0f - open));
                    dbias[c] += dsum[c];
                }
                for (int64_t k = 0; k < W; k++) {
                    const int64_t s = t - (W - 1) + k;
                    const SCALAR *restrict input = s < 0 ? earlier + s * C : x + (start + s) * C;
                    double *restrict dw = dweight + k * C;
                    for (int64_t c = first; c < end; c++) dw[c] += dsum[c] * LOAD(input[c]);
                }
            }
            SCALAR *restrict dinput = t < 0 ? dbefore + ((b + 1) * (W - 1) + t) * C : dx + (start + t) * C;
            for (int64_t c = first; c < end; c++) sum[c] = 0.0f;
            for (int64_t j = 0; j < W; j++) {
                const float *restrict later = ring + ((t + j + W) % W) * C;
                const float *restrict w = weight + (W - 1 - j) * C;
                for (int64_t c = first; c < end; c++) sum[c] += w[c] * later[c];
            }
            for (int64_t c = first; c < end; c++) dinput[c] = STORE(sum[c]);
        }
    }
    free(ring);
}

/* y = x / keep where a 32-bit draw from (seed, position) is below keep * 2^32, else 0. */
KERNEL void NAME(dropout)(
    const SCALAR *restrict x, SCALAR *restrict y, uint32_t seed, uint32_t threshold, float scale,
    int64_t first, int64_t end) {
    for (int64_t n = first; n < end; n++)
        y[n] = STORE(mix((uint32_t)n ^ seed) < threshold ? LOAD(x[n]) * scale : 0.0f);
}
