"""Functions that the Triton kernels share: arithmetic, rows of a tensor, the segment of a program.

``FAST`` selects approximations of the hardware, for bfloat16 tensors: PTX documents a relative error
of 2^-11 for its tanh, below the 2^-9 of rounding to bfloat16. Special functions (2^x, tanh, roots) run
at an eighth of the rate of a multiplication, so the kernels use as few as they can.

A lane processes VECTOR neighbouring channels of a row and loads them as one integer. An integer stays
whole while the loop carries it; Triton would split the halves of a bfloat16 pair, and so wait for the
load too early.
"""

import os

import triton
import triton.language as tl

if os.environ.get("TRITON_INTERPRET") == "1":  # the interpreter does not run PTX

    @triton.jit
    def exp2(x):
        return tl.exp2(x)

    @triton.jit
    def tanh(x):
        return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))

    @triton.jit
    def sqrt(x):
        return tl.sqrt(tl.abs(x))

else:

    @triton.jit
    def exp2(x):
        """2^x in one instruction; ``tl.exp2`` takes three more for results below 2^-126."""
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def tanh(x):
        """tanh(x) in one instruction, with a relative error of up to 2^-11."""
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def sqrt(x):
        """√|x| in one instruction, with a relative error of up to 2^-22."""
        return tl.inline_asm_elementwise(
            "abs.f32 $0, $1; sqrt.approx.ftz.f32 $0, $0;", "=f,f", [x], dtype=tl.float32,
            is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1 / (1 + exp(-x)), by tanh or by a reciprocal square root, which is faster than dividing."""
    if FAST:
        return 0.5 * tanh(0.5 * x) + 0.5
    else:
        root = tl.rsqrt(1.0 + exp2(-1.4426950408889634 * x))
        return root * root


@triton.jit
def silu(x, FAST: tl.constexpr):
    if FAST:
        half = 0.5 * x
        return half * tanh(half) + half
    else:
        return x * sigmoid(x, FAST)


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0; the Taylor series near 0, where the difference would cancel."""
    p = 1.0 / 720 * x + 1.0 / 120
    p = p * x + 1.0 / 24
    p = p * x + 1.0 / 6
    p = p * x + 0.5
    p = p * x * x + x
    return tl.where(x > -0.25, p, exp2(1.4426950408889634 * x) - 1.0)


@triton.jit
def packed(pointer, VECTOR: tl.constexpr):
    """A pointer to integers that each hold VECTOR elements."""
    bits: tl.constexpr = pointer.dtype.element_ty.primitive_bitwidth * VECTOR
    if bits == 16:
        return pointer.to(tl.pointer_type(tl.int16))
    elif bits == 32:
        return pointer.to(tl.pointer_type(tl.int32))
    else:
        return pointer.to(tl.pointer_type(tl.int64))


@triton.jit
def unpack(integers, FAST: tl.constexpr, VECTOR: tl.constexpr):
    """(LANES,) integers → (LANES, VECTOR) float32."""
    if FAST:
        bits = integers.to(tl.int32)
        low, high = bits << 16, bits & -65536
    else:
        bits = integers.to(tl.int64)
        low, high = bits.to(tl.int32), (bits >> 32).to(tl.int32)
    if VECTOR == 2:
        return tl.join(low, high).to(tl.float32, bitcast=True)
    else:
        return low.to(tl.float32, bitcast=True)[:, None]


@triton.jit
def minus_infinity(pointer, VECTOR: tl.constexpr):
    """The integer that holds VECTOR times -inf."""
    if pointer.dtype.element_ty == tl.bfloat16:
        return -8323200 if VECTOR == 2 else -128
    else:
        return -36028792732385280 if VECTOR == 2 else -8388608


@triton.jit
def load_rows(pointer, STRIDE: tl.constexpr, ROWS: tl.constexpr):
    """A tuple of ROWS rows, from a pointer to the first."""
    values = ()
    for k in tl.static_range(ROWS):
        values += (tl.load(pointer + k * STRIDE),)
    return values


@triton.jit
def load_some_rows(pointer, inside, left, STRIDE: tl.constexpr, ROWS: tl.constexpr, other=0):
    """The same, with ``other`` for rows from ``left`` on and lanes that are not ``inside``."""
    values = ()
    for k in tl.static_range(ROWS):
        values += (tl.load(pointer + k * STRIDE, inside & (k < left), other),)
    return values


@triton.jit
def channels(C: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr):
    """The integers (LANES,) and channels (LANES, VECTOR) of this program, and which of each exist."""
    lane = tl.program_id(1) * (CHANNELS // VECTOR) + tl.arange(0, CHANNELS // VECTOR)
    c = lane[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    return lane, c, lane < C // VECTOR, c < C


@triton.jit
def segment(offsets, B, SHIFT):
    """The rows of this program: a piece of at most 2^SHIFT rows of a sequence.

    A sequence is cut into the fewest pieces, of equal length up to a multiple of 8. Piece k of sequence
    b is segment number offsets[b] // 2^SHIFT + b + k, which is unique; a number without a piece has no
    rows.

    Returns:
        The number of the segment, b, k, the pieces of b, the first row, and the number of rows.
    """
    number = tl.program_id(0)
    low, high = 0 * B, B  # b is in low .. high-1
    while high - low > 1:
        middle = (low + high) // 2
        if (tl.load(offsets + middle).to(tl.int32) >> SHIFT) + middle <= number:
            low = middle
        else:
            high = middle
    begin = tl.load(offsets + low)
    length = (tl.load(offsets + low + 1) - begin).to(tl.int32)
    piece = number - low - (begin.to(tl.int32) >> SHIFT)
    pieces = tl.maximum((length + (1 << SHIFT) - 1) >> SHIFT, 1)
    rows = tl.cdiv(tl.cdiv(length, pieces), 8) * 8
    first = tl.minimum(piece * rows, length)
    length = tl.minimum(rows, length - first)
    return number, low.to(tl.int64), piece, pieces, begin + first, length
