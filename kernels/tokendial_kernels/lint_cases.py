"""The launches that the lint compiles: bfloat16, batch 16, 32x32 patches of 1024 channels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokendial_kernels.bipartite_merge.kernel import NUM_WARPS as MATCH_WARPS
from tokendial_kernels.bipartite_merge.kernel import best_match_kernel, choose_kernel, merge_kernel
from tokendial_kernels.gather_prune.kernel import gather_kernel
from tokendial_kernels.pool.kernel import pool_kernel, spread_kernel
from tokendial_kernels.pool_norm.kernel import pool_norm_backward_kernel, pool_norm_kernel
from tokendial_kernels.projector.kernel import gated_linear_kernel, tiling_for
from tokendial_kernels.swiglu.kernel import BLOCK, NUM_WARPS, swiglu_backward_kernel, swiglu_kernel

FLOAT32_POINTERS = frozenset(
    [
        "weight_h_ptr",
        "weight_w_ptr",
        "mean_ptr",
        "rstd_ptr",
        "grad_pooled_ptr",
        "grad_weight_ptr",
        "grad_bias_ptr",
        "best_ptr",
        "output_sizes_ptr",
    ]
)
INT32_POINTERS = frozenset(["start_h_ptr", "start_w_ptr", "tokens_ptr", "sides_ptr"])
INT64_POINTERS = frozenset(["index_ptr", "partner_ptr", "source_ptr", "destination_ptr", "kept_ptr", "row_ptr"])


@dataclass(frozen=True)
class Case:
    """One launch: integer and float arguments by value, so that their divisibility is what a launch would infer."""

    name: str
    kernel: Any
    values: Mapping[str, int | float]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 3
    memory_bound: bool = False
    has_dots: bool = False
    pointers: Mapping[str, str] = field(default_factory=dict)

    def type_of(self, name: str) -> str:
        """The argument's type in a Triton signature."""
        if name in self.constants:
            return "constexpr"
        if name.endswith("_ptr"):
            known = {FLOAT32_POINTERS: "*fp32", INT32_POINTERS: "*i32", INT64_POINTERS: "*i64"}
            return self.pointers.get(name) or next((kind for names, kind in known.items() if name in names), "*bf16")
        value = self.values[name]
        return "fp32" if isinstance(value, float) else ("i32" if value < 2**31 else "i64")

    def is_aligned(self, name: str) -> bool:
        """True where a launch marks the argument as divisible by 16: torch's own buffers, and such integers."""
        if name in self.constants or name in self.kernel.do_not_specialize:
            return False
        value = self.values.get(name, 16)
        return isinstance(value, int) and value % 16 == 0


BATCH, SIDE, CHANNELS = 16, 32, 1024
FEATURES = {"stride_batch": SIDE * SIDE * CHANNELS, "stride_token": CHANNELS, "num_channels": CHANNELS}
WINDOWS = {"WIDTH_H": 4, "WIDTH_W": 4, "BLOCK_P": 4, "BLOCK_C": CHANNELS}
ROWS = {"batch_size": BATCH, "num_tokens": 64, "source_width": SIDE} | FEATURES


def _gated_linear(num_rows: int, keep: bool, name: str) -> Case:
    tiling, hidden = tiling_for(num_rows, itemsize=2), 3584
    return Case(
        name,
        gated_linear_kernel,
        {"stride_row": CHANNELS, "stride_gate": CHANNELS, "stride_up": CHANNELS, "num_rows": num_rows}
        | {"num_hidden": hidden, "num_channels": CHANNELS},
        {"HAS_GATE_BIAS": True, "HAS_UP_BIAS": True, "KEEP": keep, "GROUP_M": 8}
        | {"BLOCK_M": tiling.block_m, "BLOCK_H": tiling.block_h, "BLOCK_C": tiling.block_c},
        tiling.num_warps,
        tiling.num_stages,
        has_dots=True,
    )


SWIGLU = {"num_columns": 16 * 256 * 3584, "blocks_per_row": 7168}
CASES = (
    Case("pool", pool_kernel, ROWS, WINDOWS, num_warps=4, memory_bound=True),
    Case(
        "pool backward",
        spread_kernel,
        {"batch_size": BATCH, "height": SIDE, "width": SIDE, "num_channels": CHANNELS},
        {"NUM_COUNTS": 1, "WIDTH_H": 1, "WIDTH_W": 1, "BLOCK_P": 1, "BLOCK_C": CHANNELS},
        num_warps=4,
        memory_bound=True,
    ),
    Case(
        "pool_norm",
        pool_norm_kernel,
        ROWS | {"eps": 1e-6},
        WINDOWS | {"IS_LAYER": True, "HAS_BIAS": True},
        num_warps=4,
        memory_bound=True,
    ),
    Case(
        "pool_norm backward",
        pool_norm_backward_kernel,
        ROWS | {"num_groups": 528},
        WINDOWS | {"IS_LAYER": True},
        num_warps=4,
        memory_bound=True,
    ),
    Case(
        "pool_norm spread of three counts",
        spread_kernel,
        {"batch_size": BATCH, "height": SIDE, "width": SIDE, "num_channels": CHANNELS},
        {"NUM_COUNTS": 3, "WIDTH_H": 2, "WIDTH_W": 2, "BLOCK_P": 4, "BLOCK_C": CHANNELS},
        num_warps=8,
        memory_bound=True,
        pointers={"grad_ptr": "*fp32"},
    ),
    Case(
        "swiglu",
        swiglu_kernel,
        SWIGLU | {"stride_gate": SWIGLU["num_columns"], "stride_up": SWIGLU["num_columns"]},
        {"BLOCK": BLOCK},
        NUM_WARPS,
        memory_bound=True,
    ),
    Case(
        "swiglu backward",
        swiglu_backward_kernel,
        SWIGLU | dict.fromkeys(("stride_grad", "stride_gate", "stride_up"), SWIGLU["num_columns"]),
        {"BLOCK": BLOCK},
        NUM_WARPS,
        memory_bound=True,
    ),
    _gated_linear(16, False, "gated_linear, 16 rows"),
    _gated_linear(64, False, "gated_linear, 64 rows"),
    _gated_linear(256, False, "gated_linear, 256 rows"),
    _gated_linear(4096, False, "gated_linear, 4096 rows"),
    _gated_linear(4096, True, "gated_linear, 4096 rows, training"),
    Case(
        "best_match",
        best_match_kernel,
        {"num_even": 512, "num_odd": 512} | FEATURES,
        {"BLOCK_E": 64, "BLOCK_O": 64, "BLOCK_C": 64},
        MATCH_WARPS,
        has_dots=True,
    ),
    Case(
        "choose",
        choose_kernel,
        {"num_tiles": 8, "num_even": 512, "num_odd": 512, "num_merged": 256},
        {"BLOCK_E": 512, "BLOCK_J": 16},
        MATCH_WARPS,
    ),
    Case(
        "merge",
        merge_kernel,
        {"num_tokens": 1024, "num_kept": 768, "num_merged": 256} | FEATURES,
        {"HAS_SIZES": True, "BLOCK_R": 128, "BLOCK_C": CHANNELS},
        num_warps=4,
        memory_bound=True,
    ),
    Case(
        "gather",
        gather_kernel,
        {"num_gathered": 256} | FEATURES,
        {"BLOCK_C": CHANNELS},
        num_warps=4,
        memory_bound=True,
    ),
)
