"""Triton kernels for ToMe: the best partner of every even token, the choice of the r nearest, and the merge itself.

Matching: a program computes one tile of cosines and keeps only its row maxima, so the score matrix is never written;
norms are summed from the tiles that the dot reads anyway. Choosing: one program an item ranks by counting who is ahead,
so there is no sort. Merging: one program a surviving row finds its sources and adds them in the order of their rank, so
there are no atomics. Worked example: even tokens (1, 0), odd tokens (0, 2) and (3, 3) have cosines 0 and 0.7071: best
0.7071, partner 1; merged with sizes 1, the pair becomes (2, 1.5) of size 2.
Shapes: B batch, N tokens, E = ceil(N / 2) even and O = floor(N / 2) odd tokens, T tiles of odd tokens, R merged away,
M = N - R surviving, C channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokendial_kernels.launch import (
    launch_options,
    next_power_of_2,
    on_device_of,
    warps_for,
    with_dense_channels,
)

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
    # Not a number is nobody's best.
    cosines = tl.where(odd_valid[None, :] & (cosines == cosines), cosines, -float("inf"))
    best, partner = tl.max(cosines, axis=1, return_indices=True, return_indices_tie_break_left=True)
    row = (item * tl.num_programs(1) + tl.program_id(1)) * num_even + first_even + even
    tl.store(best_ptr + row, best, mask=even_valid)
    tl.store(partner_ptr + row, (first_odd + partner).to(tl.int64), mask=even_valid)


@triton.jit
def choose_kernel(
    source_ptr,
    destination_ptr,
    kept_ptr,
    row_ptr,
    best_ptr,
    partner_ptr,
    num_tiles,
    num_even,
    num_odd,
    num_merged,
    BLOCK_E: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """All of one item: ranks of the even tokens, and the rows of the tokens that survive."""
    item = tl.program_id(0).to(tl.int64)
    even = tl.arange(0, BLOCK_E)
    valid = even < num_even
    best_ptr += item * num_tiles * num_even
    partner_ptr += item * num_tiles * num_even
    best = tl.load(best_ptr + even, mask=valid, other=-float("inf"))
    partner = tl.load(partner_ptr + even, mask=valid, other=0)
    for tile in range(1, num_tiles):
        other = tl.load(best_ptr + tile * num_even + even, mask=valid, other=-float("inf"))
        better = other > best
        partner = tl.where(better, tl.load(partner_ptr + tile * num_even + even, mask=valid, other=0), partner)
        best = tl.where(better, other, best)
    # The first tile's place now takes the best of all tiles, for every thread to read.
    tl.store(best_ptr + even, best, mask=valid)
    tl.debug_barrier()
    rank = tl.zeros([BLOCK_E], tl.int32)
    for first in range(0, num_even, BLOCK_J):
        rival = first + tl.arange(0, BLOCK_J)
        rival_best = tl.load(best_ptr + rival, mask=rival < num_even, other=-float("inf"))
        tied_before = (rival_best[None, :] == best[:, None]) & (rival[None, :] < even[:, None])
        ahead = ((rival_best[None, :] > best[:, None]) | tied_before) & (rival < num_even)[None, :]
        rank += tl.sum(ahead.to(tl.int32), axis=1)
    merged = valid & (rank < num_merged)
    # Before token 2i survive the chosen evens before it and i odds; before token 2i + 1, token 2i as well.
    survivors = tl.cumsum((valid & (rank >= num_merged)).to(tl.int32), axis=0)
    num_tokens = num_even + num_odd
    kept_ptr += item * (num_tokens - num_merged)
    row_ptr += item * num_tokens
    even_row = (survivors - 1 + even).to(tl.int64)
    odd_row = (survivors + even).to(tl.int64)
    odd_valid = even < num_odd
    tl.store(kept_ptr + even_row, (2 * even).to(tl.int64), mask=valid & (rank >= num_merged))
    tl.store(kept_ptr + odd_row, (2 * even + 1).to(tl.int64), mask=odd_valid)
    tl.store(row_ptr + 2 * even + 1, odd_row, mask=odd_valid)
    tl.debug_barrier()
    partner_row = tl.load(row_ptr + 2 * partner + 1, mask=merged, other=0)
    tl.store(row_ptr + 2 * even, tl.where(merged, partner_row, even_row), mask=valid)
    tl.store(source_ptr + item * num_merged + rank, (2 * even).to(tl.int64), mask=merged)
    tl.store(destination_ptr + item * num_merged + rank, 2 * partner + 1, mask=merged)


@triton.jit
def merge_kernel(
    output_ptr,
    output_sizes_ptr,
    features_ptr,
    sizes_ptr,
    source_ptr,
    destination_ptr,
    kept_ptr,
    stride_batch,
    stride_token,
    num_tokens,
    num_kept,
    num_merged,
    num_channels,
    HAS_SIZES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One surviving row and block of channels per program."""
    row = tl.program_id(0).to(tl.int64)
    item = row // num_kept
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = channel < num_channels
    features_ptr += item * stride_batch
    token = tl.load(kept_ptr + row)
    size = 1.0
    if HAS_SIZES:
        size = tl.load(sizes_ptr + item * num_tokens + token).to(tl.float32)
    total = tl.load(features_ptr + token * stride_token + channel, mask=valid, other=0.0).to(tl.float32) * size
    total_size = size + 0.0
    for first in range(0, num_merged, BLOCK_R):
        place = first + tl.arange(0, BLOCK_R)
        destination = tl.load(destination_ptr + item * num_merged + place, mask=place < num_merged, other=-1)
        found = destination == token
        for _ in range(tl.sum(found.to(tl.int32), axis=0)):
            next_place = tl.min(tl.where(found, place, num_merged), axis=0)
            found = found & (place != next_place)
            source = tl.load(source_ptr + item * num_merged + next_place)
            size = 1.0
            if HAS_SIZES:
                size = tl.load(sizes_ptr + item * num_tokens + source).to(tl.float32)
            values = tl.load(features_ptr + source * stride_token + channel, mask=valid, other=0.0)
            total += values.to(tl.float32) * size
            total_size += size
    output = (total / total_size).to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + row * num_channels + channel, output, mask=valid)
    tl.store(output_sizes_ptr + row, total_size)


