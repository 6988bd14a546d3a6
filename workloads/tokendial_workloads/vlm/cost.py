"""Analytic FLOPs and parameters of a model, from its configuration alone: imports neither torch nor transformers.

Counted as executed (1 multiply-add = 2): matrix products, convolutions and full (not halved causal) attention, padding
included. Backward goes only through trained parts and what they need; attention's backward is 2.5 times its forward,
because fused attention computes the scores again. Pooling, norms and activations are no matrix products, and what a
batch computes once whatever its size (the query projector's queries and position keys) is not counted per example.
Letters: L text columns (image slot included), k visual tokens, M = k + L - 1 positions, N patches, C tower width,
D language width.
"""

from dataclasses import dataclass

from tokendial.contracts import ModelConfig

from .counts import check_count
from .shapes import LanguageShape, TowerShape, language_shape, tower_shape

ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True)
class Product:
    """A weight matrix applied to rows: which of its two backward products run."""

    rows: int
    fan_in: int
    fan_out: int
    input_needs: bool
    weight_needs: bool

    @property
    def forward(self) -> float:
        return 2.0 * self.rows * self.fan_in * self.fan_out

    @property
    def backward(self) -> float:
        return self.forward * (self.input_needs + self.weight_needs)


class ModelCost:
    """FLOPs of one example (contract: tokendial.contracts.Cost)."""

    def __init__(
        self,
        model: ModelConfig,
        text_columns: int,
        vocab_size: int,
        activation_checkpointing: bool = False,
        warmup_head_flops: float = 0.0,
    ) -> None:
        """`text_columns` is L, the image slot included; `warmup_head_flops` is forward, per example."""
        self.model = model
        self.text_columns = text_columns
        self.activation_checkpointing = activation_checkpointing
        self.warmup_head_flops = warmup_head_flops
        self.tower: TowerShape = tower_shape(model)
        self.language: LanguageShape = language_shape(model, vocab_size)
        self.num_patches = self.tower.num_patches
        self.num_parameters = self._parameters()

    def _parameters(self) -> dict[str, int]:
        """By part, as the model's parts are: under LoRA `language` is the adapters, `frozen` what they sit on."""
        found = {
            "tower": tower_parameters(self.tower),
            "projector": projector_parameters(self.model, self.tower.width, self.language.width),
            "language": language_parameters(self.language),
        }
        if self.model.lora is None:
            return found
        pairs = sum(fan_in + fan_out for fan_in, fan_out in self._matrices())
        adapters = self.language.num_layers * self.model.lora.rank * pairs
        return {**found, "language": adapters, "frozen": found["language"]}

    def tower_flops(self, trained: bool) -> float:
        """Tower, one image, forward (and backward up to the projected layer where trained)."""
        tower, tokens = self.tower, self.tower.num_tokens
        products = [*_stem(tower)]
        attention = 4.0 * tokens**2 * tower.width
        block = 2.0 * tokens * tower.width * (4 * tower.width + 2 * tower.hidden)
        forward = sum(product.forward for product in products) + tower.num_layers * (block + attention)
        if not trained:
            return forward
        layer = self.model.feature_layer
        used = tower.num_layers if layer == -1 else layer % (tower.num_layers + 1)
        backward = used * (2 * block + ATTENTION_BACKWARD * attention)
        return forward + backward + sum(product.backward for product in products)

    def language_flops(self, k: int, trained: frozenset[str], backward: bool = True) -> float:
        """Projector and language model, one example at count k; ValueError where k is not admissible."""
        check_count(self.model.projector, self.tower.grid, self.model.max_queries, k)
        forward = self._projector_forward(k) + self._blocks_forward(k) + self._head(trained).forward
        if not backward or not trained:
            return forward
        recomputed = self._recomputed(k) if self.activation_checkpointing else 0.0
        total = forward + recomputed + self._head(trained).backward + self._blocks_backward(k, trained)
        return total + (self._projector_backward(k, trained) if trained & {"tower", "projector"} else 0.0)

    def warmup_flops(self) -> float:
        """One example of the `tower` objective, forward and backward."""
        return self.tower_flops(trained=True) + 3 * self.warmup_head_flops

    def _head(self, trained: frozenset[str]) -> Product:
        """Logits are computed at the L text positions only."""
        weight = "language" in trained and self.model.lora is None
        return Product(self.text_columns, self.language.width, self.language.vocab_size, bool(trained), weight)

    def _attention(self, k: int) -> float:
        positions = k + self.text_columns - 1
        return 4.0 * positions**2 * self.language.num_heads * self.language.head_width

    def _matrices(self) -> list[tuple[int, int]]:
        """(fan in, fan out) of a block: query, key, value, gate and up, which read it first, then output and down."""
        shape = self.language
        queries, keys = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
        read = [(shape.width, queries), (shape.width, keys), (shape.width, keys)]
        return [*read, (queries, shape.width), *[(shape.width, shape.hidden)] * 2, (shape.hidden, shape.width)]

    def _blocks_forward(self, k: int) -> float:
        positions, rank = k + self.text_columns - 1, self.model.lora.rank if self.model.lora else 0
        sizes = sum(fan_in * fan_out + rank * (fan_in + fan_out) for fan_in, fan_out in self._matrices())
        return self.language.num_layers * (2.0 * positions * sizes + self._attention(k))

    def _recomputed(self, k: int) -> float:
        """Blocks run again in backward, up to the input of their last product."""
        fan_in, fan_out = self._matrices()[-1]
        last = self.model.lora.rank * fan_out if self.model.lora else fan_in * fan_out
        return self._blocks_forward(k) - self.language.num_layers * 2.0 * (k + self.text_columns - 1) * last

    def _blocks_backward(self, k: int, trained: frozenset[str]) -> float:
        positions, rank = k + self.text_columns - 1, self.model.lora.rank if self.model.lora else 0
        adapted = rank > 0 and "language" in trained
        embedded = bool(trained & {"tower", "projector"}) or ("language" in trained and not rank)
        weights = "language" in trained and not rank
        total = 0.0
        for layer in range(self.language.num_layers):
            total += ATTENTION_BACKWARD * self._attention(k)
            for index, (fan_in, fan_out) in enumerate(self._matrices()):
                input_needs = embedded or layer > 0 or index > 2
                total += Product(positions, fan_in, fan_out, input_needs, weights).backward
                if rank:
                    total += Product(positions, fan_in, rank, input_needs, adapted).backward
                    total += Product(positions, rank, fan_out, input_needs or adapted, adapted).backward
        return total

    def _projector_products(self, k: int, trained: frozenset[str]) -> list[Product]:
        """The projector's weight matrices."""
        patches, width, out = self.num_patches, self.tower.width, self.language.width
        below, own = "tower" in trained, "projector" in trained
        match self.model.projector:
            case "pool":
                hidden = round(self.model.hidden_factor * width)
                gate = Product(k, width, hidden, below or own, own)
                return [gate, gate, Product(k, hidden, out, True, own)]
            case "mlp" | "pool_after":
                return [Product(patches, width, out, below, own), Product(patches, out, out, True, own)]
        products = [
            Product(patches, width, width, True, own),
            Product(k, width, width, True, own),
            Product(k, width, out, True, own),
        ]
        if self.model.query_keys == "features":
            products.append(Product(patches, width, width, True, own))
        return products

    def _query_product(self, k: int) -> float:
        """Scores, or the weighted sum, of the query projector's attention."""
        return 2.0 * k * self.num_patches * self.tower.width if self.model.projector == "query" else 0.0

    def _projector_forward(self, k: int) -> float:
        products = self._projector_products(k, frozenset())
        mixing = 2 if self.model.query_keys == "features" else 1
        return sum(product.forward for product in products) + mixing * self._query_product(k)

    def _projector_backward(self, k: int, trained: frozenset[str]) -> float:
        own, from_features = "projector" in trained, self.model.query_keys == "features"
        scores = (1 + own) * from_features
        mixing = 1 + (own or from_features)
        products = self._projector_products(k, trained)
        return sum(product.backward for product in products) + (scores + mixing) * self._query_product(k)


