"""The configuration of a run as frozen data: one pydantic model per part, a meaning and a unit on every field."""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokendial.schedule.config import ScheduleConfig
from tokendial.schedule.draw import TokenSchedule
from tokendial.schedule.stats import expected_passes, mean_law

Positive = Annotated[int, Field(gt=0, strict=True)]
NonNegative = Annotated[int, Field(ge=0, strict=True)]
Fraction01 = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys and non-finite numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class TowerConfig(Section):
    source: str | None = Field(
        default=None, description="local folder or hub id of a vision tower; null: random weights"
    )
    kind: str = Field(default="siglip_vision_model", description="transformers model type used where `source` is null")
    config: dict[str, Any] = Field(
        default_factory=dict, description="arguments of that model type's configuration, or changes to the source's"
    )


class LanguageConfig(Section):
    source: str | None = Field(default=None, description="local folder or hub id of a causal LM; null: random weights")
    kind: str = Field(default="llama", description="transformers model type used where `source` is null")
    config: dict[str, Any] = Field(
        default_factory=dict, description="arguments of that model type's configuration, or changes to the source's"
    )
    tokenizer: str | None = Field(
        default=None,
        description="local folder or hub id of a tokenizer; null: the one beside the weights, or the workload's own",
    )


class LoraConfig(Section):
    rank: Positive = Field(default=8, description="rank of the adapters on the language model")
    alpha: PositiveFloat = Field(default=16.0, description="scale of the adapters; the update is alpha / rank")
    dropout: Fraction01 = Field(default=0.0, description="dropout probability before the adapters")


class ModelConfig(Section):
    vision: TowerConfig = Field(default_factory=TowerConfig, description="vision tower")
    language: LanguageConfig = Field(default_factory=LanguageConfig, description="language model")
    projector: Literal["pool", "query", "pool_after", "mlp"] = Field(
        default="pool",
        description="pool: TokenFLEX; query: MQT prefix queries; pool_after: M3; mlp: LLaVA's fixed baseline",
    )
    pooling: Literal["adaptive_avg", "resize_then_avg"] = Field(
        default="adaptive_avg",
        description="pooling rule of `pool`: torch's windows, or the release's resize then average",
    )
    hidden_factor: PositiveFloat = Field(default=3.0, description="hidden width of the projector, in tower widths")
    max_queries: Positive = Field(
        default=256, description="learned queries of the `query` projector = its largest count"
    )
    query_keys: Literal["position", "features"] = Field(
        default="position",
        description="keys of the `query` projector: positions alone (as released), or with image features",
    )
    feature_layer: int = Field(default=-1, description="tower layer whose features are projected; -1: the last")
    init_from: str | None = Field(
        default=None, description="LLaVA-layout folder or hub id whose weights the run starts from"
    )
    lora: LoraConfig | None = Field(
        default=None, description="train low-rank adapters instead of the whole language model"
    )


# Settings that one projector has and the others ignore.
PROJECTOR_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "pool": ("pooling", "hidden_factor"),
    "query": ("max_queries", "query_keys"),
    "pool_after": (),
    "mlp": (),
}


class DataConfig(Section):
    """What every workload's data has; a workload subclasses it with fields of its own."""

    path: str | None = Field(default=None, description="folder or URI of the data; null: the embedded data")
    text_tokens: Positive = Field(
        default=48, description="text tokens each example is padded to, placeholders excluded"
    )
    num_workers: NonNegative = Field(default=0, description="data processes per training worker")


class OptimizerConfig(Section):
    lr: PositiveFloat = Field(default=1e-3, description="peak learning rate")
    tower_lr_factor: PositiveFloat = Field(
        default=1.0, description="learning rate of the vision tower, in units of `lr`"
    )
    projector_lr_factor: PositiveFloat = Field(
        default=1.0, description="learning rate of the projector, in units of `lr`"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.01, description="decoupled weight decay of matrices")
    betas: tuple[Momentum, Momentum] = Field(default=(0.9, 0.95), description="AdamW's momentum coefficients")
    eps: PositiveFloat = Field(default=1e-8, description="AdamW's denominator floor")
    clip: Annotated[float, Field(ge=0)] = Field(default=1.0, description="gradient-norm limit; 0: none")
    shape: Literal["one_cycle", "cosine", "constant"] = Field(default="one_cycle", description="learning-rate shape")
    warmup: Fraction01 = Field(default=0.1, description="share of each stage spent warming up")
    floor: Fraction01 = Field(default=0.0, description="final learning rate, in units of the peak")

    @model_validator(mode="after")
    def _floor_is_reached(self) -> Self:
        if self.floor and self.shape == "constant":
            raise ValueError(f"optimizer.floor {self.floor} has no effect with shape 'constant', which does not fall")
        return self


