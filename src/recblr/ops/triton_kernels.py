"""The recurrence on a GPU: gates, scan and output gate in one pass over memory, in Triton.

Launched by gpu.py. Rows are the events of all sequences laid end to end, (N, C) row-major. A program
of the recurrence marches along one sequence for one block of channels, a tile of ROWS events at a
time; inside a tile the scan is ``tl.associative_scan``, between tiles the state goes on in
registers. With thousands of sequences that fills a GPU; for few long ones gpu.py cuts them into
segments first. The arithmetic is float32, whatever the tensors are. No atomics: sums over programs are
written apart and added in a fixed order, so that two runs agree to the bit.

Rows of a tile past the end of the sequence read α = 1 and add nothing, so they hand the state on.
"""

import triton
import triton.language as tl


@triton.jit
def _then(a1, u1, a2, u2):
    """h → a1 h + u1, then h → a2 h + u2: the operator • of equation (11)."""
    return a1 * a2, a2 * u1 + u2


@triton.jit
def _then_before(a1, u1, b1, v1, a2, u2, b2, v2):
    """The same, and in (b, v) what has happened before the last of the events."""
    return a1 * a2, a2 * u1 + u2, a1 * b2, b2 * u1 + v2


@triton.jit
def _states_before(alpha, u, state, REVERSE: tl.constexpr):
    """The state each row of a tile (ROWS, CHANNELS) starts from, ``state`` being that of the tile."""
    one, zero = tl.full(alpha.shape, 1.0, tl.float32), tl.full(alpha.shape, 0.0, tl.float32)
    _, _, b, v = tl.associative_scan((alpha, u, one, zero), 0, _then_before, reverse=REVERSE)
    return b * state[None, :] + v


@triton.jit
def _row(tile, row, index):
    """One row of a tile, (CHANNELS,)."""
    return tl.sum(tl.where((row == index)[:, None], tile, 0.0), 0)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(tl.minimum(-x, 80.0)))


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0; exact near 0, where the difference would cancel."""
    near = tl.maximum(x, -0.35)
    p = 1.0 / 5040
    p = p * near + 1.0 / 720
    p = p * near + 1.0 / 120
    p = p * near + 1.0 / 24
    p = p * near + 1.0 / 6
    p = p * near + 0.5
    p = p * near * near + near
    return tl.where(x > -0.35, p, tl.exp(tl.maximum(x, -87.0)) - 1.0)


@triton.jit
def _tile(pointer, at, inside):
    return tl.load(pointer + at, inside, 0.0).to(tl.float32)


@triton.jit
def linear_scan(
    alpha, u, offsets, start, h, last, C, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """h_t = α_t h_{t-1} + u_t, equation (5)."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    channel = c < C
    state = tl.load(start + b * C + c, channel, 0.0)
    for first in range(begin, end, ROWS):
        inside = (first + row < end)[:, None] & channel[None, :]
        at = (first + row)[:, None] * C + c[None, :]
        a = tl.load(alpha + at, inside, 1.0).to(tl.float32)
        total, value = tl.associative_scan((a, _tile(u, at, inside)), 0, _then)
        states = total * state[None, :] + value
        tl.store(h + at, states.to(h.dtype.element_ty), inside)
        state = _row(states, row, ROWS - 1)
    tl.store(last + b * C + c, state, channel)


