/* The functions of kernels.c for one element type: SCALAR in memory, float32 in the arithmetic.
 * Each function processes the channels first .. end-1 of all rows. */

/* h_t = alpha_t h_{t-1} + u_t (equation (5) with u = beta x); alpha, u, h: (N, C). start (B, C) is
 * the state before the first event; last (B, C) receives the state after the last event. */
KERNEL void NAME(linear_scan_forward)(
    const SCALAR *restrict alpha, const SCALAR *restrict u, const int64_t *restrict offsets,
    const float *restrict start, SCALAR *restrict h, float *restrict last,
    int64_t B, int64_t C, int64_t first, int64_t end) {
    for (int64_t b = 0; b < B; b++) {
        float *restrict state = last + b * C; /* in float32: rounding h does not affect it */
        memcpy(state + first, start + b * C + first, (size_t)(end - first) * sizeof(float));
        for (int64_t t = offsets[b]; t < offsets[b + 1]; t++) {
            const int64_t row = t * C;
            for (int64_t c = first; c < end; c++) {
                state[c] = LOAD(alpha[row + c]) * state[c] + LOAD(u[row + c]);
                h[row + c] = STORE(state[c]);
            }
        }
    }
}

/* Gradients of linear_scan_forward, from the last event to the first:
 * du_t = dh_t + alpha_{t+1} du_{t+1} and dalpha_t = du_t h_{t-1}. dlast (B, C) holds the gradient of
 * the last state on entry and the gradient of start on return. */
KERNEL void NAME(linear_scan_backward)(
    const SCALAR *restrict alpha, const int64_t *restrict offsets, const float *restrict start,
    const SCALAR *restrict h, const SCALAR *restrict dh, SCALAR *restrict dalpha,
    SCALAR *restrict du, float *restrict dlast,
    int64_t B, int64_t C, int64_t first, int64_t end) {
    for (int64_t b = 0; b < B; b++) {
        float *restrict carry = dlast + b * C;
        for (int64_t t = offsets[b + 1] - 1; t >= offsets[b]; t--) {
            const int64_t row = t * C;
            for (int64_t c = first; c < end; c++) {
                float g = carry[c] + LOAD(dh[row + c]);
                float before = t > offsets[b] ? LOAD(h[row - C + c]) : start[b * C + c];
                du[row + c] = STORE(g);
                dalpha[row + c] = STORE(g * before);
                carry[c] = LOAD(alpha[row + c]) * g;
            }
        }
    }
}

/* Equations (5)-(8) and line 6 of Algorithm 1. x, r, i, z: (N, C), r, i and z before their
 * nonlinearity; decay = softplus(lambda): (C,). start (B, C) is the state before the first event;
 * last (B, C) receives the state after the last event. Row offsets[b] / ROWS + b + k of kept receives
 * the state of sequence b before event k ROWS; backward recomputes the other states from these. */
KERNEL void NAME(bd_lru_forward)(
    const SCALAR *restrict x, const SCALAR *restrict r, const SCALAR *restrict i,
    const SCALAR *restrict z, const float *restrict decay, const int64_t *restrict offsets,
    const float *restrict start, SCALAR *restrict y, float *restrict kept, float *restrict last,
    int64_t B, int64_t C, int64_t first, int64_t end) {
    const size_t size = (size_t)(end - first) * sizeof(float);
    for (int64_t b = 0; b < B; b++) {
        float *restrict state = last + b * C;
        memcpy(state + first, start + b * C + first, size);
        for (int64_t t = offsets[b]; t < offsets[b + 1]; t++) {
            const int64_t row = t * C, k = (t - offsets[b]) / ROWS;
            if (t == offsets[b] + k * ROWS)
                memcpy(kept + (offsets[b] / ROWS + b + k) * C + first, state + first, size);
            for (int64_t c = first; c < end; c++) {
                float q = expm1_(-decay[c] * sigmoid(LOAD(r[row + c]))); /* alpha - 1 */
                float beta = sqrtf(-q * (2.0f + q));                     /* sqrt(1 - alpha^2) */
                float gate = LOAD(z[row + c]);
                state[c] += q * state[c] + beta * sigmoid(LOAD(i[row + c])) * LOAD(x[row + c]);
                y[row + c] = STORE(state[c] * gate * sigmoid(gate));
            }
        }
    }
}

/* Gradients of bd_lru_forward, for ROWS events at a time, from the last to the first. A forward loop
 * computes the states and every factor that does not depend on g, the gradient of the state. A
 * backward loop then computes g_t = dy_t SiLU(z_t) + alpha_{t+1} g_{t+1} and the products with g.
 * dlast (B, C) holds the gradient of the last state on entry and the gradient of start on return.
 * ddecay (C,) receives, in float64, the gradient of log(decay): the sum over events of
 * d log(alpha) * log(alpha), bounded where the derivative of sqrt(1 - alpha^2) is not. */
