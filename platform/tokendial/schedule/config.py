"""The token schedule S = (counts, law, mix, combine, distil) as frozen data."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(gt=0, le=65536, strict=True)]
Weight = Annotated[float, Field(ge=0)]
Mix = Literal["one", "all", "smallest", "sandwich", "sample", "stratified"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Phase(_Frozen):
    until: Annotated[float, Field(gt=0, le=1)] = Field(description="end of the phase, as a fraction of the run")
    weights: tuple[Weight, ...] = Field(description="weights over the counts at the end of the phase")
    ease: Literal["step", "linear", "cosine"] = Field(
        default="step",
        description="how the weights get there from the phase before: at once, linearly or along a half cosine",
    )


class DistilConfig(_Frozen):
    teacher: Count | Literal["max"] = Field(default="max", description="count whose logits teach, the same weights")
    weight: Annotated[float, Field(gt=0)] = Field(default=1.0, description="weight of the distillation loss")
    temperature: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="softmax temperature of teacher and student"
    )


class ScheduleConfig(_Frozen):
    preset: str = Field(default="custom", description="name of the preset the fields started from")
    counts: tuple[Count, ...] = Field(description="count set: admissible token counts, strictly increasing")
    weights: tuple[Weight, ...] = Field(description="law: weights over the counts, normalised by their sum")
    temperature: Annotated[float, Field(gt=0)] = Field(default=1.0, description="p ∝ weight^(1 / temperature)")
    temperature_end: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="temperature at the end of the run, reached linearly; null: constant"
    )
    phases: tuple[Phase, ...] = Field(
        default=(), description="phase table over training progress; empty: `weights` throughout"
    )
    mix: Mix = Field(
        default="one",
        description="one: a count per global batch; all: every count for every example; smallest: smallest + drawn; "
        "sandwich: smallest + largest + random; sample: a count per example (prefix reducers); stratified: fixed "
        "shares of the global batch",
    )
    random_counts: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=1, description="random counts of a `sandwich` step"
    )
    stratum: Annotated[int, Field(gt=0, strict=True)] = Field(
        default=1,
        description="`stratified` shares are multiples of this many examples (micro_batch × workers divides it)",
    )
    loss_weights: tuple[Weight, ...] | None = Field(default=None, description="loss weight per count; null: 1 each")
    importance: bool = Field(
        default=False, description="divide loss weights by the draw probability (unbiased for any law)"
    )
    distil: DistilConfig | None = Field(default=None, description="distillation edge between counts; null: none")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        counts = list(self.counts)
        if not counts or counts != sorted(set(counts)):
            raise ValueError(f"schedule.counts must be strictly increasing and not empty, got {counts}")
        self._check_weights("weights", self.weights)
        for index, phase in enumerate(self.phases):
            self._check_weights(f"phases[{index}].weights", phase.weights)
        ends = [phase.until for phase in self.phases]
        if any(later <= earlier for earlier, later in pairwise(ends)):
            raise ValueError(f"schedule.phases overlap: `until` must be strictly increasing, got {ends}")
        if ends and ends[-1] != 1:
            raise ValueError(f"schedule.phases leave a gap: the last `until` must be 1, got {ends[-1]}")
        if self.loss_weights is not None:
            self._check_weights("loss_weights", self.loss_weights)
        laws = [phase.weights for phase in self.phases] or [self.weights]
        if self.importance and any(0 in law for law in laws):
            raise ValueError(f"schedule.importance divides by draw probabilities, so no weight may be 0, got {laws}")
        self._check_effects()
        if self.distil is not None and self.distil.teacher != "max" and self.distil.teacher not in counts:
            raise ValueError(f"schedule.distil.teacher {self.distil.teacher} is not one of the counts {counts}")
        if self.mix == "sandwich" and self.random_counts > max(0, len(counts) - 2):
            raise ValueError(
                f"schedule.random_counts {self.random_counts} is more than the {max(0, len(counts) - 2)} counts "
                f"between the smallest and the largest of {counts}"
            )
        return self

    def _check_effects(self) -> None:
        """A setting that the mix would ignore is refused rather than accepted without effect."""
        if self.importance and self.mix in ("all", "smallest", "sandwich"):
            raise ValueError(
                f"schedule.importance has no effect with mix {self.mix!r}, whose counts are not weighted by their draw "
                "probability; use mix one, sample or stratified"
            )
        if self.random_counts != 1 and self.mix != "sandwich":
            raise ValueError(
                f"schedule.random_counts {self.random_counts} has no effect with mix {self.mix!r}; only 'sandwich' "
                "draws random counts"
            )
        if self.stratum != 1 and self.mix != "stratified":
            raise ValueError(
                f"schedule.stratum {self.stratum} has no effect with mix {self.mix!r}; only 'stratified' has strata"
            )

    def _check_weights(self, name: str, weights: tuple[float, ...]) -> None:
        if len(weights) != len(self.counts):
            raise ValueError(
                f"schedule.{name} has {len(weights)} entries for {len(self.counts)} counts {list(self.counts)}"
            )
        if sum(weights) <= 0:
            raise ValueError(f"schedule.{name} sums to zero: {list(weights)}; at least one must be positive")
