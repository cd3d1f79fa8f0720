"""The small operations between the matrix products of a Llama layer, forward and backward, on flat rows.

Each op launches one Triton kernel on a GPU and has the same formula in plain torch for a processor, which is what the tests run.
Tensors are (tokens T, width). A buffer "with room" is a matrix with spare columns at the right, where an adapter's low-rank product
will be written; see `group`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn import functional

_E4M3_MAX = 448.0
_BLOCK_OF_LOGITS = 4096


class Rows8(NamedTuple):
    """Rows rounded to float8 e4m3: `values` (T, width) times `scales` (T, 1) is the matrix."""

    values: torch.Tensor
    scales: torch.Tensor


@cache
def _kernels() -> Any:
    from core.train.fast import kernels  # Triton is only there with a GPU build of torch

    return kernels


def runs_kernels(x: torch.Tensor) -> bool:
    """Whether ops on `x` launch Triton kernels; Triton's interpreter can run them on a processor, which a test does."""
    return x.is_cuda


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))


def with_room(x: torch.Tensor, width: int, room: int) -> torch.Tensor:
    """An empty buffer (T, width + room) like `x`."""
    return torch.empty(x.shape[0], width + room, dtype=x.dtype, device=x.device)


def _empty_rows8(x: torch.Tensor, width: int) -> Rows8:
    return Rows8(torch.empty(x.shape[0], width, dtype=torch.float8_e4m3fn, device=x.device),
                 torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device))


def quantize_rows(x: torch.Tensor) -> Rows8:
    """Round each row to FP8 with its own scale, max |row| / 448. `x` may be a part of wider rows."""
    if not runs_kernels(x):
        exact = x.float()
        scales = exact.abs().amax(-1, keepdim=True).clamp_min(1e-12) / _E4M3_MAX
        return Rows8((exact / scales).to(torch.float8_e4m3fn), scales)
    rows8, block = _empty_rows8(x, x.shape[1]), _power_of_two(x.shape[1])
    _kernels().quantize_rows[(x.shape[0],)](x, *rows8, x.shape[1], x.stride(0), BLOCK=block, num_warps=_warps(block))
    return rows8


def add_rmsnorm(h: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, room: int, fp8: bool
                ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Rows8 | None]:
    """h + delta, and its RMS norm (Zhang and Sennrich 2019).

    Returns:
        The sum (T, H), the norm in a buffer with room, 1 / RMS (T,) for the way back, and the norm in FP8 when asked for.
    """
    width = h.shape[1]
    x = with_room(h, width, room)
    if not runs_kernels(h):
        total = h if delta is None else h + delta
        rstd = torch.rsqrt(total.float().pow(2).mean(-1) + eps)
        x[:, :width] = ((total.float() * rstd[:, None]).to(h.dtype) * weight).to(h.dtype)
        return total, x, rstd, quantize_rows(x[:, :width]) if fp8 else None
    total = h if delta is None else torch.empty_like(h)
    rstd = torch.empty(h.shape[0], dtype=torch.float32, device=h.device)
    rows8, block = _empty_rows8(h, width) if fp8 else None, _power_of_two(width)
    _kernels().add_rmsnorm[(h.shape[0],)](
        h, h if delta is None else delta, weight, total, x, rstd, *(rows8 or (x, x)), width, x.stride(0), eps,
        HAS_DELTA=delta is not None, FP8=fp8, BLOCK=block, num_warps=_warps(block))
    return total, x, rstd, rows8


def rmsnorm_backward(dx: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, residual_grad: torch.Tensor
                     ) -> torch.Tensor:
    """Gradient of the norm's input plus the gradient that passes it by; all (T, H)."""
    width = h.shape[1]
    if not runs_kernels(h):
        normed, weighted = h.float() * rstd[:, None], dx.float() * weight
        inner = weighted - normed * (weighted * normed).mean(-1, keepdim=True)
        return (residual_grad.float() + rstd[:, None] * inner).to(h.dtype)
    out, block = torch.empty_like(h), _power_of_two(width)
    _kernels().rmsnorm_backward[(h.shape[0],)](dx, h, weight, rstd, residual_grad.contiguous(), out, width, BLOCK=block,
                                               num_warps=_warps(block))
    return out


def _rotate_plain(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-b, a), -1) * sin[:, None]