KERNEL void NAME(bd_lru_backward)(
    const SCALAR *restrict x, const SCALAR *restrict r, const SCALAR *restrict i,
    const SCALAR *restrict z, const float *restrict decay, const int64_t *restrict offsets,
    const float *restrict kept, const SCALAR *restrict dy,
    SCALAR *restrict dx, SCALAR *restrict dr, SCALAR *restrict di, SCALAR *restrict dz,
    double *restrict ddecay, float *restrict dlast,
    int64_t B, int64_t C, int64_t first, int64_t end) {
    ALIGNED float state[CHANNELS], sum[CHANNELS];
    ALIGNED float alphas[ROWS][CHANNELS], direct[ROWS][CHANNELS]; /* direct: dy SiLU(z) */
    ALIGNED float per_x[ROWS][CHANNELS], per_r[ROWS][CHANNELS]; /* dx / g, dr / g and so on */
    ALIGNED float per_i[ROWS][CHANNELS], slopes[ROWS][CHANNELS];
    for (int64_t from = first; from < end; from += CHANNELS) {
        const int64_t n = end - from < CHANNELS ? end - from : CHANNELS;
        for (int64_t b = 0; b < B; b++) {
            float *restrict carry = dlast + b * C + from;
            for (int64_t k = (offsets[b + 1] - offsets[b] + ROWS - 1) / ROWS - 1; k >= 0; k--) {
                const int64_t begin = offsets[b] + k * ROWS;
                const int64_t T = offsets[b + 1] - begin < ROWS ? offsets[b + 1] - begin : ROWS;
                const float *restrict before = kept + (offsets[b] / ROWS + b + k) * C + from;
                memcpy(state, before, (size_t)n * sizeof(float));
                for (int64_t t = 0; t < T; t++) {
                    const int64_t row = (begin + t) * C + from;
                    for (int64_t c = 0; c < n; c++) {
                        float recurrence = sigmoid(LOAD(r[row + c]));
                        float log_alpha = -decay[from + c] * recurrence;
                        float q = expm1_(log_alpha), alpha = 1.0f + q;
                        float beta = sqrtf(1e-37f - q * (2.0f + q)); /* not 0: a divisor */
                        float input = sigmoid(LOAD(i[row + c])), value = LOAD(x[row + c]);
                        float gate = LOAD(z[row + c]), open = sigmoid(gate);
                        float out = LOAD(dy[row + c]);
                        float slope = log_alpha * alpha * (state[c] - input * value * alpha / beta);
                        state[c] += q * state[c] + beta * input * value;
                        dz[row + c] = STORE(out * state[c] * open * (1.0f + gate * (1.0f - open)));
                        alphas[t][c] = alpha;
                        direct[t][c] = out * gate * open;
                        per_x[t][c] = beta * input;
                        per_i[t][c] = beta * input * value * (1.0f - input);
                        per_r[t][c] = slope * (1.0f - recurrence);
                        slopes[t][c] = slope;
                    }
                }
                memset(sum, 0, sizeof sum);
                for (int64_t t = T - 1; t >= 0; t--) {
                    const int64_t row = (begin + t) * C + from;
                    for (int64_t c = 0; c < n; c++) {
                        float g = carry[c] + direct[t][c];
                        dx[row + c] = STORE(g * per_x[t][c]);
                        dr[row + c] = STORE(g * per_r[t][c]);
                        di[row + c] = STORE(g * per_i[t][c]);
                        sum[c] += g * slopes[t][c];
                        carry[c] = g * alphas[t][c];
                    }
                }
                for (int64_t c = 0; c < n; c++) ddecay[from + c] += sum[c];
            }
        }
    }
}

/* Causal depthwise convolution and SiLU, line 4 of Algorithm 1:
 * y_t = SiLU(bias + sum_k w_k x_{t-W+1+k}). weight: (W, C); before (B, W-1, C) are the inputs
 * that precede each sequence, oldest first. */
KERNEL void NAME(conv_silu_forward)(
    const SCALAR *restrict x, const float *restrict weight, const float *restrict bias,
    const int64_t *restrict offsets, const SCALAR *restrict before, SCALAR *restrict y,
    int64_t B, int64_t C, int64_t W, int64_t first, int64_t end) {
    float *restrict sum = malloc((size_t)C * sizeof(float));
    for (int64_t b = 0; b < B; b++) {
        /* event s >= 0 is at x + inside + s C, event s < 0 at before + outside + s C */
        const int64_t inside = offsets[b] * C;
        const int64_t outside = (b + 1) * (W - 1) * C;
        for (int64_t t = 0; t < offsets[b + 1] - offsets[b]; t++) {
            for (int64_t c = first; c < end; c++) sum[c] = bias[c];
            for (int64_t k = 0; k < W; k++) {
                const int64_t s = t - (W - 1) + k;
                const SCALAR *restrict input = (s < 0 ? before + outside : x + inside) + s * C;
                const float *restrict w = weight + k * C;
                for (int64_t c = first; c < end; c++) sum[c] += w[c] * LOAD(input[c]);
            }
            for (int64_t c = first; c < end; c++)
                y[inside + t * C + c] = STORE(sum[c] * sigmoid(sum[c]));
        }
    }
    free(sum);
}

