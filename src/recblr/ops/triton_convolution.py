"""The convolution on a GPU, in Triton: a program moves along a segment, as in triton_kernels.py.

The last inputs and gradients stay in registers, so each row is read once.
"""

import triton
import triton.language as tl

from recblr.ops.triton_functions import (
    channels,
    load_some_rows,
    packed,
    segment,
    sigmoid,
    silu,
    unpack,
)  # fmt: skip


@triton.jit
def _inputs_before(
    x, before, b, piece, begin, lane, whole, S: tl.constexpr, W: tl.constexpr, FAST: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """The W - 1 inputs before a segment, oldest first, from pointers to the integers of x and before.

    A sequence may have fewer than W - 1 events, but only the last piece of several is short.
    """
    values = ()
    for k in tl.static_range(W - 1):
        own = tl.load(x + (begin - (W - 1) + k) * S + lane, whole & (piece > 0), 0)
        given = tl.load(before + (b * (W - 1) + k) * S + lane, whole & (piece == 0), 0)
        values += (unpack(tl.where(piece > 0, own, given), FAST, VECTOR),)
    return values


@triton.jit
def _weights(weight, c, channel, W: tl.constexpr):
    values = ()
    for k in tl.static_range(W):
        values += (tl.load(weight + c * W + k, channel, 0.0),)
    return values


@triton.jit
def _sum(weights, bias, inputs, FIRST: tl.constexpr, W: tl.constexpr):
    """bias + Σ_k weight_k inputs_{FIRST+k}"""
    sum = bias
    for k in tl.static_range(W):
        sum += weights[k] * inputs[FIRST + k]
    return sum


@triton.jit(do_not_specialize=["B", "SHIFT"])
def conv_silu(
    x, weight, bias, offsets, before, y, B, SHIFT, C: tl.constexpr, CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """y_t = SiLU(bias + Σ_k weight_k x_{t-W+1+k}), line 4 of Algorithm 1; ``weight`` is (C, W)."""
    FAST: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    S: tl.constexpr = C // VECTOR
    _, b, piece, _, begin, length = segment(offsets, B, SHIFT)
    lane, c, whole, channel = channels(C, CHANNELS, VECTOR)
    weights, shift = _weights(weight, c, channel, W), tl.load(bias + c, channel, 0.0)
    x, before = packed(x, VECTOR), packed(before, VECTOR)
    inputs = _inputs_before(x, before, b, piece, begin, lane, whole, S, W, FAST, VECTOR)
    x += begin * S + lane
    y += begin * C + c
    xs = load_some_rows(x, whole, length, S, ROWS)
    for left in range(length, 0, -ROWS):
        x += ROWS * S
        next_xs = load_some_rows(x, whole, left - ROWS, S, ROWS)
        for k in tl.static_range(ROWS):
            inputs += (unpack(xs[k], FAST, VECTOR),)
            out = silu(_sum(weights, shift, inputs, k, W), FAST)
            tl.store(y + k * C, out.to(y.dtype.element_ty), channel & (k < left))
        inputs, xs = inputs[ROWS:], next_xs
        y += ROWS * C


@triton.jit(do_not_specialize=["B", "SHIFT"])
def conv_silu_backward(
    x, weight, bias, offsets, before, dy, dx, dweight, dbias, dbefore, B, SHIFT,
    C: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of :func:`conv_silu`; ``dweight`` and ``dbias`` receive each segment's part.

    Row t completes the gradient of x_{t-W+1}, so a program continues W - 1 rows past its segment. The
    first W - 1 gradients of a sequence are those of ``before``.
    """
    FAST: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    S: tl.constexpr = C // VECTOR
    number, b, piece, pieces, begin, length = segment(offsets, B, SHIFT)
    lane, c, whole, channel = channels(C, CHANNELS, VECTOR)
    weights, shift = _weights(weight, c, channel, W), tl.load(bias + c, channel, 0.0)
    x, before, dy = packed(x, VECTOR), packed(before, VECTOR), packed(dy, VECTOR)
    inputs = _inputs_before(x, before, b, piece, begin, lane, whole, S, W, FAST, VECTOR)
    # Rows that exist from the first of the segment, and those that it must pass.
    there = tl.where(piece < pieces, (tl.load(offsets + b + 1) - begin).to(tl.int32), 0)
    passed = tl.where(piece < pieces, length + (W - 1), 0)
    at = begin * S + lane
    x, dy = x + at, dy + at
    dx += (begin - (W - 1)) * C + c
    dbefore += b * (W - 1) * C + c
    zeros = tl.zeros([CHANNELS // VECTOR, VECTOR], tl.float32)
    gradients, sums, total = (), (), zeros
    for _ in tl.static_range(W - 1):
        gradients += (zeros,)
    for _ in tl.static_range(W):
        sums += (zeros,)
    xs = load_some_rows(x, whole, there, S, ROWS)
    dys = load_some_rows(dy, whole, there, S, ROWS)
    for row in range(0, passed, ROWS):
        x += ROWS * S
        dy += ROWS * S
        next_xs = load_some_rows(x, whole, there - row - ROWS, S, ROWS)
        next_dys = load_some_rows(dy, whole, there - row - ROWS, S, ROWS)
        for k in tl.static_range(ROWS):
            inputs += (unpack(xs[k], FAST, VECTOR),)
            sum = _sum(weights, shift, inputs, k, W)
            sigma = sigmoid(sum, FAST)
            gradient = unpack(dys[k], FAST, VECTOR) * sigma * (1.0 + sum * (1.0 - sigma))
            gradients += (gradient,)
            own = tl.where(row + k < length, gradient, 0.0)
            total += own
            more, dinput = (), zeros
            for j in tl.static_range(W):
                more += (sums[j] + own * inputs[k + j],)
                dinput += weights[W - 1 - j] * gradients[k + j]
            sums = more
            t = row + k - (W - 1)  # of dinput, from the first row of the segment
            dinput = dinput.to(dx.dtype.element_ty)
            tl.store(dx + k * C, dinput, channel & (t >= 0) & (t < length))
            tl.store(dbefore + (row + k) * C, dinput, channel & (t < 0) & (piece == 0))
        inputs, gradients = inputs[ROWS:], gradients[ROWS:]
        xs, dys = next_xs, next_dys
        dx += ROWS * C
    at = number.to(tl.int64) * C + c
    tl.store(dbias + at, total, channel)
    for k in tl.static_range(W):
        tl.store(dweight + at * W + k, sums[k], channel)
