"""Dropout, residual and layer norm on a GPU in one pass, in Triton.

A program processes tiles of ROWS rows of D values. Backward draws the mask of dropout again and
recomputes the normalized rows from their mean and deviation.
"""

import triton
import triton.language as tl


@triton.jit
def _kept(t, c, seed, D: tl.constexpr, THRESHOLD: tl.constexpr):
    """Whether dropout keeps each value: a hash of (seed, position), as in kernels.c, is below it."""
    hash = (t[:, None] * D + c[None, :]).to(tl.uint32) ^ tl.load(seed).to(tl.uint32)
    hash ^= hash >> 16
    hash *= 0x7FEB352D
    hash ^= hash >> 15
    hash *= 0x846CA68B
    hash ^= hash >> 16
    return hash < THRESHOLD


@triton.jit
def _sum(
    x, residual, at, inside, kept, SCALE: tl.constexpr, DROPOUT: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    sum = tl.load(x + at, inside, 0.0).to(tl.float32)
    if DROPOUT:
        sum = tl.where(kept, sum * SCALE, 0.0)
    if RESIDUAL:
        sum += tl.load(residual + at, inside, 0.0).to(tl.float32)
    return sum


@triton.jit(do_not_specialize=["N"])
def dropout_add_norm(
    x, residual, weight, bias, seed, y, means, inverses, N, eps,
    D: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr, DROPOUT: tl.constexpr,
    RESIDUAL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """y = norm(dropout(x) + residual); ``means`` and ``inverses`` (N,) of the standard deviation."""
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    inside = (t < N)[:, None] & (c < D)[None, :]
    at = t[:, None] * D + c[None, :]
    kept = _kept(t, c, seed, D, THRESHOLD) if DROPOUT else inside
    sum = _sum(x, residual, at, inside, kept, SCALE, DROPOUT, RESIDUAL)
    mean = tl.sum(sum, 1) / D
    centred = tl.where(inside, sum - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 1) / D + eps)
    scale, shift = tl.load(weight + c, c < D, 0.0), tl.load(bias + c, c < D, 0.0)
    out = centred * inverse[:, None] * scale[None, :] + shift[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), inside)
    tl.store(means + t, mean, t < N)
    tl.store(inverses + t, inverse, t < N)


@triton.jit(do_not_specialize=["N"])
def dropout_add_norm_backward(
    x, residual, weight, seed, means, inverses, dy, dx, dresidual, dweight, dbias, N,
    D: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr, DROPOUT: tl.constexpr,
    RESIDUAL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradients; ``dweight`` and ``dbias`` receive each program's part."""
    c = tl.arange(0, WIDTH)
    scale = tl.load(weight + c, c < D, 0.0)
    dscale, dshift = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0)):
        t = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (t < N)[:, None] & (c < D)[None, :]
        at = t[:, None] * D + c[None, :]
        kept = _kept(t, c, seed, D, THRESHOLD) if DROPOUT else inside
        sum = _sum(x, residual, at, inside, kept, SCALE, DROPOUT, RESIDUAL)
        mean, inverse = tl.load(means + t, t < N, 0.0), tl.load(inverses + t, t < N, 0.0)
        normal = tl.where(inside, (sum - mean[:, None]) * inverse[:, None], 0.0)
        out = tl.load(dy + at, inside, 0.0).to(tl.float32)
        dscale += tl.sum(out * normal, 0)
        dshift += tl.sum(out, 0)
        dnormal = out * scale[None, :]
        shared = tl.sum(dnormal, 1) / D
        along = tl.sum(dnormal * normal, 1) / D
        dsum = (dnormal - shared[:, None] - normal * along[:, None]) * inverse[:, None]
        if RESIDUAL:
            tl.store(dresidual + at, dsum.to(dresidual.dtype.element_ty), inside)
        if DROPOUT:
            dsum = tl.where(kept, dsum * SCALE, 0.0)
        tl.store(dx + at, dsum.to(dx.dtype.element_ty), inside)
    at = tl.program_id(0) * D + c
    tl.store(dweight + at, dscale, c < D)
    tl.store(dbias + at, dshift, c < D)