class StageConfig(Section):
    name: str = Field(description="name of the stage in metrics")
    share: PositiveFloat = Field(description="share of the run's optimizer steps, relative to the other stages")
    train: tuple[Literal["tower", "projector", "language"], ...] = Field(
        default=("tower", "projector", "language"),
        min_length=1,
        description="parts that are trained; the others are frozen",
    )
    objective: Literal["language", "tower"] = Field(
        default="language",
        description="language: answer tokens; tower: the workload's own warm-up task on the tower alone",
    )
    lr_factor: PositiveFloat = Field(default=1.0, description="learning rate of the stage, in units of `optimizer.lr`")

    @model_validator(mode="after")
    def _trains_what_it_scores(self) -> Self:
        if self.objective == "tower" and "tower" not in self.train:
            raise ValueError(
                f"stages: {self.name!r} has objective 'tower' but trains only {', '.join(self.train)}; "
                'give "train": ["tower"]'
            )
        return self


class ZeroConfig(Section):
    stage: Literal[0, 1, 2, 3] = Field(default=1, description="DeepSpeed ZeRO stage")
    offload_optimizer: bool = Field(default=False, description="keep optimizer states in CPU memory")
    offload_parameters: bool = Field(default=False, description="keep parameters in CPU memory (stage 3)")

    @model_validator(mode="after")
    def _offload_fits_stage(self) -> Self:
        if self.offload_parameters and self.stage != 3:
            raise ValueError(f"offload_parameters needs zero.stage 3, got stage {self.stage}")
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer needs zero.stage 1, 2 or 3, got stage 0")
        return self


