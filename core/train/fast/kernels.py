"""Triton kernels of the fast path, one program for each token. Imported on a machine with an NVIDIA GPU only; see `ops`.

All of them are bound by memory traffic, so what stands next to each other is done in one pass: the residual sum with the norm, an
activation with its rounding to FP8. Arithmetic is float32; tensors keep their own type.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Largest value of float8 e4m3; a row is scaled so that its largest entry becomes this.
_E4M3_MAX = tl.constexpr(448.0)


@triton.jit
def store_fp8(values, quantized, scales, row, columns, keep, cols):
    """Round one row to FP8 (values float32, in registers) and store it with its scale."""
    scale = tl.maximum(tl.max(tl.abs(values), axis=0), 1e-12) / _E4M3_MAX
    tl.store(quantized + row * columns + cols, (values / scale).to(tl.float8e4nv), mask=keep)
    tl.store(scales + row, scale)


@triton.jit
def quantize_rows(x, quantized, scales, columns, x_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    keep = cols < columns
    values = tl.load(x + row * x_stride + cols, mask=keep, other=0.0).to(tl.float32)
    store_fp8(values, quantized, scales, row, columns, keep, cols)


@triton.jit
def add_rmsnorm(h, delta, weight, h_out, x, rstd_out, quantized, scales, columns, x_stride, eps,
                HAS_DELTA: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    keep = cols < columns
    value = tl.load(h + row * columns + cols, mask=keep, other=0.0)
    if HAS_DELTA:
        added = tl.load(delta + row * columns + cols, mask=keep, other=0.0)
        value = (value.to(tl.float32) + added.to(tl.float32)).to(value.dtype)
        tl.store(h_out + row * columns + cols, value, mask=keep)
    exact = value.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(exact * exact, axis=0) / columns + eps)
    tl.store(rstd_out + row, rstd)
    factor = tl.load(weight + cols, mask=keep, other=0.0).to(tl.float32)
    # transformers rounds before the weight is applied; so do we.
    normed = ((exact * rstd).to(value.dtype).to(tl.float32) * factor).to(value.dtype)
    tl.store(x + row * x_stride + cols, normed, mask=keep)
    if FP8:
        store_fp8(normed.to(tl.float32), quantized, scales, row, columns, keep, cols)


@triton.jit
def rmsnorm_backward(dx, h, weight, rstd_in, residual_grad, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    keep = cols < columns
    at = row * columns + cols
    rstd = tl.load(rstd_in + row)
    normed = tl.load(h + at, mask=keep, other=0.0).to(tl.float32) * rstd
    factor = tl.load(weight + cols, mask=keep, other=0.0).to(tl.float32)
    weighted = tl.load(dx + at, mask=keep, other=0.0).to(tl.float32) * factor
    mean = tl.sum(weighted * normed, axis=0) / columns
    passed = tl.load(residual_grad + at, mask=keep, other=0.0).to(tl.float32)
    tl.store(out + at, (passed + rstd * (weighted - normed * mean)).to(out.dtype.element_ty), mask=keep)


@triton.jit
def rotate(qkv, cos, sin, stride, heads, HALF: tl.constexpr, HEADS: tl.constexpr):
    """Rotary positions, in place, on the first `heads` heads of each row."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    dim = tl.arange(0, HALF)[None, :]
    keep = (head < heads) & (dim >= 0)
    first = qkv + row * stride + head * (2 * HALF) + dim
    a = tl.load(first, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(first + HALF, mask=keep, other=0.0).to(tl.float32)
    angle = row * (2 * HALF) + dim
    cos_a, cos_b = tl.load(cos + angle).to(tl.float32), tl.load(cos + angle + HALF).to(tl.float32)
    sin_a, sin_b = tl.load(sin + angle).to(tl.float32), tl.load(sin + angle + HALF).to(tl.float32)
    tl.store(first, (a * cos_a - b * sin_a).to(qkv.dtype.element_ty), mask=keep)
    tl.store(first + HALF, (b * cos_b + a * sin_b).to(qkv.dtype.element_ty), mask=keep)


@triton.jit
def rotate_back(grad, cos, sin, out, out_stride, heads, HALF: tl.constexpr, HEADS: tl.constexpr):
    """The gradient of `rotate`: reads (T, heads, 2 HALF), writes into rows of `out`."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    dim = tl.arange(0, HALF)[None, :]
    keep = (head < heads) & (dim >= 0)
    place = head * (2 * HALF) + dim
    source = grad + row * heads * (2 * HALF) + place
    a = tl.load(source, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(source + HALF, mask=keep, other=0.0).to(tl.float32)
    angle = row * (2 * HALF) + dim
    cos_a, cos_b = tl.load(cos + angle).to(tl.float32), tl.load(cos + angle + HALF).to(tl.float32)
    sin_a, sin_b = tl.load(sin + angle).to(tl.float32), tl.load(sin + angle + HALF).to(tl.float32)
    target = out + row * out_stride + place
    tl.store(target, (a * cos_a + b * sin_b).to(out.dtype.element_ty), mask=keep)
    tl.store(target + HALF, (b * cos_b - a * sin_a).to(out.dtype.element_ty), mask=keep)


@triton.jit
def swiglu(gate_up, out, quantized, scales, columns, out_stride, FP8: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    keep = cols < columns
    gate = tl.load(gate_up + row * 2 * columns + cols, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * columns + columns + cols, mask=keep, other=0.0).to(tl.float32)
    product = (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty)
    tl.store(out + row * out_stride + cols, product, mask=keep)
    if FP8:
        store_fp8(product.to(tl.float32), quantized, scales, row, columns, keep, cols)


@triton.jit
def swiglu_backward(grad, gate_up, out, quantized, scales, columns, out_stride, FP8: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    keep = cols < columns
    gate = tl.load(gate_up + row * 2 * columns + cols, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * columns + columns + cols, mask=keep, other=0.0).to(tl.float32)
    dout = tl.load(grad + row * columns + cols, mask=keep, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    dgate = (dout * up * share * (1.0 + gate * (1.0 - share))).to(out.dtype.element_ty)
    dup = (dout * gate * share).to(out.dtype.element_ty)
    tl.store(out + row * out_stride + cols, dgate, mask=keep)
    tl.store(out + row * out_stride + columns + cols, dup, mask=keep)
    if FP8:
        exact_gate, exact_up = dgate.to(tl.float32), dup.to(tl.float32)
        largest = tl.maximum(tl.max(tl.abs(exact_gate), axis=0), tl.max(tl.abs(exact_up), axis=0))
        scale = tl.maximum(largest, 1e-12) / _E4M3_MAX
        tl.store(quantized + row * 2 * columns + cols, (exact_gate / scale).to(tl.float8e4nv), mask=keep)
        tl.store(quantized + row * 2 * columns + columns + cols, (exact_up / scale).to(tl.float8e4nv), mask=keep)
        tl.store(scales + row, scale)


@triton.jit
def cross_entropy(logits, targets, losses, columns: tl.constexpr, BLOCK: tl.constexpr):
    """-log softmax at the target; the logits are overwritten by the loss's gradient, softmax - one-hot. Below 0 there is no target."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * columns
    target = tl.load(targets + row)
    counts = tl.where(target >= 0, 1.0, 0.0)
    top = float("-inf")
    total = 0.0
    chosen = 0.0
    for start in range(0, columns, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        value = tl.load(logits + cols, mask=cols < columns, other=float("-inf")).to(tl.float32)
        chosen += tl.sum(tl.where(cols == target, value, 0.0), axis=0)
        higher = tl.maximum(top, tl.max(value, axis=0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(value - higher), axis=0)
        top = higher
    log_sum = top + tl.log(total)
    tl.store(losses + row, (log_sum - chosen) * counts)
    for start in range(0, columns, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        value = tl.load(logits + cols, mask=cols < columns, other=float("-inf")).to(tl.float32)
        grad = (tl.exp(value - log_sum) - tl.where(cols == target, 1.0, 0.0)) * counts
        tl.store(logits + cols, grad.to(logits.dtype.element_ty), mask=cols < columns)


@triton.jit
def widen_nf4(packed, absmax, code, outer_code, outer_absmax, offset, out, columns, out_stride, elements,
              BLOCK_SIZE: tl.constexpr, OUTER_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """4-bit NormalFloat, doubly quantised (Dettmers et al. 2023), as bitsandbytes packs it: the first of two values in the high bits."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    keep = at < elements
    pair = tl.load(packed + at // 2, mask=keep, other=0).to(tl.int32)
    value = tl.load(code + tl.where(at % 2 == 0, pair >> 4, pair & 15))
    block = at // BLOCK_SIZE
    level = tl.load(absmax + block, mask=keep, other=0).to(tl.int32)
    scale = tl.load(outer_code + level) * tl.load(outer_absmax + block // OUTER_SIZE, mask=keep, other=0.0) + tl.load(offset)
    row = at // columns
    tl.store(out + row * out_stride + (at - row * columns), (value * scale).to(out.dtype.element_ty), mask=keep)
