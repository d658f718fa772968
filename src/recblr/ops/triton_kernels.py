"""The recurrence on a GPU: gates, scan and output gate in one pass over memory, in Triton.

gpu.py launches the kernels. Rows are the events of all sequences laid end to end, (N, C) row-major. A
program of the recurrence processes one block of channels of one sequence with the plain loop of
equation (5), the state in registers; it loads the next ROWS events at once. Thousands of sequences fill
a GPU; gpu.py cuts few long sequences into segments first. The arithmetic is float32 for tensors of any
dtype. There are no atomics: each program writes its part of a sum, and the parts are added in a fixed
order, so two runs give identical bits.

Rows past the end of a sequence read α = 1 and input 0, so they leave the state unchanged.
"""

import os

import triton
import triton.language as tl

if os.environ.get("TRITON_INTERPRET") == "1":

    @triton.jit
    def _exp2(x):
        return tl.exp2(x)

else:

    @triton.jit
    def _exp2(x):
        """2^x in one instruction; ``tl.exp2`` takes three more for results below 2^-126."""
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)); squaring a reciprocal square root is faster than dividing."""
    root = tl.rsqrt(1.0 + _exp2(-1.4426950408889634 * x))
    return root * root


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0; the Taylor series near 0, where the difference would cancel."""
    p = 1.0 / 720 * x + 1.0 / 120
    p = p * x + 1.0 / 24
    p = p * x + 1.0 / 6
    p = p * x + 0.5
    p = p * x * x + x
    return tl.where(x > -0.25, p, _exp2(1.4426950408889634 * x) - 1.0)


@triton.jit
def _gates(r, i, rate):
    """log α, α - 1, 1 - α² and both gates after their sigmoid; equations (6)-(8)."""
    recurrence, input = _sigmoid(r.to(tl.float32)), _sigmoid(i.to(tl.float32))
    log_alpha = -rate * recurrence
    q = _expm1(log_alpha)
    square = -q * (2.0 + q)
    return log_alpha, q, square, recurrence, input


