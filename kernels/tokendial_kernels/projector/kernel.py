"""Triton kernel for silu(x @ gate^T + b) * (x @ up^T + b): both products share the rows, SwiGLU is their epilogue.

The hidden rows are written once and, outside of training, gate and up are never written. Dots are ieee in float32 and
accumulate in float32 in every dtype. Worked example: row (1, 2), gate weight (1, 0), up weight (0, 1), no biases:
gate 1, up 2, hidden 1.4621.
Shapes: M rows, C channels, H hidden width.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokendial_kernels.launch import VARYING, launch_options, on_device_of, with_dense_channels


@triton.jit(do_not_specialize=VARYING)
def gated_linear_kernel(
    hidden_ptr,
    gate_out_ptr,
    up_out_ptr,
    rows_ptr,
    gate_weight_ptr,
    gate_bias_ptr,
    up_weight_ptr,
    up_bias_ptr,
    stride_row,
    stride_gate,
    stride_up,
    num_rows,
    num_hidden,
    num_channels,
    HAS_GATE_BIAS: tl.constexpr,
    HAS_UP_BIAS: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One BLOCK_M x BLOCK_H tile of hidden rows per program; programs walk GROUP_M tiles of rows before the next H."""
    tiles_m = tl.cdiv(num_rows, BLOCK_M)
    tiles_h = tl.cdiv(num_hidden, BLOCK_H)
    group = tl.program_id(0) // (GROUP_M * tiles_h)
    rest = tl.program_id(0) % (GROUP_M * tiles_h)
    group_size = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    first_row = (group * GROUP_M + rest % group_size) * BLOCK_M
    first_hidden = (rest // group_size) * BLOCK_H
    row = tl.arange(0, BLOCK_M)
    hidden = tl.arange(0, BLOCK_H)
    channel = tl.arange(0, BLOCK_C)
    # 64-bit bases are scalars and offsets within a tile are 32-bit: pointers of whole tiles would spill registers.
    rows_ptr += first_row.to(tl.int64) * stride_row
    gate_weight_ptr += first_hidden.to(tl.int64) * stride_gate
    up_weight_ptr += first_hidden.to(tl.int64) * stride_up
    row_valid = first_row + row < num_rows
    hidden_valid = first_hidden + hidden < num_hidden
    rows_offset = row[:, None] * stride_row + channel[None, :]
    gate_offset = hidden[None, :] * stride_gate + channel[:, None]
    up_offset = hidden[None, :] * stride_up + channel[:, None]
    gate = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    for first in range(0, num_channels, BLOCK_C):
        valid = first + channel < num_channels
        rows = tl.load(rows_ptr + first + rows_offset, mask=row_valid[:, None] & valid[None, :], other=0.0)
        weights_mask = valid[:, None] & hidden_valid[None, :]
        gate_tile = tl.load(gate_weight_ptr + first + gate_offset, mask=weights_mask, other=0.0)
        gate = tl.dot(rows, gate_tile, gate, input_precision="ieee")
        up_tile = tl.load(up_weight_ptr + first + up_offset, mask=weights_mask, other=0.0)
        up = tl.dot(rows, up_tile, up, input_precision="ieee")
    if HAS_GATE_BIAS:
        gate += tl.load(gate_bias_ptr + first_hidden + hidden, mask=hidden_valid, other=0.0).to(tl.float32)[None, :]
    if HAS_UP_BIAS:
        up += tl.load(up_bias_ptr + first_hidden + hidden, mask=hidden_valid, other=0.0).to(tl.float32)[None, :]
    base = first_row.to(tl.int64) * num_hidden + first_hidden
    offset = row[:, None] * num_hidden + hidden[None, :]
    mask = row_valid[:, None] & hidden_valid[None, :]
    dtype = hidden_ptr.dtype.element_ty
    if KEEP:
        tl.store(gate_out_ptr + base + offset, gate.to(dtype), mask=mask)
        tl.store(up_out_ptr + base + offset, up.to(dtype), mask=mask)
    tl.store(hidden_ptr + base + offset, (gate * tl.sigmoid(gate) * up).to(dtype), mask=mask)


class Tiling(NamedTuple):
    """Tile sizes, warps and pipeline stages of one launch."""

    block_m: int
    block_h: int
    block_c: int
    num_warps: int
    num_stages: int


def tiling_for(num_rows: int, itemsize: int) -> Tiling:
    """Narrow hidden tiles for few rows, so that weights stream through every multiprocessor; taller ones for many."""
    if itemsize == 4:
        return Tiling(32, 32, 32, 4, 2)
    if num_rows <= 64:
        return Tiling(16 if num_rows <= 16 else 64, 32, 128, 4, 4)
    if num_rows <= 512:
        return Tiling(64, 64, 64, 4, 4)
    return Tiling(128, 64, 64, 8, 3)


def launch_gated_linear(
    rows_MC: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hidden rows [M, H], and the gate and up rows [M, H] (or [0, H] without `keep`)."""
    rows_MC, gate_weight, up_weight = map(with_dense_channels, (rows_MC, gate_weight, up_weight))
    (num_rows, channels), num_hidden = rows_MC.shape, gate_weight.shape[0]
    hidden_MH = rows_MC.new_empty(num_rows, num_hidden)
    gate_MH = rows_MC.new_empty(num_rows if keep else 0, num_hidden)
    up_MH = torch.empty_like(gate_MH)
    tiling = tiling_for(num_rows, rows_MC.element_size())
    num_tiles = triton.cdiv(num_rows, tiling.block_m) * triton.cdiv(num_hidden, tiling.block_h)
    with on_device_of(rows_MC):
        gated_linear_kernel[(num_tiles,)](
            hidden_MH,
            gate_MH,
            up_MH,
            rows_MC,
            gate_weight,
            gate_weight if gate_bias is None else gate_bias.contiguous(),
            up_weight,
            up_weight if up_bias is None else up_bias.contiguous(),
            rows_MC.stride(0),
            gate_weight.stride(0),
            up_weight.stride(0),
            num_rows,
            num_hidden,
            channels,
            **launch_options(
                tiling.num_warps,
                tiling.num_stages,
                HAS_GATE_BIAS=gate_bias is not None,
                HAS_UP_BIAS=up_bias is not None,
                KEEP=keep,
                BLOCK_M=tiling.block_m,
                BLOCK_H=tiling.block_h,
                BLOCK_C=tiling.block_c,
                GROUP_M=8,
            ),
        )
    return hidden_MH, gate_MH, up_MH
