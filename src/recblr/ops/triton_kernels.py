"""The recurrence on a GPU: gates, scan and output gate in one pass over memory, in Triton.

gpu.py launches the kernels. Rows are the events of all sequences laid end to end, (N, C) row-major. A
program of the recurrence is one warp. It processes one block of channels of one segment, which is a
sequence or a piece of a long one (:func:`triton_functions.segment`), with the plain loop of equation
(5), the state in registers; it loads the next ROWS events while it computes the present ones. Before
pieces are processed, a summary reduces each of them to one event, and each piece computes its first
state from the summaries of the pieces before it. The arithmetic is float32 for tensors of any dtype.
There are no atomics: each program writes its part of a sum, and the parts are added in a fixed order,
so two runs give identical bits.

Rows past the end of a segment read α = 1 and input 0, so they leave the state unchanged.
"""

import triton
import triton.language as tl

from recblr.ops.triton_functions import (
    channels,
    exp2,
    expm1,
    load_rows,
    load_some_rows,
    minus_infinity,
    packed,
    segment,
    sigmoid,
    silu,
    sqrt,
    tanh,
    unpack,
)  # fmt: skip


@triton.jit
def _gates(r, i, rate, FAST: tl.constexpr):
    """log α, α, α - 1, 1 - α², 1 - σ(r) and σ(i); equations (6)-(8). If FAST, not α - 1."""
    input = sigmoid(i, FAST)
    if FAST:
        t, log_rate, log2_rate = tanh(0.5 * r), -0.5 * rate, -0.7213475204444817 * rate
        alpha = exp2(log2_rate * t + log2_rate)
        return log_rate * t + log_rate, alpha, alpha, 1.0 - alpha * alpha, 0.5 - 0.5 * t, input
    else:
        recurrence = sigmoid(r, FAST)
        log_alpha = -rate * recurrence
        q = expm1(log_alpha)
        return log_alpha, 1.0 + q, q, -q * (2.0 + q), 1.0 - recurrence, input


@triton.jit
def _multiply(state, alpha, q, FAST: tl.constexpr):
    """α state; with α - 1 it keeps the digits of an α near 1."""
    if FAST:
        return alpha * state
    else:
        return state + q * state


@triton.jit
def _pass(state, alphas, sums, c, channel, first, count, STEP: tl.constexpr, C: tl.constexpr):
    """The state after ``count`` summaries, of the segments first, first + STEP, …"""
    alphas += first.to(tl.int64) * C + c
    sums += first.to(tl.int64) * C + c
    for _k in tl.range(0, count, loop_unroll_factor=4):
        state = tl.load(alphas, channel, 1.0) * state + tl.load(sums, channel, 0.0)
        alphas += STEP * C
        sums += STEP * C
    return state


