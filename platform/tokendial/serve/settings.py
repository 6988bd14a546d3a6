"""What an operator may set of an engine. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokendial.serve.schema import MAX_IMAGES, MAX_NEW_TOKENS

Positive = Annotated[int, Field(gt=0)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class EngineSettings(BaseModel):
    """Settings of one replica's engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slots: Positive = Field(default=32, description="answers written at once")
    max_queue: Positive = Field(default=128, description="requests waiting at once; more are refused as busy")
    slots_mib: Positive | None = Field(
        default=None,
        description="MiB of keys and values that all slots hold at most, which bounds the longest request; null: half "
        "of the GPU's memory that is free beside the model, and no bound on a CPU",
    )
    prefill_tokens: Positive = Field(
        default=16384, description="prompt positions, visual tokens included, read in one pass"
    )
    patience_ms: Milliseconds = Field(
        default=100, description="milliseconds a request waits for a larger batch of others before it goes first"
    )
    threads: Positive | None = Field(default=None, description="CPU threads of the model; null: the process's CPUs")
    governor: Literal["off", "shadow", "on"] = Field(
        default="on", description="off: every request at full count; shadow: record what would have been bent"
    )
    target_ms: Milliseconds = Field(
        default=1000, description="milliseconds of a whole answer that the governor aims at where a request names none"
    )
    floor_quality: Share = Field(default=0.0, description="no request is bent below this expected quality")
    replay_share: Share = Field(
        default=0.05, description="share of bent greedy answers written again at full count when idle, to compare"
    )
    min_agreement: Share = Field(
        default=0.0,
        description="a count whose bent answers agree less often with full ones is not bent to; never less than the "
        "ladder promises",
    )
    max_images: Positive = Field(default=4, le=MAX_IMAGES, description=f"images of one request, up to {MAX_IMAGES}")
    max_new_tokens: Positive = Field(
        default=1024, le=MAX_NEW_TOKENS, description=f"longest answer, tokens, up to {MAX_NEW_TOKENS}"
    )
    max_prompt_tokens: Positive = Field(
        default=8192, description="longest prompt at full count, tokens, visual ones included"
    )
    cache_mib: Annotated[int, Field(ge=0)] = Field(
        default=256, description="MiB kept of decoded images, encoder outputs and projected tokens; 0: none"
    )
