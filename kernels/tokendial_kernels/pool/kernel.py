"""Triton kernels that pool a patch grid to the tokens of one or several counts, and spread gradients back.

Both directions are one gather: a program reads the window of source rows that its own row is made of, each a contiguous
run of channels, weighs and sums them in float32, and writes once. No transposes, no atomics. Windows come from small
tables (see windows.py). Worked example, three rows to two: 1, 2, 6 give 1.5, 4; gradients 1, 1 give back 0.5, 1, 0.5.
Shapes: B batch, N = height * width patches, C channels, R = B * (sum of n * n) rows, count by count.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokendial_kernels.launch import (
    VARYING,
    launch_options,
    next_power_of_2,
    on_device_of,
    warps_for,
    with_dense_channels,
)
from tokendial_kernels.pool.windows import Table, axis_bands, stacked_table, transposed_bands


@triton.jit
def window_sum(
    source_ptr,
    start_h_ptr,
    weight_h_ptr,
    start_w_ptr,
    weight_w_ptr,
    band_h,
    band_w,
    source_width,
    stride_token,
    channel,
    num_channels,
    WIDTH_H: tl.constexpr,
    WIDTH_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Weighted float32 sum of the source tokens in the window band_h x band_w, for a block of channels."""
    first_h = tl.load(start_h_ptr + band_h)
    first_w = tl.load(start_w_ptr + band_w)
    total = tl.zeros([BLOCK_C], tl.float32)
    for first_point in range(0, WIDTH_H * WIDTH_W, BLOCK_P):
        point = first_point + tl.arange(0, BLOCK_P)
        inside = point < WIDTH_H * WIDTH_W
        h = point // WIDTH_W
        w = point % WIDTH_W
        weight_h = tl.load(weight_h_ptr + band_h * WIDTH_H + h, mask=inside, other=0.0)
        weight = weight_h * tl.load(weight_w_ptr + band_w * WIDTH_W + w, mask=inside, other=0.0)
        token = ((first_h + h) * source_width + first_w + w).to(tl.int64)
        mask = (weight > 0)[:, None] & (channel < num_channels)[None, :]
        values = tl.load(source_ptr + (token * stride_token)[:, None] + channel[None, :], mask=mask, other=0.0)
        total += tl.sum(values.to(tl.float32) * weight[:, None], axis=0)
    return total