@triton.jit
def linear_scan_backward(
    alpha, offsets, start, h, dh, dlast, dalpha, du, dstart, C,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """du_t = dh_t + α_{t+1} du_{t+1} from the last event to the first, dα_t = du_t h_{t-1}."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    channel = c < C
    earliest = tl.load(start + b * C + c, channel, 0.0)
    carry = tl.load(dlast + b * C + c, channel, 0.0)  # α du of the event after the tile
    tiles = tl.cdiv(end - begin, ROWS)
    for back in range(0, tiles):
        t = begin + (tiles - 1 - back) * ROWS + row
        inside = (t < end)[:, None] & channel[None, :]
        at = t[:, None] * C + c[None, :]
        a = tl.load(alpha + at, inside, 1.0).to(tl.float32)
        gradient = _tile(dh, at, inside)
        gradient += _states_before(a, a * gradient, carry, True)
        before = tl.where(
            (t == begin)[:, None],
            earliest[None, :],
            _tile(h, at - C, inside & (t > begin)[:, None]),
        )
        tl.store(du + at, gradient.to(du.dtype.element_ty), inside)
        tl.store(dalpha + at, (gradient * before).to(dalpha.dtype.element_ty), inside)
        carry = _row(a * gradient, row, 0)
    tl.store(dstart + b * C + c, carry, channel)


@triton.jit
def _gates(r, i, rate, at, inside):
    """Of a tile: log α, α - 1, β, and both gates after their sigmoid; equations (6)-(8)."""
    recurrence, input = _sigmoid(_tile(r, at, inside)), _sigmoid(_tile(i, at, inside))
    log_alpha = tl.where(inside, -rate[None, :] * recurrence, 0.0)
    q = _expm1(log_alpha)
    return log_alpha, q, tl.sqrt(-q * (2.0 + q)), recurrence, input


@triton.jit
def bd_lru(
    x, r, i, z, decay, offsets, start, y, states, last, C,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Equations (5)-(8), then the output gate. ``states`` receives the state before each tile: those
    of sequence b begin at row offsets[b] // ROWS + b, where no two sequences meet."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    channel = c < C
    rate = tl.load(decay + c, channel, 0.0)
    state = tl.load(start + b * C + c, channel, 0.0)
    kept = states + (begin // ROWS + b) * C + c
    for first in range(begin, end, ROWS):
        inside = (first + row < end)[:, None] & channel[None, :]
        at = (first + row)[:, None] * C + c[None, :]
        tl.store(kept, state, channel)
        kept += C
        _, q, beta, _, input = _gates(r, i, rate, at, inside)
        u = beta * input * _tile(x, at, inside)
        total, value = tl.associative_scan((1.0 + q, u), 0, _then)
        h = total * state[None, :] + value
        gate = _tile(z, at, inside)
        tl.store(y + at, (h * gate * _sigmoid(gate)).to(y.dtype.element_ty), inside)
        state = _row(h, row, ROWS - 1)
    tl.store(last + b * C + c, state, channel)


@triton.jit
def bd_lru_backward(
    x, r, i, z, decay, offsets, states, dy, dlast, dx, dr, di, dz, slopes, dstart, C,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients of the above, from the last tile to the first; gates and states are computed anew.

    ``slopes`` (B, C) receives the sum over events of d log(α) log(α), which stays bounded where the
    derivative of √(1 - α²) does not; divided by ``decay`` it is the gradient of ``decay``.
    """
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    channel = c < C
    rate = tl.load(decay + c, channel, 0.0)
    carry = tl.load(dlast + b * C + c, channel, 0.0)  # α dh of the event after the tile
    total = tl.zeros([CHANNELS], tl.float32)
    tiles = tl.cdiv(end - begin, ROWS)
    for back in range(0, tiles):
        tile = tiles - 1 - back
        t = begin + tile * ROWS + row
        inside = (t < end)[:, None] & channel[None, :]
        at = t[:, None] * C + c[None, :]
        log_alpha, q, beta, recurrence, input = _gates(r, i, rate, at, inside)
        alpha = 1.0 + q
        value, gate, out = _tile(x, at, inside), _tile(z, at, inside), _tile(dy, at, inside)
        opened = _sigmoid(gate)
        state = tl.load(states + (begin // ROWS + b + tile) * C + c, channel, 0.0)
        before = _states_before(alpha, beta * input * value, state, False)
        h = alpha * before + beta * input * value
        dh = out * gate * opened
        dh += _states_before(alpha, alpha * dh, carry, True)
        carry = _row(alpha * dh, row, 0)
        square = -q * (2.0 + q)
        dbeta = dh * input * value
        # The floor only meets square = 0, where it is 0 / 1.
        steep = dbeta * alpha / tl.sqrt(tl.where(square > 1e-37, square, 1.0))
        slope = log_alpha * alpha * (dh * before - steep)
        total += tl.sum(slope, 0)
        through = dh * beta * input
        slant = opened * (1.0 + gate * (1.0 - opened))
        tl.store(dz + at, (out * h * slant).to(dz.dtype.element_ty), inside)
        tl.store(dx + at, through.to(dx.dtype.element_ty), inside)
        tl.store(di + at, (through * value * (1.0 - input)).to(di.dtype.element_ty), inside)
        tl.store(dr + at, (slope * (1.0 - recurrence)).to(dr.dtype.element_ty), inside)
    tl.store(slopes + b * C + c, total, channel)
    tl.store(dstart + b * C + c, carry, channel)


@triton.jit
def bd_lru_summary(
    first_input, second_input, r, i, decay, offsets, alphas, sums, C,
    REVERSE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A whole sequence as one event, (B, C): its product of α and the state it leaves from zero.

    The inputs are x twice, or in reverse, for the gradient, dy and z.
    """
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    channel = c < C
    rate = tl.load(decay + c, channel, 0.0)
    alpha = tl.full([CHANNELS], 1.0, tl.float32)
    state = tl.zeros([CHANNELS], tl.float32)
    for first in range(begin, end, ROWS):
        inside = (first + row < end)[:, None] & channel[None, :]
        at = (first + row)[:, None] * C + c[None, :]
        _, q, beta, _, input = _gates(r, i, rate, at, inside)
        value = _tile(first_input, at, inside)
        if REVERSE:
            gate = _tile(second_input, at, inside)
            value = (1.0 + q) * value * gate * _sigmoid(gate)
            product, sum = tl.associative_scan((1.0 + q, value), 0, _then, reverse=True)
            product, sum = _row(product, row, 0), _row(sum, row, 0)
            state += alpha * sum  # the tile comes before what is summed so far
        else:
            product, sum = tl.associative_scan((1.0 + q, beta * input * value), 0, _then)
            product, sum = _row(product, row, ROWS - 1), _row(sum, row, ROWS - 1)
            state = product * state + sum
        alpha *= product
    tl.store(alphas + b * C + c, alpha, channel)
    tl.store(sums + b * C + c, state, channel)


@triton.jit
def _lag(x, before, t, begin, owner, c, lag, inside, C, W: tl.constexpr):
    """x_{t-lag} of the same sequence for each row of a tile; before it begins, ``before``'s."""
    early = (t - lag < begin)[:, None]
    place = owner * (W - 1) + (W - 1) + t - lag - begin
    return _tile(x, (t - lag)[:, None] * C + c[None, :], inside & (early == 0)) + _tile(
        before, place[:, None] * C + c[None, :], inside & early
    )


@triton.jit
def conv_silu(
    x, weight, bias, offsets, owners, before, y, N, C,
    W: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y_t = SiLU(bias + Σ_k weight_k x_{t-W+1+k}), line 4 of Algorithm 1. ``weight`` is (C, W);
    ``owners`` (N,) says whose each row is. One program for each tile of rows, of any sequences."""
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


@triton.jit
def conv_silu_backward_sum(
    x, weight, bias, offsets, owners, before, dy, dsum, dweight, dbias, N, C,
    W: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of the sum before SiLU (N, C) and each tile's part in those of weight and bias."""
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
    opened = _sigmoid(sum)
    gradient = _tile(dy, at, inside) * opened * (1.0 + sum * (1.0 - opened))
    tl.store(dsum + at, gradient, inside)
    tl.store(dbias + tile * C + c, tl.sum(gradient, 0), channel)
    for lag in tl.static_range(W):
        part = tl.sum(gradient * _lag(x, before, t, begin, owner, c, lag, inside, C, W), 0)
        tl.store(dweight + (tile * C + c) * W + (W - 1 - lag), part, channel)


@triton.jit
def conv_silu_backward_inputs(
    weight, offsets, owners, dsum, dx, N, C,
    W: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx_t = Σ_lag weight_{W-1-lag} dsum_{t+lag}, as far as the sequence goes."""
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
    """The same for the W - 1 inputs that precede each sequence."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    for place in tl.static_range(W - 1):
        sum = tl.zeros([CHANNELS], tl.float32)
        for lag in tl.static_range(W - 1 - place, W):
            t = begin + place - (W - 1) + lag
            w = tl.load(weight + c * W + (W - 1 - lag), c < C, 0.0)
            sum += w * tl.load(dsum + t * C + c, (c < C) & (t < end), 0.0)
        at = (b * (W - 1) + place) * C + c
        tl.store(dbefore + at, sum.to(dbefore.dtype.element_ty), c < C)