def _stem(tower: TowerShape) -> list[Product]:
    """Convolutions from pixels to patches, as matrix products."""
    if tower.kind != "tokendial_stem":
        return [Product(tower.num_patches, tower.patch**2 * tower.num_channels, tower.width, False, True)]
    return [
        Product(4 * tower.num_patches, 9 * tower.num_channels, tower.stem_width, False, True),
        Product(tower.num_patches, 9 * tower.stem_width, tower.width, True, True),
        Product(tower.num_patches, 9 * tower.width, tower.width, True, True),
    ]


def tower_parameters(tower: TowerShape) -> int:
    """Parameters of the tower, without a pooling head."""
    width = tower.width
    block = 4 * width * (width + 1) + 2 * width * tower.hidden + tower.hidden + width + 4 * width
    matrices = sum(product.fan_in * product.fan_out for product in _stem(tower))
    match tower.kind:
        case "tokendial_stem":
            return matrices + tower.stem_width + 2 * width + tower.num_layers * block + 2 * width
        case "clip_vision_model":
            return matrices + width + (tower.num_patches + 1) * width + tower.num_layers * block + 4 * width
    return matrices + width + tower.num_patches * width + tower.num_layers * block + 2 * width


def projector_parameters(model: ModelConfig, width: int, out: int) -> int:
    """Parameters of the projector from tower width C to language width D."""
    match model.projector:
        case "pool":
            hidden = round(model.hidden_factor * width)
            return 2 * width + 2 * hidden * (width + 1) + out * (hidden + 1)
        case "mlp" | "pool_after":
            return out * (width + 1) + out * (out + 1)
    return model.max_queries * width + 6 * width + 4 * width * (width + 1) + width * out


def language_parameters(shape: LanguageShape) -> int:
    """Parameters of the language model and its head; a tied head is counted once. Adapters are not counted."""
    queries, keys = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
    block = shape.width * (2 * queries + 2 * keys) + 3 * shape.width * shape.hidden + 2 * shape.width
    if shape.kind == "qwen2":
        block += queries + 2 * keys
    if shape.kind == "qwen3":
        block += 2 * shape.head_width
    if shape.attention_bias:
        block += queries + 2 * keys + shape.width
    if shape.mlp_bias:
        block += 2 * shape.hidden + shape.width
    embeddings = shape.vocab_size * shape.width * (1 if shape.tied else 2)
    return embeddings + shape.num_layers * block + shape.width