@triton.jit(do_not_specialize=VARYING)
def pool_kernel(
    output_ptr,
    features_ptr,
    start_h_ptr,
    weight_h_ptr,
    start_w_ptr,
    weight_w_ptr,
    tokens_ptr,
    stride_batch,
    stride_token,
    batch_size,
    num_tokens,
    source_width,
    num_channels,
    WIDTH_H: tl.constexpr,
    WIDTH_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One pooled row and block of channels per program."""
    item = (tl.program_id(0) // num_tokens).to(tl.int64)
    token = tl.program_id(0) % num_tokens
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    band_h = tl.load(tokens_ptr + token * 4)
    band_w = tl.load(tokens_ptr + token * 4 + 1)
    count = tl.load(tokens_ptr + token * 4 + 2)
    first = tl.load(tokens_ptr + token * 4 + 3)
    total = window_sum(
        features_ptr + item * stride_batch,
        start_h_ptr,
        weight_h_ptr,
        start_w_ptr,
        weight_w_ptr,
        band_h,
        band_w,
        source_width,
        stride_token,
        channel,
        num_channels,
        WIDTH_H,
        WIDTH_W,
        BLOCK_P,
        BLOCK_C,
    )
    row = first * batch_size + item * count + token - first
    output = total.to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + row * num_channels + channel, output, mask=channel < num_channels)


@triton.jit(do_not_specialize=VARYING)
def spread_kernel(
    output_ptr,
    grad_ptr,
    start_h_ptr,
    weight_h_ptr,
    start_w_ptr,
    weight_w_ptr,
    sides_ptr,
    batch_size,
    height,
    width,
    num_channels,
    NUM_COUNTS: tl.constexpr,
    WIDTH_H: tl.constexpr,
    WIDTH_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of one patch and block of channels per program: the sum over all tokens that its values reached."""
    patch = tl.program_id(0) % (height * width)
    item = (tl.program_id(0) // (height * width)).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], tl.float32)
    for index in range(NUM_COUNTS):
        side = tl.load(sides_ptr + index * 2)
        first = tl.load(sides_ptr + index * 2 + 1)
        first_row = first * batch_size + item * side * side
        total += window_sum(
            grad_ptr + first_row * num_channels,
            start_h_ptr,
            weight_h_ptr,
            start_w_ptr,
            weight_w_ptr,
            index * height + patch // width,
            index * width + patch % width,
            side,
            num_channels,
            channel,
            num_channels,
            WIDTH_H,
            WIDTH_W,
            BLOCK_P,
            BLOCK_C,
        )
    row = item * height * width + patch
    output = total.to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + row * num_channels + channel, output, mask=channel < num_channels)


class Tables(NamedTuple):
    """Window tables of a set of counts on a device, and one integer row per token (or per count, for the spread)."""

    height: Table
    width: Table
    rows: Tensor

    def pointers(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """In the order in which the kernels take them."""
        return self.height.start, self.height.weight, self.width.start, self.width.weight, self.rows

    def block_points(self, limit: int) -> int:
        """How many window positions a program loads at once."""
        return min(limit, next_power_of_2(self.height.width * self.width.width))


# Small and kept for ever: captured graphs read the tables where they lie.
@cache
def pool_tables(height: int, width: int, ns: tuple[int, ...], method: str, device: torch.device) -> Tables:
    """Windows of every token; a token's row holds its two bands, its count, and the tokens of the counts before."""
    rows, first_token, first_band = [], 0, 0
    for n in ns:
        rows += [(first_band + i, first_band + j, n * n, first_token) for i in range(n) for j in range(n)]
        first_token, first_band = first_token + n * n, first_band + n
    bands_h = stacked_table([axis_bands(height, n, method) for n in ns], device)
    bands_w = stacked_table([axis_bands(width, n, method) for n in ns], device)
    return Tables(bands_h, bands_w, torch.tensor(rows, dtype=torch.int32, device=device))


@cache
def spread_tables(height: int, width: int, ns: tuple[int, ...], method: str, device: torch.device) -> Tables:
    """Transposed windows of every patch under every count; a count's row holds its side and the tokens before it."""
    rows = [(n, sum(side * side for side in ns[:index])) for index, n in enumerate(ns)]
    bands_h = stacked_table([transposed_bands(height, n, method) for n in ns], device)
    bands_w = stacked_table([transposed_bands(width, n, method) for n in ns], device)
    return Tables(bands_h, bands_w, torch.tensor(rows, dtype=torch.int32, device=device))


def launch_pool(features_BNC: Tensor, height: int, width: int, n: int, method: str) -> Tensor:
    """Pool [B, N, C] to [B, n*n, C]."""
    features_BNC = with_dense_channels(features_BNC)
    batch, _, channels = features_BNC.shape
    output_BkC = features_BNC.new_empty(batch, n * n, channels)
    tables = pool_tables(height, width, (n,), method, features_BNC.device)
    block_c = min(1024, next_power_of_2(channels))
    with on_device_of(features_BNC):
        pool_kernel[(batch * n * n, triton.cdiv(channels, block_c))](
            output_BkC,
            features_BNC,
            *tables.pointers(),
            features_BNC.stride(0),
            features_BNC.stride(1),
            batch,
            n * n,
            width,
            channels,
            **launch_options(
                warps_for(block_c, features_BNC.element_size()),
                WIDTH_H=tables.height.width,
                WIDTH_W=tables.width.width,
                BLOCK_P=tables.block_points(4),
                BLOCK_C=block_c,
            ),
        )
    return output_BkC


def launch_spread(
    grad_RC: Tensor, batch: int, height: int, width: int, ns: Sequence[int], method: str, dtype: torch.dtype
) -> Tensor:
    """Spread row gradients [R, C] of the counts `ns` back over patches [B, N, C] of the given dtype."""
    grad_RC = grad_RC.contiguous()
    channels = grad_RC.shape[1]
    output_BNC = grad_RC.new_empty(batch, height * width, channels, dtype=dtype)
    tables = spread_tables(height, width, tuple(ns), method, grad_RC.device)
    block_c = min(1024, next_power_of_2(channels))
    with on_device_of(grad_RC):
        spread_kernel[(batch * height * width, triton.cdiv(channels, block_c))](
            output_BNC,
            grad_RC,
            *tables.pointers(),
            batch,
            height,
            width,
            channels,
            **launch_options(
                warps_for(block_c, grad_RC.element_size()),
                NUM_COUNTS=len(ns),
                WIDTH_H=tables.height.width,
                WIDTH_W=tables.width.width,
                BLOCK_P=tables.block_points(4),
                BLOCK_C=block_c,
            ),
        )
    return output_BNC