class BudgetConfig(Section):
    """Exactly one bound is given; the horizon of a FLOP or token bound is simulated before step 0.

    A bound in seconds comes with a horizon, and whichever of the two is reached first ends the run.
    """

    steps: Positive | None = Field(default=None, description="optimizer steps")
    flops: PositiveFloat | None = Field(default=None, description="FLOPs as executed (1 multiply-add = 2)")
    tokens: Positive | None = Field(default=None, description="visual + text + pad tokens through the language model")
    seconds: PositiveFloat | None = Field(
        default=None, description="seconds of training; phases follow `horizon`, at which the run ends too"
    )
    horizon: Positive | None = Field(
        default=None, description="planned optimizer steps: given with `seconds`, else computed"
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        given = [name for name in ("steps", "flops", "tokens", "seconds") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"budget needs exactly one of steps, flops, tokens, seconds; got {', '.join(given) or 'none'}"
            )
        if self.seconds is not None and self.horizon is None:
            raise ValueError("budget.seconds needs budget.horizon, the optimizer steps that phases are fractions of")
        return self


class CheckpointConfig(Section):
    every: Positive = Field(default=100, description="optimizer steps between checkpoints")
    keep: Positive = Field(default=2, description="newest checkpoints kept")


class EvaluationConfig(Section):
    counts: tuple[Positive, ...] = Field(description="evaluation grid: token counts, trained or not")
    validation_examples: Positive = Field(
        default=512, description="validation examples scored for the curve during search"
    )
    test_examples: Positive = Field(default=2048, description="test examples scored for the final curve")
    split: Literal["test", "validation"] = Field(
        default="test", description="split of the final curve; searches use validation"
    )
    batch_size: Positive = Field(default=64, description="examples scored at once")
    every: NonNegative = Field(default=0, description="optimizer steps between validation curves; 0: only at the end")
    max_new_tokens: Positive = Field(default=4, description="longest generated answer, tokens")
    table_examples: NonNegative = Field(default=32, description="fixed examples in the examples × counts table")

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        if not self.counts or list(self.counts) != sorted(set(self.counts)):
            raise ValueError(f"evaluation.counts must be strictly increasing and not empty, got {list(self.counts)}")
        return self


class TrackingConfig(Section):
    uri: str | None = Field(default=None, description="MLflow tracking URI; null: sqlite under the runs folder")
    experiment: str | None = Field(default=None, description="MLflow experiment; null: the experiment's name")
    strict: bool = Field(
        default=False, description="fail at start where the server is away instead of keeping records locally"
    )
    price_per_hour: Annotated[float, Field(ge=0)] | None = Field(default=None, description="money per worker-hour")
    registered_model: str | None = Field(default=None, description="registry name; null: the workload's name")


D = TypeVar("D", bound=DataConfig)


class RunConfig(Section, Generic[D]):
    """A whole run. An experiment is a function that returns one."""

    experiment: str = Field(description="experiment this configuration came from: a name or module:function")
    workload: str = Field(description="workload: a name or module:object")
    description: str = Field(default="", description="one line for lists")
    seed: NonNegative = Field(default=0, description="seeds initialisation, data order and draws through named streams")
    workers: Positive = Field(default=1, description="training workers")
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto",
        description="auto: a GPU each where the cluster has as many, or may grow to; gpu: wait for them; cpu: none",
    )
    global_batch: Positive = Field(default=32, description="examples per optimizer step")
    micro_batch: Positive | None = Field(
        default=None, description="examples per worker and pass; null: global ÷ workers"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on GPUs, fp32 on CPUs")
    activation_checkpointing: bool = Field(
        default=False, description="recompute language-model activations in backward"
    )
    max_failures: NonNegative = Field(default=2, description="worker failures survived before the run fails")
    model: ModelConfig = Field(description="model")
    schedule: ScheduleConfig = Field(description="token schedule")
    data: D = Field(description="data")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="optimizer")
    stages: tuple[StageConfig, ...] = Field(
        default=(StageConfig(name="all", share=1.0),), description="recipe: stages run one after another"
    )
    zero: ZeroConfig = Field(default_factory=ZeroConfig, description="DeepSpeed ZeRO")
    budget: BudgetConfig = Field(description="what the run may spend")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="checkpoints")
    evaluation: EvaluationConfig = Field(description="evaluation")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="tracking")

    @property
    def rows(self) -> int:
        """Examples per worker and pass."""
        return self.micro_batch or self.global_batch // self.workers

    @property
    def accumulation(self) -> int:
        """Passes per optimizer step on each worker."""
        return self.global_batch // (self.rows * self.workers)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.global_batch % self.workers:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of workers {self.workers}, so workers would "
                "have unequal shares of a step"
            )
        per_pass = (self.micro_batch or 1) * self.workers
        if self.global_batch % per_pass:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of micro_batch × workers = "
                f"{self.micro_batch} × {self.workers} = {per_pass}, so gradient accumulation is not whole"
            )
        if (self.device, self.precision) == ("cpu", "bf16"):
            raise ValueError("precision 'bf16' needs GPUs, and device is 'cpu'; use precision fp32 or auto")
        unit = self.rows * self.workers
        if self.schedule.mix == "stratified" and self.schedule.stratum % unit:
            raise ValueError(
                f"schedule.stratum {self.schedule.stratum} is not a multiple of micro_batch × workers = {unit}"
            )
        if self.schedule.mix == "stratified" and self.global_batch % self.schedule.stratum:
            raise ValueError(
                f"schedule.stratum {self.schedule.stratum} does not divide global_batch {self.global_batch}"
            )
        if starved := _starved(self.schedule, self.global_batch):
            raise ValueError(
                f"schedule.stratum {self.schedule.stratum} leaves counts {starved} without a share of global_batch "
                f"{self.global_batch}; use a smaller stratum or a larger batch"
            )
        if len({stage.name for stage in self.stages}) != len(self.stages) or not self.stages:
            raise ValueError(f"stages need distinct names and at least one stage, got {[s.name for s in self.stages]}")
        if all(stage.objective == "tower" for stage in self.stages):
            raise ValueError(
                f"stages {[s.name for s in self.stages]} all have objective 'tower', so nothing would learn to answer; "
                "add one with objective 'language'"
            )
        return self


def _starved(config: ScheduleConfig, global_batch: int) -> list[int]:
    """Counts that the law draws but that rounding to whole strata never gives an example, at any of 100 points."""
    if config.mix != "stratified":
        return []
    schedule = TokenSchedule(config)
    rows = zip(config.counts, mean_law(schedule, 100), expected_passes(schedule, 100, global_batch), strict=True)
    return [count for count, share, given in rows if share and not given]
