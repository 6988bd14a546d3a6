"""Projectors: a reducer and the network into the language model's width, one set of weights for every count.

Shapes: B images, N = height * width patches, k tokens, C tower width, H hidden width, E query width, D language width.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration import TokendialConfig
from .counts import check_count
from .ops import projector
from .positions import sincos_table
from .reducers import KeepReducer, PoolReducer, QueryContext, QueryReducer, Reducer


class PoolProjector(nn.Module):
    """TokenFLEX (arXiv 2504.03154): pool, LayerNorm, SwiGLU.

    The parameters lie on this module itself, not in children: the fused op reads them all at once, and DeepSpeed
    ZeRO-3 gathers what the module whose forward runs holds.
    """

    def __init__(self, config: TokendialConfig) -> None:
        super().__init__()
        channels, width = feature_width(config), config.text_config.hidden_size
        hidden = round(config.hidden_factor * channels)
        self.reducer = PoolReducer(config_grid(config), config.pooling)
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.norm_bias = nn.Parameter(torch.zeros(channels))
        self.gate_weight = nn.Parameter(torch.empty(hidden, channels))
        self.gate_bias = nn.Parameter(torch.zeros(hidden))
        self.up_weight = nn.Parameter(torch.empty(hidden, channels))
        self.up_bias = nn.Parameter(torch.zeros(hidden))
        self.down_weight = nn.Parameter(torch.empty(width, hidden))
        self.down_bias = nn.Parameter(torch.zeros(width))

    def initialise(self) -> None:
        init.ones_(self.norm_weight)
        for bias in (self.norm_bias, self.gate_bias, self.up_bias, self.down_bias):
            init.zeros_(bias)
        for weight in (self.gate_weight, self.up_weight, self.down_weight):
            init.lecun_normal_(weight)

    def forward(self, features_BNC: Tensor, k: int) -> Tensor:
        """Tokens [B, k, D]; ValueError where k is not the square of a side within the grid."""
        return projector(
            features_BNC,
            self.reducer.grid,
            self.reducer.side(k),
            self.norm_weight,
            self.norm_bias,
            self.gate_weight,
            self.gate_bias,
            self.up_weight,
            self.up_bias,
            self.down_weight,
            self.down_bias,
            method=self.reducer.method,
        )


class MlpProjector(nn.Module):
    """LLaVA-1.5's two-layer GELU on every patch; only k = number of patches."""

    def __init__(self, config: TokendialConfig) -> None:
        super().__init__()
        width, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.reducer: Reducer = KeepReducer(config_grid(config))
        self.linear_1 = nn.Linear(feature_width(config), width, bias=bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def initialise(self) -> None:
        for linear in (self.linear_1, self.linear_2):
            init.lecun_normal_(linear.weight)
            if linear.bias is not None:
                init.zeros_(linear.bias)

    def forward(self, features_BNC: Tensor, k: int) -> Tensor:
        """Tokens [B, k, D]; ValueError where k is not admissible."""
        check_count("mlp", self.reducer.grid, 0, k)
        return self.linear_2(self.act(self.linear_1(features_BNC)))


class PoolAfterProjector(MlpProjector):
    """M3 (arXiv 2405.17430): LLaVA's projector, then average pooling by a side that divides the grid: counts nest."""

    def __init__(self, config: TokendialConfig) -> None:
        super().__init__(config)
        self.reducer = PoolReducer(config_grid(config), nested=True)

    def forward(self, features_BNC: Tensor, k: int) -> Tensor:
        """Tokens [B, k, D]; ValueError where k is not admissible."""
        check_count("pool_after", self.reducer.grid, 0, k)
        tokens_BND = self.linear_2(self.act(self.linear_1(features_BNC)))
        return self.reducer.reduce(tokens_BND, None, k).apply(tokens_BND)


class QueryProjector(nn.Module):
    """MQT-LLaVA (arXiv 2405.19315): the first k of learned queries, one cross-attention, one matrix.

    q = LN(query + position), keys = LN(position) as released or LN(feature) + position, values = LN(feature). Queries
    never see one another, so k tokens are the first k of any longer output. The release stretches the query's position
    table to the patch grid by bicubic interpolation; here the sin-cos function itself is read at those places.
    """

    positions_QE: Tensor
    positions_NE: Tensor

    def __init__(self, config: TokendialConfig) -> None:
        super().__init__()
        channels = feature_width(config)
        width = config.query_width or channels
        heads = config.query_heads or max(1, width // 64)
        if width % heads or width % 4:
            raise ValueError(f"query width {width} must be a multiple of 4 and of the {heads} heads")
        self.keys = config.query_keys
        self.init_std = config.text_config.hidden_size**-0.5
        self.reducer = QueryReducer(config_grid(config), config.max_queries, heads, width)
        self.query = nn.Parameter(torch.empty(config.max_queries, width))
        self.kv_proj = nn.Linear(channels, width, bias=False) if channels != width else nn.Identity()
        self.norm_q = nn.LayerNorm(width, eps=1e-6)
        self.norm_k = nn.LayerNorm(width, eps=1e-6)
        self.norm_v = nn.LayerNorm(width, eps=1e-6)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.proj = nn.Linear(width, config.text_config.hidden_size, bias=False)
        query_table, key_table = self._tables()
        self.register_buffer("positions_QE", query_table, persistent=False)
        self.register_buffer("positions_NE", key_table, persistent=False)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Positions of queries, on the smallest square that holds them, and of patches, stretched onto that square."""
        num_queries, width = self.query.shape
        side = next(n for n in range(1, num_queries + 1) if n * n >= num_queries)
        rows, columns = self.reducer.grid
        return sincos_table(side, side, width)[:num_queries], sincos_table(rows, columns, width, (side, side))

    def initialise(self) -> None:
        init.trunc_normal_(self.query, std=0.02)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            init.xavier_uniform_(linear.weight)
            init.zeros_(linear.bias)
        if isinstance(self.kv_proj, nn.Linear):
            init.lecun_normal_(self.kv_proj.weight)
        init.normal_(self.proj.weight, std=self.init_std)
        for buffer, table in zip((self.positions_QE, self.positions_NE), self._tables(), strict=True):
            init.copy_(buffer, table)

    def reduction_context(self, features_BNE: Tensor, k: int) -> QueryContext:
        """Projected queries and keys for normed features."""
        query_kE = self.q_proj(self.norm_q(self.query[:k] + self.positions_QE[:k].to(self.query.dtype)))
        positions_NE = self.positions_NE.to(features_BNE.dtype)
        keys_BNE = self.norm_k(positions_NE[None]) if self.keys == "position" else features_BNE + positions_NE
        return QueryContext(query_kE, self.k_proj(keys_BNE))

    def forward(self, features_BNC: Tensor, k: int) -> Tensor:
        """Tokens [B, k, D]; ValueError where k is above max_queries or below 1."""
        features_BNE = self.norm_v(self.kv_proj(features_BNC))
        reduction = self.reducer.reduce(features_BNE, self.reduction_context(features_BNE, k), k)
        return self.proj(self.out_proj(reduction.apply(self.v_proj(features_BNE))))


Projector = PoolProjector | MlpProjector | QueryProjector


def build_projector(config: TokendialConfig) -> Projector:
    """The projector that `config.projector` names."""
    kinds = {"pool": PoolProjector, "query": QueryProjector, "pool_after": PoolAfterProjector, "mlp": MlpProjector}
    if config.projector not in kinds:
        raise ValueError(f"projector {config.projector!r} is unknown; choose one of {', '.join(kinds)}")
    return kinds[config.projector](config)


def config_grid(config: TokendialConfig) -> tuple[int, int]:
    return config.grid[0], config.grid[1]


def feature_width(config: TokendialConfig) -> int:
    return config.vision_config.hidden_size
