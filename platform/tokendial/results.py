"""What a run found, as one JSON object: the last line of `train`, `eval` and `report --json`, and `result.json`."""

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tokendial.curve import CurvePoint, Difference, Interval, Matrix, Rise, TwinKind, autc, autc_weights
from tokendial.ledger import Ledger

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class RunResult(BaseModel):
    """Everything a reader of one run needs; paths are absolute, counts are the keys of `curve`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    run_id: str | None = Field(description="MLflow run id; null while the tracking server has not been reached")
    name: str = Field(description="name of the run")
    status: Status = Field(description="RUNNING, FINISHED, FAILED or KILLED")
    autc: float | None = Field(default=None, description="area under the token curve over log2 k, in [0, 1]")
    autc_ci: Interval | None = Field(default=None, description="95 % interval of `autc`")
    curve: dict[int, CurvePoint] = Field(default_factory=dict, description="quality at each count of the grid")
    rises: dict[int, Rise] = Field(
        default_factory=dict, description="paired difference at each trained count to the trained count before it"
    )
    groups: dict[str, dict[int, float]] = Field(default_factory=dict, description="quality by question type and count")
    extras: dict[str, dict[int, float]] = Field(default_factory=dict, description="secondary measures by count")
    metric: str = Field(default="", description="primary metric that quality is")
    split: str = Field(default="", description="split the curve was measured on")
    data: str = Field(default="", description="SHA-256 of what the examples of that split are made from")
    workload: str = Field(default="", description="workload")
    experiment: str = Field(default="", description="experiment the configuration came from")
    schedule: str = Field(default="", description="name of the token schedule")
    variant: str = Field(
        default="", description="hash of the configuration without its seed: equal where only seeds differ"
    )
    parent: str | None = Field(default=None, description="run whose weights this one started from; null: fresh ones")
    lineage: str = Field(
        default="", description="hash of the runs that the weights came from without their seeds; empty: fresh ones"
    )
    trained_counts: tuple[int, ...] = Field(default=(), description="counts the schedule trained at")
    seed: int | None = Field(default=None, description="seed of initialisation, data order and draws")
    steps: int = Field(default=0, description="optimizer steps taken")
    flops: float = Field(default=0.0, description="training FLOPs as executed")
    seconds: float = Field(default=0.0, description="wall seconds of the optimizer steps")
    ledger: dict[str, Any] = Field(default_factory=dict, description="what the run spent, per count and in all")
    twins: TwinKind | None = Field(default=None, description="what twins shared with the flexible run: steps or flops")
    regret: dict[int, Difference] = Field(default_factory=dict, description="twin − flexible quality, by count")
    matrix: Matrix | None = Field(default=None, description="trained-at × served-at qualities")
    figures: dict[str, str] = Field(default_factory=dict, description="paths of figures by name")
    model_dir: str | None = Field(default=None, description="exported Hugging Face folder")
    commit: str = Field(default="", description="commit the run was sent from")
    error: str | None = Field(default=None, description="why the run failed, one sentence")

    @field_validator("ledger")
    @classmethod
    def _readable_ledger(cls, document: dict[str, Any]) -> dict[str, Any]:
        try:
            return Ledger.from_json(document).to_json() if document else {}
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a ledger: {error}") from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.autc is None) != (not self.curve):
            raise ValueError("`autc` and `curve` come together")
        if not self.curve:
            return self
        autc_weights(sorted(self.curve))
        for count, point in self.curve.items():
            if not (0 <= point.quality <= 1 and point.ci[0] <= point.ci[1] and point.n > 0):
                raise ValueError(f"the curve's point at {count} is not one: {point}")
        if self.autc is not None and abs(autc(self.curve) - self.autc) > 1e-6:
            raise ValueError(f"autc {self.autc} is not the area under the curve, {autc(self.curve)}")
        return self

    @property
    def spent(self) -> Ledger | None:
        """The ledger as an object."""
        return Ledger.from_json(self.ledger) if self.ledger else None

    def to_line(self) -> str:
        """The object on one line."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, separators=(", ", ": "))


@dataclass(frozen=True)
class ExampleAnswers:
    """One fixed example with the model's answer and its quality at every count; `image_png` is the encoded image."""

    image_png: bytes
    question: str
    target: str
    answers: dict[int, str]
    quality: dict[int, float]
    group: str = ""


def write_result(path: Path, result: RunResult) -> None:
    """Write `result.json` whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(path)


def read_result(path: Path) -> RunResult:
    """Read `result.json`; raises FileNotFoundError or pydantic's ValidationError."""
    return RunResult.model_validate_json(path.read_text("utf-8"))


def write_examples(path: Path, examples: Sequence[ExampleAnswers]) -> None:
    """Write the examples × counts table as JSON with images in base64."""
    rows = [{**asdict(example), "image_png": b64encode(example.image_png).decode()} for example in examples]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    temporary.replace(path)


def read_examples(path: Path) -> list[ExampleAnswers]:
    """Read what `write_examples` wrote."""
    return [
        ExampleAnswers(
            image_png=b64decode(row["image_png"]),
            question=row["question"],
            target=row["target"],
            answers={int(count): answer for count, answer in row["answers"].items()},
            quality={int(count): value for count, value in row["quality"].items()},
            group=row["group"],
        )
        for row in json.loads(path.read_text("utf-8"))
    ]