@triton.jit
def linear_scan(
    alpha, u, offsets, start, h, last, C, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """h_t = α_t h_{t-1} + u_t, equation (5)."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel = c < C
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    state = tl.load(start + b * C + c, channel, 0.0)
    for first in range(begin, end, ROWS):
        alphas, us = (), ()
        for k in tl.static_range(ROWS):
            at, inside = (first + k) * C + c, channel & (first + k < end)
            alphas += (tl.load(alpha + at, inside, 1.0),)
            us += (tl.load(u + at, inside, 0.0),)
        for k in tl.static_range(ROWS):
            state = alphas[k].to(tl.float32) * state + us[k].to(tl.float32)
            at, inside = (first + k) * C + c, channel & (first + k < end)
            tl.store(h + at, state.to(h.dtype.element_ty), inside)
    tl.store(last + b * C + c, state, channel)


@triton.jit
def linear_scan_backward(
    alpha, offsets, start, h, dh, dlast, dalpha, du, dstart, C,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """du_t = dh_t + α_{t+1} du_{t+1} from the last event to the first, dα_t = du_t h_{t-1}."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel = c < C
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    earliest = tl.load(start + b * C + c, channel, 0.0)
    carry = tl.load(dlast + b * C + c, channel, 0.0)  # α_{t+1} du_{t+1}
    for back in range(0, end - begin, ROWS):
        alphas, dhs, befores = (), (), ()
        for k in tl.static_range(ROWS):
            t = end - 1 - back - k
            at, inside = t * C + c, channel & (t >= begin)
            alphas += (tl.load(alpha + at, inside, 1.0),)
            dhs += (tl.load(dh + at, inside, 0.0),)
            befores += (tl.load(h + at - C, channel & (t > begin), 0.0),)
        for k in tl.static_range(ROWS):
            t = end - 1 - back - k
            at, inside = t * C + c, channel & (t >= begin)
            gradient = dhs[k].to(tl.float32) + carry
            before = tl.where(t == begin, earliest, befores[k].to(tl.float32))
            tl.store(du + at, gradient.to(du.dtype.element_ty), inside)
            tl.store(dalpha + at, (gradient * before).to(dalpha.dtype.element_ty), inside)
            carry = tl.where(t >= begin, alphas[k].to(tl.float32) * gradient, carry)
    tl.store(dstart + b * C + c, carry, channel)


@triton.jit
def bd_lru(
    x, r, i, z, decay, offsets, start, y, kept, last, C,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Equations (5)-(8), then the output gate.

    ``kept`` receives the state before every ROWS events; the states of sequence b begin at row
    offsets[b] // ROWS + b, so no two sequences overlap.
    """
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel = c < C
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    rate = tl.load(decay + c, channel, 0.0)
    state = tl.load(start + b * C + c, channel, 0.0)
    row = kept + (begin // ROWS + b) * C + c
    for first in range(begin, end, ROWS):
        tl.store(row, state, channel)
        row += C
        xs, rs, js, zs = (), (), (), ()
        for k in tl.static_range(ROWS):
            at, inside = (first + k) * C + c, channel & (first + k < end)
            xs += (tl.load(x + at, inside, 0.0),)
            rs += (tl.load(r + at, inside, 0.0),)
            js += (tl.load(i + at, inside, 0.0),)
            zs += (tl.load(z + at, inside, 0.0),)
        for k in tl.static_range(ROWS):
            at, inside = (first + k) * C + c, channel & (first + k < end)
            _, q, square, _, input = _gates(rs[k], js[k], tl.where(first + k < end, rate, 0.0))
            state += q * state + tl.sqrt(square) * input * xs[k].to(tl.float32)
            gate = zs[k].to(tl.float32)
            tl.store(y + at, (state * gate * _sigmoid(gate)).to(y.dtype.element_ty), inside)
    tl.store(last + b * C + c, state, channel)


@triton.jit
def bd_lru_backward(
    x, r, i, z, decay, offsets, kept, dy, dlast, dx, dr, di, dz, dlog_decay, dstart, C,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients of :func:`bd_lru`, from the last event to the first; recomputes gates and states.

    ``dlog_decay`` (B, C) receives each sequence's part of the gradient of log(decay), the sum over
    events of d log(α) log(α). It stays bounded where the derivative of √(1 - α²) does not.
    """
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel = c < C
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    rate = tl.load(decay + c, channel, 0.0)
    carry = tl.load(dlast + b * C + c, channel, 0.0)  # α dh of the next event
    total = tl.zeros([CHANNELS], tl.float32)
    groups = tl.cdiv(end - begin, ROWS)
    for back in range(0, groups):
        group = groups - 1 - back
        first = begin + group * ROWS
        xs, rs, js, zs, dys, befores = (), (), (), (), (), ()
        for k in tl.static_range(ROWS):
            at, inside = (first + k) * C + c, channel & (first + k < end)
            xs += (tl.load(x + at, inside, 0.0),)
            rs += (tl.load(r + at, inside, 0.0),)
            js += (tl.load(i + at, inside, 0.0),)
            zs += (tl.load(z + at, inside, 0.0),)
            dys += (tl.load(dy + at, inside, 0.0),)
        state = tl.load(kept + (begin // ROWS + b + group) * C + c, channel, 0.0)
        for k in tl.static_range(ROWS):
            befores += (state,)
            _, q, square, _, input = _gates(rs[k], js[k], tl.where(first + k < end, rate, 0.0))
            state += q * state + tl.sqrt(square) * input * xs[k].to(tl.float32)
        for k in tl.static_range(ROWS - 1, -1, -1):
            at, inside = (first + k) * C + c, channel & (first + k < end)
            log_alpha, q, square, recurrence, input = _gates(
                rs[k], js[k], tl.where(first + k < end, rate, 0.0)
            )
            alpha, beta = 1.0 + q, tl.sqrt(square)
            value, gate, out = xs[k].to(tl.float32), zs[k].to(tl.float32), dys[k].to(tl.float32)
            sigma = _sigmoid(gate)
            silu = gate * sigma
            dh = out * silu + carry
            carry = alpha * dh
            dvalue = dh * input
            # -dβ dβ/dα; the floor acts only where 1 - α² = 0, and there log(α) α is 0.
            through_beta = dvalue * value * alpha * tl.rsqrt(tl.maximum(square, 1e-37))
            slope = log_alpha * alpha * (dh * befores[k] - through_beta)  # d log(α) log(α)
            total += slope
            dvalue *= beta
            h = alpha * befores[k] + beta * input * value
            dsilu = sigma + silu * (1.0 - sigma)
            tl.store(dz + at, (out * h * dsilu).to(dz.dtype.element_ty), inside)
            tl.store(dx + at, dvalue.to(dx.dtype.element_ty), inside)
            tl.store(di + at, (dvalue * value * (1.0 - input)).to(di.dtype.element_ty), inside)
            tl.store(dr + at, (slope * (1.0 - recurrence)).to(dr.dtype.element_ty), inside)
    tl.store(dlog_decay + b * C + c, total, channel)
    tl.store(dstart + b * C + c, carry, channel)


@triton.jit
def bd_lru_summary(
    first_input, second_input, r, i, decay, offsets, alphas, sums, C,
    REVERSE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Each sequence as one event: its product of α and its last state from state zero, (B, C) each.

    The inputs are x twice; in reverse, for the gradient, dy and z.
    """
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel = c < C
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    rate = tl.load(decay + c, channel, 0.0)
    alpha = tl.full([CHANNELS], 1.0, tl.float32)
    state = tl.zeros([CHANNELS], tl.float32)
    for first in range(begin, end, ROWS):
        for k in tl.static_range(ROWS):
            at, inside = (first + k) * C + c, channel & (first + k < end)
            _, q, square, _, input = _gates(
                tl.load(r + at, inside, 0.0),
                tl.load(i + at, inside, 0.0),
                tl.where(first + k < end, rate, 0.0),
            )
            value = tl.load(first_input + at, inside, 0.0).to(tl.float32)
            if REVERSE:
                gate = tl.load(second_input + at, inside, 0.0).to(tl.float32)
                alpha += q * alpha  # includes the α of this event, which its own gradient passes
                state += alpha * value * gate * _sigmoid(gate)
            else:
                alpha += q * alpha
                state += q * state + tl.sqrt(square) * input * value
    tl.store(alphas + b * C + c, alpha, channel)
    tl.store(sums + b * C + c, state, channel)


@triton.jit
def _tile(pointer, at, inside):
    return tl.load(pointer + at, inside, 0.0).to(tl.float32)


@triton.jit
def _lag(x, before, t, begin, owner, c, lag, inside, C, W: tl.constexpr):
    """x_{t-lag} of the same sequence for each row of a tile; from ``before`` before its first event."""
    precedes = (t - lag < begin)[:, None]
    row = owner * (W - 1) + (W - 1) + t - lag - begin
    return _tile(x, (t - lag)[:, None] * C + c[None, :], inside & (precedes == 0)) + _tile(
        before, row[:, None] * C + c[None, :], inside & precedes
    )


@triton.jit(do_not_specialize=["N"])  # N changes from batch to batch
def conv_silu(
    x, weight, bias, offsets, owners, before, y, N, C,
    W: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y_t = SiLU(bias + Σ_k weight_k x_{t-W+1+k}), line 4 of Algorithm 1.

    ``weight`` is (C, W); ``owners`` (N,) is the sequence of each row. Each program computes a tile of
    rows, of one sequence or of several.
    """
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (t < N)[:, None] & (c < C)[None, :]
    owner = tl.load(owners + t, t < N, 0).to(tl.int64)
    begin = tl.load(offsets + owner)
    sum = tl.zeros([ROWS, CHANNELS], tl.float32) + tl.load(bias + c, c < C, 0.0)[None, :]
    for lag in tl.static_range(W):
        w = tl.load(weight + c * W + (W - 1 - lag), c < C, 0.0)
        sum += w[None, :] * _lag(x, before, t, begin, owner, c, lag, inside, C, W)
    at = t[:, None] * C + c[None, :]
    tl.store(y + at, (sum * _sigmoid(sum)).to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["N"])
def conv_silu_backward_sum(
    x, weight, bias, offsets, owners, before, dy, dsum, dweight, dbias, N, C,
    W: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of the sum before SiLU (N, C), and each tile's part of dweight and dbias."""
    tile = tl.program_id(0).to(tl.int64)
    t = tile * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel = c < C
    inside = (t < N)[:, None] & channel[None, :]
    owner = tl.load(owners + t, t < N, 0).to(tl.int64)
    begin = tl.load(offsets + owner)
    at = t[:, None] * C + c[None, :]
    sum = tl.zeros([ROWS, CHANNELS], tl.float32) + tl.load(bias + c, channel, 0.0)[None, :]
    for lag in tl.static_range(W):
        w = tl.load(weight + c * W + (W - 1 - lag), channel, 0.0)
        sum += w[None, :] * _lag(x, before, t, begin, owner, c, lag, inside, C, W)
    sigma = _sigmoid(sum)
    gradient = _tile(dy, at, inside) * sigma * (1.0 + sum * (1.0 - sigma))
    tl.store(dsum + at, gradient, inside)
    tl.store(dbias + tile * C + c, tl.sum(gradient, 0), channel)
    for lag in tl.static_range(W):
        part = tl.sum(gradient * _lag(x, before, t, begin, owner, c, lag, inside, C, W), 0)
        tl.store(dweight + (tile * C + c) * W + (W - 1 - lag), part, channel)


@triton.jit(do_not_specialize=["N"])
def conv_silu_backward_inputs(
    weight, offsets, owners, dsum, dx, N, C,
    W: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx_t = Σ_lag weight_{W-1-lag} dsum_{t+lag}, to the end of the sequence."""
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (t < N)[:, None] & (c < C)[None, :]
    end = tl.load(offsets + tl.load(owners + t, t < N, 0).to(tl.int64) + 1)
    at = t[:, None] * C + c[None, :]
    sum = tl.zeros([ROWS, CHANNELS], tl.float32)
    for lag in tl.static_range(W):
        w = tl.load(weight + c * W + (W - 1 - lag), c < C, 0.0)
        sum += w[None, :] * _tile(dsum, at + lag * C, inside & (t + lag < end)[:, None])
    tl.store(dx + at, sum.to(dx.dtype.element_ty), inside)


@triton.jit
def conv_silu_backward_before(
    weight, offsets, dsum, dbefore, C, W: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """The same sum for the W - 1 inputs that precede each sequence."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    for row in tl.static_range(W - 1):
        sum = tl.zeros([CHANNELS], tl.float32)
        for lag in tl.static_range(W - 1 - row, W):
            t = begin + row - (W - 1) + lag
            w = tl.load(weight + c * W + (W - 1 - lag), c < C, 0.0)
            sum += w * tl.load(dsum + t * C + c, (c < C) & (t < end), 0.0)
        at = (b * (W - 1) + row) * C + c
        tl.store(dbefore + at, sum.to(dbefore.dtype.element_ty), c < C)
