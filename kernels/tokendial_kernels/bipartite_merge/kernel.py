"""Triton kernel for ToMe's matching: the best partner of every even token among the odd ones, by cosine.

A program computes one tile of cosines and keeps only its row maxima, so the score matrix is never written; norms are
summed from the tiles that the dot reads anyway. Worked example: even tokens (1, 0), odd tokens (0, 2) and (3, 3) have
cosines 0 and 0.7071: best 0.7071, partner 1.
Shapes: B batch, N tokens, E = ceil(N / 2) even and O = floor(N / 2) odd tokens, C channels, T tiles of odd tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokendial_kernels.launch import launch_options, on_device_of, with_dense_channels

NUM_WARPS = 8


@triton.jit
def best_match_kernel(
    best_ptr,
    partner_ptr,
    metric_ptr,
    stride_batch,
    stride_token,
    num_even,
    num_odd,
    num_channels,
    BLOCK_E: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Row maxima over one tile of odd tokens, for one tile of even tokens of one item."""
    item = tl.program_id(2).to(tl.int64)
    first_even = tl.program_id(0) * BLOCK_E
    first_odd = tl.program_id(1) * BLOCK_O
    even = tl.arange(0, BLOCK_E)
    odd = tl.arange(0, BLOCK_O)
    channel = tl.arange(0, BLOCK_C)
    even_valid = first_even + even < num_even
    odd_valid = first_odd + odd < num_odd
    # 64-bit bases are scalars and offsets within a tile are 32-bit: pointers of whole tiles would spill registers.
    even_ptr = metric_ptr + item * stride_batch + (2 * first_even).to(tl.int64) * stride_token
    odd_ptr = metric_ptr + item * stride_batch + (2 * first_odd + 1).to(tl.int64) * stride_token
    even_offset = 2 * even[:, None] * stride_token + channel[None, :]
    odd_offset = 2 * odd[None, :] * stride_token + channel[:, None]
    dots = tl.zeros([BLOCK_E, BLOCK_O], tl.float32)
    even_square = tl.zeros([BLOCK_E], tl.float32)
    odd_square = tl.zeros([BLOCK_O], tl.float32)
    for first in range(0, num_channels, BLOCK_C):
        valid = first + channel < num_channels
        even_tile = tl.load(even_ptr + first + even_offset, mask=even_valid[:, None] & valid[None, :], other=0.0)
        odd_tile = tl.load(odd_ptr + first + odd_offset, mask=valid[:, None] & odd_valid[None, :], other=0.0)
        dots = tl.dot(even_tile, odd_tile, dots, input_precision="ieee")
        even_wide = even_tile.to(tl.float32)
        odd_wide = odd_tile.to(tl.float32)
        even_square += tl.sum(even_wide * even_wide, axis=1)
        odd_square += tl.sum(odd_wide * odd_wide, axis=0)
    # A token of zeros has cosine 0 with every other, as in torch.nn.functional.normalize.
    even_norm = tl.maximum(tl.sqrt(even_square), 1e-12)
    odd_norm = tl.maximum(tl.sqrt(odd_square), 1e-12)
    cosines = dots / (even_norm[:, None] * odd_norm[None, :])
    cosines = tl.where(odd_valid[None, :], cosines, -float("inf"))
    best, partner = tl.max(cosines, axis=1, return_indices=True, return_indices_tie_break_left=True)
    row = (item * tl.num_programs(1) + tl.program_id(1)) * num_even + first_even + even
    tl.store(best_ptr + row, best, mask=even_valid)
    tl.store(partner_ptr + row, (first_odd + partner).to(tl.int64), mask=even_valid)


def launch_best_match(metric_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best cosine [B, E] in float32 and the odd partner [B, E], its place among odd tokens, in int64."""
    metric_BNC = with_dense_channels(metric_BNC)
    batch, num_tokens, channels = metric_BNC.shape
    num_even, num_odd = num_tokens - num_tokens // 2, num_tokens // 2
    block = 32 if metric_BNC.element_size() == 4 else 64
    tiles_odd = -(-num_odd // block)
    best_BTE = torch.empty(batch, tiles_odd, num_even, dtype=torch.float32, device=metric_BNC.device)
    partner_BTE = torch.empty(batch, tiles_odd, num_even, dtype=torch.int64, device=metric_BNC.device)
    with on_device_of(metric_BNC):
        best_match_kernel[(triton.cdiv(num_even, block), tiles_odd, batch)](
            best_BTE,
            partner_BTE,
            metric_BNC,
            metric_BNC.stride(0),
            metric_BNC.stride(1),
            num_even,
            num_odd,
            channels,
            **launch_options(NUM_WARPS, 3, BLOCK_E=block, BLOCK_O=block, BLOCK_C=64),
        )
    best_BE, tile_BE = best_BTE.max(dim=1)
    return best_BE, partner_BTE.gather(1, tile_BE.unsqueeze(1)).squeeze(1)