def rotate_(qkv: torch.Tensor, heads: int, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotary positions (Su et al. 2021) in place on the first `heads` heads (queries, then keys) of each row; cos, sin (T, D)."""
    size = cos.shape[1]
    if not runs_kernels(qkv):
        part = qkv[:, : heads * size]
        part.copy_(_rotate_plain(part.unflatten(1, (heads, size)), cos, sin).flatten(1))
        return
    _kernels().rotate[(qkv.shape[0],)](qkv, cos, sin, qkv.stride(0), heads, HALF=size // 2, HEADS=_power_of_two(heads))


def join_grads(dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, room: int) -> torch.Tensor:
    """Gradients (T, heads, D) of rotated queries and keys and of values, rotated back, side by side in a buffer with room."""
    (tokens, query_heads, size), key_heads = dq.shape, dk.shape[1]
    q_width, k_width = query_heads * size, key_heads * size
    out = with_room(dq, q_width + 2 * k_width, room)
    out[:, q_width + k_width: q_width + 2 * k_width] = dv.flatten(1)
    for grad, first, heads in ((dq, 0, query_heads), (dk, q_width, key_heads)):
        part = out[:, first:]
        if runs_kernels(out):
            _kernels().rotate_back[(tokens,)](grad.contiguous(), cos, sin, part, out.stride(0), heads, HALF=size // 2,
                                              HEADS=_power_of_two(heads))
        else:
            half = sin.roll(size // 2, -1)  # the sine that met the other half on the way there
            part[:, : heads * size] = _rotate_plain(grad, cos, -half).flatten(1)
    return out


def swiglu(gate_up: torch.Tensor, room: int, fp8: bool) -> tuple[torch.Tensor, Rows8 | None]:
    """silu(gate) * up (Shazeer 2020) of (T, 2 I), in a buffer (T, I) with room, and in FP8 when asked for."""
    width = gate_up.shape[1] // 2
    out = with_room(gate_up, width, room)
    if not runs_kernels(gate_up):
        gate, up = gate_up.chunk(2, -1)
        out[:, :width] = functional.silu(gate) * up
        return out, quantize_rows(out[:, :width]) if fp8 else None
    rows8, block = _empty_rows8(out, width) if fp8 else None, _power_of_two(width)
    _kernels().swiglu[(out.shape[0],)](gate_up, out, *(rows8 or (out, out)), width, out.stride(0), FP8=fp8, BLOCK=block,
                                       num_warps=_warps(block))
    return out, rows8


def swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor, room: int, fp8: bool) -> tuple[torch.Tensor, Rows8 | None]:
    """Gradient of (gate, up) from that of their product (T, I), in a buffer (T, 2 I) with room, and in FP8 when asked for."""
    width = grad.shape[1]
    out = with_room(grad, 2 * width, room)
    if not runs_kernels(grad):
        gate, up = gate_up.chunk(2, -1)
        share = torch.sigmoid(gate)
        out[:, :width] = grad * up * share * (1 + gate * (1 - share))
        out[:, width: 2 * width] = grad * gate * share
        return out, quantize_rows(out[:, : 2 * width]) if fp8 else None
    rows8, block = _empty_rows8(out, 2 * width) if fp8 else None, _power_of_two(width)
    _kernels().swiglu_backward[(out.shape[0],)](grad, gate_up, out, *(rows8 or (out, out)), width, out.stride(0), FP8=fp8, BLOCK=block,
                                                num_warps=_warps(block))
    return out, rows8


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p of each row's target, float32 (T,), 0 where it is below 0; `logits` (T, V) are overwritten by their gradient."""
    if not runs_kernels(logits):
        counts = targets >= 0
        log_p = logits.float().log_softmax(-1)
        losses = -log_p.gather(1, targets.clamp_min(0)[:, None])[:, 0] * counts
        grad = log_p.exp()
        grad[torch.arange(len(targets)), targets.clamp_min(0)] -= 1
        logits.copy_(grad * counts[:, None])
        return losses
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _kernels().cross_entropy[(logits.shape[0],)](logits, targets, losses, logits.shape[1], BLOCK=_BLOCK_OF_LOGITS, num_warps=8)
    return losses


def widen_nf4(packed: torch.Tensor, state: Any, out: torch.Tensor) -> None:
    """Write the numbers of a doubly quantised 4-bit weight into `out` (rows, columns), which may be a part of wider rows.

    Args:
        packed: two values in each byte.
        state: bitsandbytes' QuantState.
    """
    block, elements = 4096, out.shape[0] * out.shape[1]
    _kernels().widen_nf4[(-(-elements // block),)](
        packed, state.absmax, state.code, state.state2.code, state.state2.absmax, state.offset, out, out.shape[1], out.stride(0), elements,
        BLOCK_SIZE=state.blocksize, OUTER_SIZE=state.state2.blocksize, BLOCK=block, num_warps=8)


def product_8(rows8: Rows8, weight8: Rows8, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """rows (T, K) times weight (N, K) transposed, both FP8 with one scale a row, summed in float32; gives (T, N)."""
    if not rows8.values.is_cuda:
        out = (rows8.values.float() * rows8.scales) @ (weight8.values.float() * weight8.scales).T
        return (out if bias is None else out + bias).to(dtype)
    return torch._scaled_mm(rows8.values, weight8.values.T, rows8.scales, weight8.scales.T, bias=bias, out_dtype=dtype,
                            use_fast_accum=True)


def product_exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in float32 from bfloat16 factors, which tensor cores sum in float32 anyway."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda and a.dtype != torch.float32 else torch.mm(a, b).float()
