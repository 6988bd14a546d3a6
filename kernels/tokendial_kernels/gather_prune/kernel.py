"""Triton kernel that gathers token rows by index, with zeros for index -1; the same kernel is its own gradient's.

The backward gathers through the inverse index, so each gradient row is written once: no atomics, no clearing pass.
Worked example: rows a, b, c and indices (2, -1, 0) give c, 0, a.
Shapes: B batch, N source tokens, K gathered tokens, C channels.
"""

import triton
import triton.language as tl
from torch import Tensor

from tokendial_kernels.launch import launch_options, next_power_of_2, on_device_of, warps_for, with_dense_channels


@triton.jit
def gather_kernel(
    output_ptr,
    features_ptr,
    index_ptr,
    stride_batch,
    stride_token,
    num_gathered,
    num_channels,
    BLOCK_C: tl.constexpr,
):
    """One gathered row and block of channels per program."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    index = tl.load(index_ptr + row)
    offset = (row // num_gathered) * stride_batch + index * stride_token
    # The scalar test is folded into the bound: the interpreter refuses a scalar and a block in one mask.
    readable = channel < tl.where(index >= 0, num_channels, 0)
    values = tl.load(features_ptr + offset + channel, mask=readable, other=0.0)
    tl.store(output_ptr + row * num_channels + channel, values, mask=channel < num_channels)


def launch_gather(source_BNC: Tensor, index_BK: Tensor) -> Tensor:
    """Return rows [B, K, C]: source row index[b, j] of item b, or zeros where the index is -1."""
    source_BNC, index_BK = with_dense_channels(source_BNC), index_BK.contiguous()
    (batch, num_gathered), channels = index_BK.shape, source_BNC.shape[2]
    output_BKC = source_BNC.new_empty(batch, num_gathered, channels)
    block_c = min(2048, next_power_of_2(channels))
    with on_device_of(source_BNC):
        gather_kernel[(batch * num_gathered, triton.cdiv(channels, block_c))](
            output_BKC,
            source_BNC,
            index_BK,
            source_BNC.stride(0),
            source_BNC.stride(1),
            num_gathered,
            channels,
            **launch_options(warps_for(block_c, source_BNC.element_size()), BLOCK_C=block_c),
        )
    return output_BKC
