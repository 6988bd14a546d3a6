"""What an operator may set of an endpoint, as `tokendial serve KEY=VALUE` takes it. Imports no torch and no ray."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokendial.experiments import ConfigError, sentence
from tokendial.serve.settings import EngineSettings

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
# A full domain name, in lower case.
HOST = re.compile(r"(?=.{1,253}\Z)(?!-)[a-z0-9-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9-]{1,63}(?<!-))+")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ReplicaSettings(BaseModel):
    """How many engines there are, and when that changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least: Positive = Field(default=1, description="engine replicas kept")
    most: Positive = Field(default=1, description="engine replicas at most")
    target_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5,
        description="visual tokens wanted, bent and refused ones too, as a share of what all slots hold at full count",
    )
    up_after_s: Seconds = Field(default=5.0, description="seconds of too much before replicas are added")
    down_after_s: Seconds = Field(default=120.0, description="seconds of too little before replicas are taken away")
    cpus: Annotated[float, Field(gt=0)] = Field(default=1, description="CPUs of a replica")
    gpus: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="GPUs of a replica; null: one where the cluster has any"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.most < self.least:
            raise ValueError(f"replicas.most = {self.most} must be at least replicas.least = {self.least}")
        return self


class ServeSettings(BaseModel):
    """An endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, Field(min_length=1)] = Field(
        default="127.0.0.1", description="address to listen on; off loopback a key is required"
    )
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(default=8000, description="port; 0: any that is free")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = Field(
        default=None, description="name of the model in requests; null: the registered name, or the workload's"
    )
    keys: bool = Field(default=False, description="ask for a key on loopback too")
    processes: Positive = Field(default=1, description="endpoint processes; each holds its part of a key's rate")
    new_tokens: Positive = Field(default=64, description="longest answer where a request does not say, tokens")
    timeout_s: Seconds = Field(default=60.0, description="seconds after which a request that has not started is busy")
    drain_s: Seconds = Field(
        default=300.0, description="seconds after which what a version or replica that ends still writes is cut"
    )
    max_body_mib: Positive = Field(default=32, description="largest body, MiB")
    max_body_s: Seconds = Field(default=10.0, description="seconds a body may take to arrive")
    max_requests: Positive = Field(default=1024, description="requests in work in one endpoint process")
    max_held_mib: Positive = Field(default=512, description="bodies and fetched images of the requests in work, MiB")
    may_bend: bool = Field(default=False, description="whether requests without a key, and without a word, may be bent")
    image_hosts: tuple[str, ...] = Field(
        default=(), description="hosts that images may be fetched from, https only, separated by commas"
    )
    trace_share: Share = Field(default=0.01, description="share of answers whose trace goes to MLflow")
    start_timeout_s: Seconds = Field(
        default=600.0, description="seconds a version may take to start, and its golden answers again"
    )
    follow_s: Seconds = Field(default=5.0, description="seconds between looks at the alias that is followed")
    engine: EngineSettings = Field(default_factory=EngineSettings, description="engine of each replica")
    replicas: ReplicaSettings = Field(default_factory=ReplicaSettings, description="engine replicas")

    @field_validator("image_hosts", mode="before")
    @classmethod
    def _separated(cls, given: Any) -> Any:
        return tuple(filter(None, given.split(","))) if isinstance(given, str) else given

    @field_validator("image_hosts")
    @classmethod
    def _names(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(host.lower() for host in given)
        for host in hosts:
            if not HOST.fullmatch(host):
                raise ValueError(f"image host {host!r} must be a full domain name alone, e.g. images.example.com")
        return hosts

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        if self.new_tokens > self.engine.max_new_tokens:
            most = self.engine.max_new_tokens
            raise ValueError(f"new_tokens = {self.new_tokens} must be at most engine.max_new_tokens = {most}")
        if self.max_held_mib < self.max_body_mib:
            largest = self.max_body_mib
            raise ValueError(f"max_held_mib = {self.max_held_mib} must be at least max_body_mib = {largest}")
        return self

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK


def serve_settings(overrides: Sequence[str], **given: Any) -> ServeSettings:
    """Settings from dotted KEY=VALUE overrides over `given`; raises ConfigError naming key and value."""
    document: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r} is not of the form KEY=VALUE, e.g. engine.governor=shadow")
        place = document
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{key!r} is no setting; `tokendial serve --help` lists them")
        place[last] = None if value == "null" else value
    try:
        return ServeSettings.model_validate(document)
    except ValidationError as error:
        said = sentence(error).replace("`tokendial train EXPERIMENT --help`", "`tokendial serve --help`")
        raise ConfigError(said) from None


def keys(model: type[BaseModel] = ServeSettings, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting as (dotted key, default, meaning)."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
            continue
        default = "null" if field.default is None else str(field.default)
        choices = getattr(field.annotation, "__args__", ()) if _is_literal(field.annotation) else ()
        yield f"{prefix}{name}", default, f"{field.description}{' (' + ' | '.join(choices) + ')' if choices else ''}"


def _is_literal(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is Literal