@triton.jit(do_not_specialize=["B", "SHIFT"])
def linear_scan(
    alpha, u, offsets, start, alphas, sums, h, last, B, SHIFT,
    C: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """h_t = α_t h_{t-1} + u_t, equation (5)."""
    number, b, piece, pieces, begin, length = segment(offsets, B, SHIFT)
    _, c, _, channel = channels(C, CHANNELS, VECTOR)
    state = tl.load(start + b * C + c, channel, 0.0)
    state = _pass(state, alphas, sums, c, channel, number - piece, piece, 1, C)
    at = begin * C + c
    alpha, u, h = alpha + at, u + at, h + at
    for left in range(length, 0, -ROWS):
        factors = load_some_rows(alpha, channel, left, C, ROWS, 1.0)
        us = load_some_rows(u, channel, left, C, ROWS, 0.0)
        for k in tl.static_range(ROWS):
            state = factors[k].to(tl.float32) * state + us[k].to(tl.float32)
            tl.store(h + k * C, state.to(h.dtype.element_ty), channel & (k < left))
        alpha += ROWS * C
        u += ROWS * C
        h += ROWS * C
    tl.store(last + b * C + c, state, channel & (piece == pieces - 1))


@triton.jit(do_not_specialize=["B", "SHIFT"])
def linear_scan_backward(
    alpha, offsets, start, h, dh, dlast, alphas, sums, dalpha, du, dstart, B, SHIFT,
    C: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """du_t = dh_t + α_{t+1} du_{t+1} from the last event to the first, dα_t = du_t h_{t-1}."""
    number, b, piece, pieces, begin, length = segment(offsets, B, SHIFT)
    _, c, _, channel = channels(C, CHANNELS, VECTOR)
    earliest = tl.load(start + b * C + c, channel, 0.0)
    carry = tl.load(dlast + b * C + c, channel, 0.0)  # α_{t+1} du_{t+1}
    after = pieces - 1 - piece
    carry = _pass(carry, alphas, sums, c, channel, number + after, after, -1, C)
    at = (begin + length - 1) * C + c
    alpha, h, dh, dalpha, du = alpha + at, h + at - C, dh + at, dalpha + at, du + at
    for left in range(length, 0, -ROWS):
        factors = load_some_rows(alpha, channel, left, -C, ROWS, 1.0)
        dhs = load_some_rows(dh, channel, left, -C, ROWS, 0.0)
        befores = load_some_rows(h, channel, tl.where(piece == 0, left - 1, left), -C, ROWS, 0.0)
        for k in tl.static_range(ROWS):
            inside = channel & (k < left)
            gradient = dhs[k].to(tl.float32) + carry
            before = tl.where((piece == 0) & (k == left - 1), earliest, befores[k].to(tl.float32))
            tl.store(du - k * C, gradient.to(du.dtype.element_ty), inside)
            tl.store(dalpha - k * C, (gradient * before).to(dalpha.dtype.element_ty), inside)
            carry = factors[k].to(tl.float32) * gradient
        alpha -= ROWS * C
        h -= ROWS * C
        dh -= ROWS * C
        dalpha -= ROWS * C
        du -= ROWS * C
    tl.store(dstart + b * C + c, carry, channel & (piece == 0))


@triton.jit(do_not_specialize=["B", "SHIFT"])
def linear_scan_summary(
    alpha, u, offsets, alphas, sums, B, SHIFT, C: tl.constexpr, CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Each segment as one event, see :func:`bd_lru_summary`; in reverse, u is dh."""
    number, _, piece, pieces, begin, length = segment(offsets, B, SHIFT)
    _, c, _, channel = channels(C, CHANNELS, VECTOR)
    needed = piece > 0 if REVERSE else piece < pieces - 1
    STEP: tl.constexpr = C if REVERSE else -C
    at = (begin if REVERSE else begin + length - 1) * C + c
    alpha, u = alpha + at, u + at
    product = tl.full([CHANNELS // VECTOR, VECTOR], 1.0, tl.float32)
    state = tl.zeros([CHANNELS // VECTOR, VECTOR], tl.float32)
    for left in range(tl.where(needed, length, 0), 0, -ROWS):
        factors = load_some_rows(alpha, channel, left, STEP, ROWS, 1.0)
        us = load_some_rows(u, channel, left, STEP, ROWS, 0.0)
        for k in tl.static_range(ROWS):
            before = product
            product *= factors[k].to(tl.float32)
            state += (product if REVERSE else before) * us[k].to(tl.float32)
        alpha += ROWS * STEP
        u += ROWS * STEP
    at = number.to(tl.int64) * C + c
    tl.store(alphas + at, product, channel)
    tl.store(sums + at, state, channel)


@triton.jit(do_not_specialize=["B", "SHIFT"])
def bd_lru(
    x, r, i, z, decay, offsets, start, alphas, sums, y, kept, last, B, SHIFT,
    C: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Equations (5)-(8), then the output gate.

    ``kept`` receives the state before every KEPT events; the states of a segment that begins at row t
    are rows t // KEPT + its number and up, so no two segments overlap.
    """
    FAST: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    S: tl.constexpr = C // VECTOR
    number, b, piece, pieces, begin, length = segment(offsets, B, SHIFT)
    lane, c, whole, channel = channels(C, CHANNELS, VECTOR)
    rate = tl.load(decay + c, channel, 0.0)
    state = tl.load(start + b * C + c, channel, 0.0)
    state = _pass(state, alphas, sums, c, channel, number - piece, piece, 1, C)
    closed = minus_infinity(r, VECTOR)
    kept += (begin // KEPT + number) * C + c
    y += begin * C + c
    at = begin * S + lane
    x, r = packed(x, VECTOR) + at, packed(r, VECTOR) + at
    i, z = packed(i, VECTOR) + at, packed(z, VECTOR) + at
    xs = load_some_rows(x, whole, length, S, ROWS)
    rs = load_some_rows(r, whole, length, S, ROWS, closed)
    js = load_some_rows(i, whole, length, S, ROWS)
    zs = load_some_rows(z, whole, length, S, ROWS)
    for left in range(length, 0, -ROWS):
        x += ROWS * S
        r += ROWS * S
        i += ROWS * S
        z += ROWS * S
        if left >= 2 * ROWS and C % CHANNELS == 0:  # without masks, which take instructions
            next_xs, next_rs = load_rows(x, S, ROWS), load_rows(r, S, ROWS)
            next_js, next_zs = load_rows(i, S, ROWS), load_rows(z, S, ROWS)
        else:
            next_xs = load_some_rows(x, whole, left - ROWS, S, ROWS)
            next_rs = load_some_rows(r, whole, left - ROWS, S, ROWS, closed)
            next_js = load_some_rows(i, whole, left - ROWS, S, ROWS)
            next_zs = load_some_rows(z, whole, left - ROWS, S, ROWS)
        for k in tl.static_range(ROWS):
            inside = channel & (k < left)
            if k % KEPT == 0:
                tl.store(kept + k // KEPT * C, state.to(kept.dtype.element_ty), inside)
            r_k, i_k = unpack(rs[k], FAST, VECTOR), unpack(js[k], FAST, VECTOR)
            _log, alpha, q, square, _rest, input = _gates(r_k, i_k, rate, FAST)
            u = sqrt(square) * unpack(xs[k], FAST, VECTOR) * input
            state = _multiply(state, alpha, q, FAST) + u
            out = state * silu(unpack(zs[k], FAST, VECTOR), FAST)
            tl.store(y + k * C, out.to(y.dtype.element_ty), inside)
        kept += ROWS // KEPT * C
        y += ROWS * C
        xs, rs, js, zs = next_xs, next_rs, next_js, next_zs
    tl.store(last + b * C + c, state, channel & (piece == pieces - 1))


@triton.jit(do_not_specialize=["B", "SHIFT"])
def bd_lru_backward(
    x, r, i, z, decay, offsets, kept, dy, dlast, alphas, sums, dx, dr, di, dz, dlog_decay, dstart,
    B, SHIFT, C: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Gradients of :func:`bd_lru`, from the last event to the first, KEPT events at a time.

    The gates and states of these events are recomputed once and stay in registers. ``dlog_decay``
    receives each segment's part of the gradient of log(decay), the sum over events of
    d log(α) log(α). It stays bounded where the derivative of √(1 - α²) does not.
    """
    FAST: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    S: tl.constexpr = C // VECTOR
    number, b, piece, pieces, begin, length = segment(offsets, B, SHIFT)
    lane, c, whole, channel = channels(C, CHANNELS, VECTOR)
    rate = tl.load(decay + c, channel, 0.0)
    carry = tl.load(dlast + b * C + c, channel, 0.0)  # α dh of the next event
    after = pieces - 1 - piece
    carry = _pass(carry, alphas, sums, c, channel, number + after, after, -1, C)
    total = tl.zeros([CHANNELS // VECTOR, VECTOR], tl.float32)
    groups = tl.cdiv(length, KEPT)
    kept += (begin // KEPT + number + groups - 1) * C + c
    left = tl.minimum(length, length - (groups - 1) * KEPT)  # the last group may be shorter
    first = begin + (groups - 1) * KEPT
    closed = minus_infinity(r, VECTOR)
    at = first * C + c
    dx, dr, di, dz = dx + at, dr + at, di + at, dz + at
    at = first * S + lane
    x, r, i = packed(x, VECTOR) + at, packed(r, VECTOR) + at, packed(i, VECTOR) + at
    z, dy = packed(z, VECTOR) + at, packed(dy, VECTOR) + at
    xs = load_some_rows(x, whole, left, S, KEPT)
    rs = load_some_rows(r, whole, left, S, KEPT, closed)
    js = load_some_rows(i, whole, left, S, KEPT)
    zs = load_some_rows(z, whole, left, S, KEPT)
    dys = load_some_rows(dy, whole, left, S, KEPT)
    before = tl.load(kept, channel & (left > 0), 0.0)
    for group in range(groups, 0, -1):
        x -= KEPT * S
        r -= KEPT * S
        i -= KEPT * S
        z -= KEPT * S
        dy -= KEPT * S
        kept -= C
        if group > 1 and C % CHANNELS == 0:
            next_xs, next_rs = load_rows(x, S, KEPT), load_rows(r, S, KEPT)
            next_js, next_zs = load_rows(i, S, KEPT), load_rows(z, S, KEPT)
            next_dys, next_before = load_rows(dy, S, KEPT), tl.load(kept)
        else:
            there = tl.where(group > 1, KEPT, 0)
            next_xs = load_some_rows(x, whole, there, S, KEPT)
            next_rs = load_some_rows(r, whole, there, S, KEPT)
            next_js = load_some_rows(i, whole, there, S, KEPT)
            next_zs = load_some_rows(z, whole, there, S, KEPT)
            next_dys = load_some_rows(dy, whole, there, S, KEPT)
            next_before = tl.load(kept, channel & (group > 1), 0.0)
        state = before.to(tl.float32)
        states, gates, betas, inverses = (state,), (), (), ()
        for k in tl.static_range(KEPT):
            r_k, i_k = unpack(rs[k], FAST, VECTOR), unpack(js[k], FAST, VECTOR)
            gate = _gates(r_k, i_k, rate, FAST)
            # The bound acts only where 1 - α² = 0, and there log(α) α is 0.
            inverse = tl.rsqrt(tl.maximum(gate[3], 1e-37))
            beta = gate[3] * inverse
            u = beta * unpack(xs[k], FAST, VECTOR) * gate[5]
            state = _multiply(state, gate[1], gate[2], FAST) + u
            states += (state,)
            gates += (gate,)
            betas += (beta,)
            inverses += (inverse,)
        for k in tl.static_range(KEPT - 1, -1, -1):
            inside = channel & (k < left)
            log_alpha, alpha, q, _, rest, input = gates[k]
            value, gate = unpack(xs[k], FAST, VECTOR), unpack(zs[k], FAST, VECTOR)
            out = unpack(dys[k], FAST, VECTOR)
            sigma = sigmoid(gate, FAST)
            gated = gate * sigma
            dh = out * gated + carry
            carry = _multiply(dh, alpha, q, FAST)
            dvalue = dh * input
            product = dvalue * value
            # dβ = -α² / β d log(α)
            slope = log_alpha * alpha * (dh * states[k] - product * (alpha * inverses[k]))
            total += slope  # d log(α) log(α)
            dz_k = out * states[k + 1] * (sigma + gated * (1.0 - sigma))
            tl.store(dz + k * C, dz_k.to(dz.dtype.element_ty), inside)
            tl.store(dx + k * C, (dvalue * betas[k]).to(dx.dtype.element_ty), inside)
            di_k = product * betas[k] * (1.0 - input)
            tl.store(di + k * C, di_k.to(di.dtype.element_ty), inside)
            tl.store(dr + k * C, (slope * rest).to(dr.dtype.element_ty), inside)
        dx -= KEPT * C
        dr -= KEPT * C
        di -= KEPT * C
        dz -= KEPT * C
        xs, rs, js, zs, dys = next_xs, next_rs, next_js, next_zs, next_dys
        before, left = next_before, KEPT
    tl.store(dlog_decay + number.to(tl.int64) * C + c, total, channel)
    tl.store(dstart + b * C + c, carry, channel & (piece == 0))


@triton.jit(do_not_specialize=["B", "SHIFT"])
def bd_lru_summary(
    x, z, r, i, decay, offsets, alphas, sums, B, SHIFT,
    C: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Each segment as one event, for the pieces after it: its product of α, and its last state from
    state zero. In reverse, for the gradient, x is dy and the pieces are those before it.

    It reads the rows against the order in which the recurrence will, which then finds the first of them
    in the cache.
    """
    FAST: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    STEP: tl.constexpr = C // VECTOR if REVERSE else -(C // VECTOR)
    number, _, piece, pieces, begin, length = segment(offsets, B, SHIFT)
    lane, c, whole, channel = channels(C, CHANNELS, VECTOR)
    needed = piece > 0 if REVERSE else piece < pieces - 1
    length = tl.where(needed, length, 0)
    rate = tl.load(decay + c, channel, 0.0)
    closed = minus_infinity(r, VECTOR)
    at = (begin if REVERSE else begin + length - 1) * (C // VECTOR) + lane
    x, r = packed(x, VECTOR) + at, packed(r, VECTOR) + at
    i = packed(z if REVERSE else i, VECTOR) + at
    product = tl.full([CHANNELS // VECTOR, VECTOR], 1.0, tl.float32)
    state = tl.zeros([CHANNELS // VECTOR, VECTOR], tl.float32)
    xs = load_some_rows(x, whole, length, STEP, ROWS)
    rs = load_some_rows(r, whole, length, STEP, ROWS, closed)
    js = load_some_rows(i, whole, length, STEP, ROWS)
    for left in range(length, 0, -ROWS):
        x += ROWS * STEP
        r += ROWS * STEP
        i += ROWS * STEP
        next_xs = load_some_rows(x, whole, left - ROWS, STEP, ROWS)
        next_rs = load_some_rows(r, whole, left - ROWS, STEP, ROWS, closed)
        next_js = load_some_rows(i, whole, left - ROWS, STEP, ROWS)
        for k in tl.static_range(ROWS):
            value, i_k = unpack(xs[k], FAST, VECTOR), unpack(js[k], FAST, VECTOR)
            _log, alpha, q, square, _rest, input = _gates(
                unpack(rs[k], FAST, VECTOR), i_k, rate, FAST
            )
            before = product
            product = _multiply(product, alpha, q, FAST)
            if REVERSE:  # the α of an event multiplies its own gradient
                state += product * value * silu(i_k, FAST)
            else:
                state += before * (sqrt(square) * value * input)
        xs, rs, js = next_xs, next_rs, next_js
    at = number.to(tl.int64) * C + c
    tl.store(alphas + at, product, channel)
    tl.store(sums + at, state, channel)