/* Gradients of conv_silu_forward. dweight (W, C) and dbias (C,) are sums over sequences in float64. */
KERNEL void NAME(conv_silu_backward)(
    const SCALAR *restrict x, const float *restrict weight, const float *restrict bias,
    const int64_t *restrict offsets, const SCALAR *restrict before, const SCALAR *restrict dy,
    SCALAR *restrict dx, double *restrict dweight, double *restrict dbias, SCALAR *restrict dbefore,
    int64_t B, int64_t C, int64_t W, int64_t first, int64_t end) {
    const size_t size = (size_t)(W * CHANNELS) * sizeof(float);
    float *restrict ring = aligned_alloc(64, size); /* dsum of the events t-W+1 .. t */
    float *restrict dw = aligned_alloc(64, size);
    ALIGNED float sum[CHANNELS], db[CHANNELS];
    for (int64_t from = first; from < end; from += CHANNELS) {
        const int64_t n = end - from < CHANNELS ? end - from : CHANNELS;
        for (int64_t b = 0; b < B; b++) {
            const int64_t T = offsets[b + 1] - offsets[b];
            const int64_t inside = offsets[b] * C + from, outside = (b + 1) * (W - 1) * C + from;
            memset(ring, 0, size);
            memset(dw, 0, size);
            memset(db, 0, sizeof db);
            for (int64_t t = 0; t < T + W - 1; t++) { /* t >= T: only gradients of inputs remain */
                float *restrict dsum = ring + t % W * CHANNELS;
                if (t < T) {
                    for (int64_t c = 0; c < n; c++) sum[c] = bias[from + c];
                    for (int64_t k = 0; k < W; k++) {
                        const int64_t s = t - (W - 1) + k;
                        const SCALAR *restrict in = (s < 0 ? before + outside : x + inside) + s * C;
                        const float *restrict w = weight + k * C + from;
                        for (int64_t c = 0; c < n; c++) sum[c] += w[c] * LOAD(in[c]);
                    }
                    for (int64_t c = 0; c < n; c++) {
                        float out = LOAD(dy[inside + t * C + c]), open = sigmoid(sum[c]);
                        dsum[c] = out * open * (1.0f + sum[c] * (1.0f - open));
                        db[c] += dsum[c];
                    }
                    for (int64_t k = 0; k < W; k++) {
                        const int64_t s = t - (W - 1) + k;
                        const SCALAR *restrict in = (s < 0 ? before + outside : x + inside) + s * C;
                        float *restrict total = dw + k * CHANNELS;
                        for (int64_t c = 0; c < n; c++) total[c] += dsum[c] * LOAD(in[c]);
                    }
                } else {
                    memset(dsum, 0, CHANNELS * sizeof(float));
                }
                const int64_t s = t - (W - 1); /* no later event reads this input */
                SCALAR *restrict dinput = (s < 0 ? dbefore + outside : dx + inside) + s * C;
                for (int64_t c = 0; c < n; c++) sum[c] = 0.0f;
                for (int64_t k = 0; k < W; k++) {
                    const float *restrict later = ring + (t - k + W) % W * CHANNELS;
                    const float *restrict w = weight + k * C + from;
                    for (int64_t c = 0; c < n; c++) sum[c] += w[c] * later[c];
                }
                for (int64_t c = 0; c < n; c++) dinput[c] = STORE(sum[c]);
            }
            for (int64_t k = 0; k < W; k++)
                for (int64_t c = 0; c < n; c++) dweight[k * C + from + c] += dw[k * CHANNELS + c];
            for (int64_t c = 0; c < n; c++) dbias[from + c] += db[c];
        }
    }
    free(ring);
    free(dw);
}

/* y = x / keep where a 32-bit hash of (seed, position) is below keep * 2^32, else 0. */
KERNEL void NAME(dropout)(
    const SCALAR *restrict x, SCALAR *restrict y, uint32_t seed, uint32_t threshold, float scale,
    int64_t before, int64_t first, int64_t end) {
    for (int64_t n = first; n < end; n++)
        y[n] = STORE(mix((uint32_t)(before + n) ^ seed) < threshold ? LOAD(x[n]) * scale : 0.0f);
}
