"""Triton kernels for pooling to several counts with LayerNorm or RMSNorm in the same pass, and the gradients.

Forward: one program per output row holds all its channels, so nothing but the normalised row is written. Backward: each
program pools its rows again, and writes their gradients and its share of those of weight and bias; the pooled gradients
of all counts are then spread over the patches in one launch. Worked example, RMSNorm of the pooled row (3, 4, 0) with
eps 0: mean square 25 / 3, rstd 0.3464, result (1.0392, 1.3856, 0).
Shapes: B batch, N patches, C channels, R = B * (sum of n * n) rows, count by count; G groups of rows.
"""

from collections.abc import Sequence

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
from tokendial_kernels.pool.kernel import launch_spread, pool_tables, window_sum

# Enough programs to fill the widest GPU a few times over; also bounds the partial sums of weight and bias gradients.
MAX_GROUPS = 528


@triton.jit(do_not_specialize=VARYING)
def pool_norm_kernel(
    output_ptr,
    mean_ptr,
    rstd_ptr,
    features_ptr,
    weight_ptr,
    bias_ptr,
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
    eps,
    IS_LAYER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDTH_H: tl.constexpr,
    WIDTH_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One normalised row per program."""
    item = (tl.program_id(0) // num_tokens).to(tl.int64)
    token = tl.program_id(0) % num_tokens
    channel = tl.arange(0, BLOCK_C)
    valid = channel < num_channels
    band_h = tl.load(tokens_ptr + token * 4)
    band_w = tl.load(tokens_ptr + token * 4 + 1)
    count = tl.load(tokens_ptr + token * 4 + 2)
    first = tl.load(tokens_ptr + token * 4 + 3)
    pooled = window_sum(
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
    mean = 0.0
    if IS_LAYER:
        mean = tl.sum(pooled, axis=0) / num_channels
        pooled = tl.where(valid, pooled - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(pooled * pooled, axis=0) / num_channels + eps)
    normed = pooled * rstd * tl.load(weight_ptr + channel, mask=valid, other=0.0).to(tl.float32)
    if HAS_BIAS:
        normed += tl.load(bias_ptr + channel, mask=valid, other=0.0).to(tl.float32)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    tl.store(output_ptr + row * num_channels + channel, normed.to(output_ptr.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=VARYING)
def pool_norm_backward_kernel(
    grad_pooled_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    grad_ptr,
    features_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
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
    num_groups,
    IS_LAYER: tl.constexpr,
    WIDTH_H: tl.constexpr,
    WIDTH_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The pooled gradients of every num_groups-th row, and this group's share of the weight and bias gradients."""
    group = tl.program_id(0)
    channel = tl.arange(0, BLOCK_C)
    valid = channel < num_channels
    weight = tl.load(weight_ptr + channel, mask=valid, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK_C], tl.float32)
    grad_bias = tl.zeros([BLOCK_C], tl.float32)
    for flat in range(group, batch_size * num_tokens, num_groups):
        item = (flat // num_tokens).to(tl.int64)
        token = flat % num_tokens
        band_h = tl.load(tokens_ptr + token * 4)
        band_w = tl.load(tokens_ptr + token * 4 + 1)
        count = tl.load(tokens_ptr + token * 4 + 2)
        first = tl.load(tokens_ptr + token * 4 + 3)
        pooled = window_sum(
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
        rstd = tl.load(rstd_ptr + row)
        normed = tl.where(valid, (pooled - tl.load(mean_ptr + row)) * rstd, 0.0)
        grad = tl.load(grad_ptr + row * num_channels + channel, mask=valid, other=0.0).to(tl.float32)
        grad_weight += grad * normed
        grad_bias += grad
        scaled = grad * weight
        grad_pooled = scaled - normed * (tl.sum(scaled * normed, axis=0) / num_channels)
        if IS_LAYER:
            grad_pooled -= tl.sum(scaled, axis=0) / num_channels
        tl.store(grad_pooled_ptr + row * num_channels + channel, grad_pooled * rstd, mask=valid)
    share = group.to(tl.int64) * num_channels + channel
    tl.store(grad_weight_ptr + share, grad_weight, mask=valid)
    tl.store(grad_bias_ptr + share, grad_bias, mask=valid)


def launch_pool_norm(
    features_BNC: Tensor,
    height: int,
    width: int,
    ns: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    norm: str,
    eps: float,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised rows [R, C], and their means and reciprocal deviations [R] in float32."""
    features_BNC, weight = with_dense_channels(features_BNC), weight.contiguous()
    batch, _, channels = features_BNC.shape
    tables = pool_tables(height, width, tuple(ns), method, features_BNC.device)
    num_rows = batch * tables.rows.shape[0]
    output_RC = features_BNC.new_empty(num_rows, channels)
    mean_R = features_BNC.new_empty(num_rows, dtype=torch.float32)
    rstd_R = torch.empty_like(mean_R)
    block_c = next_power_of_2(channels)
    with on_device_of(features_BNC):
        pool_norm_kernel[(num_rows,)](
            output_RC,
            mean_R,
            rstd_R,
            features_BNC,
            weight,
            weight if bias is None else bias.contiguous(),
            *tables.pointers(),
            features_BNC.stride(0),
            features_BNC.stride(1),
            batch,
            tables.rows.shape[0],
            width,
            channels,
            eps,
            **launch_options(
                warps_for(block_c, features_BNC.element_size()),
                IS_LAYER=norm == "layer",
                HAS_BIAS=bias is not None,
                WIDTH_H=tables.height.width,
                WIDTH_W=tables.width.width,
                BLOCK_P=tables.block_points(4 if block_c <= 4096 else 1),
                BLOCK_C=block_c,
            ),
        )
    return output_RC, mean_R, rstd_R


def launch_pool_norm_backward(
    grad_RC: Tensor,
    features_BNC: Tensor,
    mean_R: Tensor,
    rstd_R: Tensor,
    height: int,
    width: int,
    ns: Sequence[int],
    weight: Tensor,
    norm: str,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of features, weight and bias."""
    grad_RC, features_BNC, weight = grad_RC.contiguous(), with_dense_channels(features_BNC), weight.contiguous()
    batch, _, channels = features_BNC.shape
    tables = pool_tables(height, width, tuple(ns), method, features_BNC.device)
    num_rows = batch * tables.rows.shape[0]
    num_groups = min(num_rows, MAX_GROUPS)
    grad_pooled_RC = torch.empty(num_rows, channels, dtype=torch.float32, device=features_BNC.device)
    grad_weight_GC = torch.empty(num_groups, channels, dtype=torch.float32, device=features_BNC.device)
    grad_bias_GC = torch.empty_like(grad_weight_GC)
    block_c = next_power_of_2(channels)
    with on_device_of(features_BNC):
        pool_norm_backward_kernel[(num_groups,)](
            grad_pooled_RC,
            grad_weight_GC,
            grad_bias_GC,
            grad_RC,
            features_BNC,
            weight,
            mean_R,
            rstd_R,
            *tables.pointers(),
            features_BNC.stride(0),
            features_BNC.stride(1),
            batch,
            tables.rows.shape[0],
            width,
            channels,
            num_groups,
            **launch_options(
                max(4, warps_for(block_c, features_BNC.element_size())),
                IS_LAYER=norm == "layer",
                WIDTH_H=tables.height.width,
                WIDTH_W=tables.width.width,
                BLOCK_P=tables.block_points(4 if block_c <= 2048 else 1),
                BLOCK_C=block_c,
            ),
        )
    grad_BNC = launch_spread(grad_pooled_RC, batch, height, width, ns, method, features_BNC.dtype)
    return grad_BNC, grad_weight_GC.sum(0).to(weight.dtype), grad_bias_GC.sum(0).to(weight.dtype)