def launch_best_match(metric_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best cosine [B, T, E] in each tile of odd tokens, float32, and the odd partner [B, T, E], int64."""
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
    return best_BTE, partner_BTE


def launch_choose(
    best_BTE: Tensor, partner_BTE: Tensor, r: int, num_tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sources [B, R], destinations [B, R], surviving tokens [B, M] and rows [B, N]; overwrites best_BTE."""
    batch, num_tiles, num_even = best_BTE.shape
    source_BR = partner_BTE.new_empty(batch, r)
    destination_BR = torch.empty_like(source_BR)
    kept_BM = partner_BTE.new_empty(batch, num_tokens - r)
    row_BN = partner_BTE.new_empty(batch, num_tokens)
    block_e = next_power_of_2(num_even)
    with on_device_of(best_BTE):
        choose_kernel[(batch,)](
            source_BR,
            destination_BR,
            kept_BM,
            row_BN,
            best_BTE,
            partner_BTE,
            num_tiles,
            num_even,
            num_tokens - num_even,
            r,
            **launch_options(NUM_WARPS, BLOCK_E=block_e, BLOCK_J=max(1, min(64, 8192 // block_e))),
        )
    return source_BR, destination_BR, kept_BM, row_BN


def launch_merge(
    features_BNC: Tensor, sizes_BN: Tensor | None, source_BR: Tensor, destination_BR: Tensor, kept_BM: Tensor
) -> tuple[Tensor, Tensor]:
    """Return size-weighted means [B, M, C] and their sizes [B, M] in float32."""
    features_BNC = with_dense_channels(features_BNC)
    (batch, num_kept), (_, num_tokens, channels) = kept_BM.shape, features_BNC.shape
    merged_BMC = features_BNC.new_empty(batch, num_kept, channels)
    sizes_BM = torch.empty(batch, num_kept, dtype=torch.float32, device=features_BNC.device)
    block_c = min(1024, next_power_of_2(channels))
    with on_device_of(features_BNC):
        merge_kernel[(batch * num_kept, triton.cdiv(channels, block_c))](
            merged_BMC,
            sizes_BM,
            features_BNC,
            features_BNC if sizes_BN is None else sizes_BN.contiguous(),
            source_BR.contiguous(),
            destination_BR.contiguous(),
            kept_BM.contiguous(),
            features_BNC.stride(0),
            features_BNC.stride(1),
            num_tokens,
            num_kept,
            source_BR.shape[1],
            channels,
            **launch_options(
                warps_for(block_c, features_BNC.element_size()),
                HAS_SIZES=sizes_BN is not None,
                BLOCK_R=min(128, next_power_of_2(max(1, source_BR.shape[1]))),
                BLOCK_C=block_c,
            ),
        )
    return merged_BMC, sizes_BM
