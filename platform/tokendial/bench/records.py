"""Rows of measurements: kept per machine and part with their origin, printed as a table, quoted in the README.

`benchmarks/train.json` maps a machine to its parts, a part to {commit, date, versions, load_before, load_after, rows}.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from rich.table import Table

from tokendial import identity
from tokendial.experiments import ConfigError
from tokendial.machine import cpus
from tokendial.versions import versions

PEER_PACKAGES = ("accelerate",)
# Six significant digits: more is noise.
Rounded = Annotated[float, AfterValidator(lambda value: float(f"{value:.6g}"))]


def chosen_parts(only: str, known: Mapping[str, str]) -> list[str]:
    """The parts that `--only` names, in the bench's order; raises ConfigError."""
    wanted = only.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"--only {only!r} names {unknown[0]!r}; choose from {', '.join(known)}")
    return [name for name in known if name in wanted]


class Row(BaseModel):
    """One figure: a median with its 20th and 80th percentile over `num_samples`, and the target it is held to.

    `floor_s` is what the matrix products of the step alone would take at the rate measured in the same process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    setting: str
    value: Rounded
    low: Rounded
    high: Rounded
    unit: str
    num_samples: int
    at_most: float | None = None
    at_least: float | None = None
    floor_s: Rounded | None = None
    samples: dict[str, list[Rounded]] = {}

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.at_most is None and self.at_least is None:
            return None
        most = inf if self.at_most is None else self.at_most
        least = -inf if self.at_least is None else self.at_least
        return least <= self.value <= most

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    @property
    def figure(self) -> str:
        """The value as it is quoted: 1.034×, 0.91, 160 ms, 23.4 s, 0.41 %."""
        digits = {"ratio": "{:.3f}×", "s": "{:.3g} s", "ms": "{:.3g} ms", "share": "{:.2%}", "MiB": "{:.0f} MiB"}
        digits |= {"MB": "{:.2g} MB", "/s": "{:.4g}/s"}
        return digits[self.unit].format(self.value)


class Section(BaseModel):
    """The rows of one part of a measurement, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commit: str
    date: str
    versions: dict[str, str]
    load_before: float
    load_after: float
    rows: tuple[Row, ...]


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Median, 20th and 80th percentile and number of samples, as fields of a row."""
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return {
        "value": statistics.median(samples),
        "low": fifths[0],
        "high": fifths[3],
        "num_samples": len(samples),
    }


def single(
    name: str,
    setting: str,
    value: float,
    unit: str,
    at_most: float | None = None,
    at_least: float | None = None,
    num_samples: int = 1,
) -> Row:
    """A figure without a spread."""
    return Row(
        name=name, setting=setting, value=value, low=value, high=value, unit=unit, num_samples=num_samples,
        at_most=at_most, at_least=at_least,
    )  # fmt: skip


def load() -> float:
    """Runnable processes on the machine, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def section(rows: Sequence[Row], load_before: float) -> Section:
    """The rows with versions, commit (marked where the tree has changes), date, and the load they were got under."""
    who = identity.capture(Path(__file__).parent)
    return Section(
        commit=who.commit + (" with changes" if who.dirty else "") or "unknown",
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        versions={**versions(), **_peers()},
        load_before=load_before,
        load_after=load(),
        rows=tuple(rows),
    )


def _peers() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in PEER_PACKAGES}


def machine() -> str:
    """The processor's name, and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {cpus()} cores"


def read(path: Path) -> dict[str, dict[str, Section]]:
    """Machine → part → section; empty where nothing was recorded."""
    if not path.exists():
        return {}
    document: Mapping[str, Mapping[str, Any]] = json.loads(path.read_text("utf-8"))
    return {name: {part: Section.model_validate(s) for part, s in parts.items()} for name, parts in document.items()}


def keep(path: Path, part: str, found: Section, where: str | None = None) -> None:
    """Write a part of this machine; its other parts and other machines stay as they are."""
    document = read(path)
    document.setdefault(where or machine(), {})[part] = found
    path.parent.mkdir(parents=True, exist_ok=True)
    machines = (f" {_json(name)}: {{\n{_parts(document[name])}\n }}" for name in sorted(document))
    path.write_text("{\n" + ",\n".join(machines) + "\n}\n", "utf-8")


def _parts(parts: Mapping[str, Section]) -> str:
    """JSON with a line for each row, so that a change of a figure is a change of a line."""
    texts = []
    for part in sorted(parts):
        origin = _json(parts[part].model_dump(mode="json", exclude={"rows"})).removesuffix("}")
        rows = ",\n".join(f"   {_json(row.model_dump(mode='json'))}" for row in parts[part].rows)
        texts.append(f'  {_json(part)}: {origin}, "rows": [\n{rows}\n  ]}}')
    return ",\n".join(texts)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    made = Table("figure", "setting", "median", "20–80 %", "target", "", "floor", box=None, pad_edge=False)
    verdicts = {True: "met", False: "missed", None: ""}
    for row in rows:
        around = f"{row.low:.3g}–{row.high:.3g}"
        floor = "" if row.floor_s is None else f"{row.floor_s * 1e3:.3g} ms"
        made.add_row(row.name, row.setting, row.figure, around, row.target, verdicts[row.met], floor)
    return made


def markdown(parts: Mapping[str, Section]) -> str:
    """The figures that have a target, as the README quotes them."""
    lines = ["| figure | setting | measured | target |", "|---|---|---|---|"]
    for part in sorted(parts):
        for row in parts[part].rows:
            if row.met is not None:
                lines.append(f"| {row.name} | {row.setting} | {row.figure} | {row.target} |")
    return "\n".join(lines)
