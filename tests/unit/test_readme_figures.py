"""The README's figures are those of the rows in benchmarks/, rounded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokendial.bench.records import read

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "README.md").read_text("utf-8").splitlines()
# Of the machine that the README speaks of; rows of others may stand beside.
BENCHES = {name: read(ROOT / "benchmarks" / f"{name}.json")["AMD EPYC, 2 cores"] for name in ("train", "serve", "jobs")}


def document(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text("utf-8"))


def rows(bench: str, part: str, name: str, setting: str = "") -> list[float]:
    """The values of a part's rows of that name, with these words in their setting."""
    return [each.value for each in BENCHES[bench][part].rows if each.name == name and setting in each.setting]


def row(bench: str, part: str, name: str, setting: str = "") -> float:
    (found,) = rows(bench, part, name, setting)
    return found


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def points(value: float, digits: int = 1) -> str:
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def spans(values: list[float]) -> str:
    return f"{100 * min(values):.0f}–{100 * max(values):.0f} %"


def edge(part: str) -> tuple[str, ...]:
    """Share of what Ray and the model allow, ratio to uvicorn, and what one client waits longer."""
    return (
        f"{row('serve', part, 'requests/s, share of the allowed'):.2f} (target",
        f"{row('serve', part, 'requests/s against uvicorn'):.2f}×",
        f"{row('serve', part, 'added over the floor'):.1f} ms (target",
    )


def late(governor: str) -> list[float]:
    """Shares over the target of time, at the loads that full counts cannot be served at."""
    found = rows("serve", "governor", "accepted over target", f"governor {governor}")
    return found[:3]


def projector(field: str) -> list[float]:
    found = document("kernels")["AMD EPYC, AVX512, 1 thread"]["rows"]
    return [each[field] for each in found if (each["op"], each["provider"]) == ("projector", "tokendial")]


def found_over(law: str) -> list[str]:
    """What the schedule that a search found has over another law, in points: mean and interval."""
    found = REPLAY["found_over"][law]
    return [points(found[name], 2 if abs(found[name]) < 0.005 else 1) for name in ("mean", "low", "high")]


def twin(count: int) -> tuple[str, str]:
    """Flexible minus twin, which is the regret the other way round: mean with its interval, and each seed's."""
    regret = document("twins")[0]["regret"][str(count)]
    mean, low, high = (points(-value) for value in (regret["mean"], *reversed(regret["ci"])))
    return f"| {mean} ({low} to {high}) |", f"| {', '.join(points(-regret['per_seed'][seed]) for seed in '012')} |"


DEMO, SEARCHES, REPLAY = document("demo")[0], document("search_demo"), document("search_curves")["results"]["replay"]
POOLING = "CPU pooling, share of the read floor"
WIDE, SMALL = rows("train", "pooling", POOLING, "x1152 to"), rows("train", "pooling", POOLING, "x128 to")
SMALL += rows("train", "pooling", POOLING, "x64 to")
SENT = {name: row("jobs", "sent", name) for name in ("run sent, over one started here", "run sent", "run started here")}
OVER_FLEX, OVER_UNIFORM = found_over("2:3:5"), found_over("uniform")
# How a line begins, without what makes it a row of a table → what it says.
FIGURES: dict[str, tuple[str, ...]] = {
    "accuracy on 2,048 unseen mosaics": (" | ".join(f"{each['quality']:.3f}" for each in DEMO["curve"].values()),),
    "Commit ": (
        DEMO["commit"],
        f"{DEMO['wall_seconds']} s after {DEMO['setup_seconds']} s of set-up",
        f"{DEMO['peak_mib_per_worker'] / 1024:.1f} GiB per worker",
    ),
    "step of Ray Train + ZeRO-1 against": (f"{row('train', 'one', 'ZeRO-1 ÷ plain torch loop'):.2f}×",),
    "the same, two workers": (f"{row('train', 'two', 'ZeRO-1 ÷ DDP-gloo'):.2f}×",),
    "saving realised by": (f"{row('train', 'saving', 'saving realised, 2:3:5 law'):.2f} (target",),
    "tracking calls on": (percent(row("train", "one", "tracking calls on the training thread ÷ step"), 3),),
    "command to first step, warm": (
        f"{row('train', 'start', 'command to first step'):.0f} s (target",
        f"{row('train', 'start', 'peak memory of a worker (resident)'):.0f} MiB",
    ),
    "CPU pooling, share of": (spans(WIDE), spans(SMALL)),
    "whole pool projector on": (" / ".join(f"{each:.2f}×" for each in projector("over_eager")),),
    "the same, share of the matrix-product floor": (" / ".join(map(percent, projector("of_floor"))),),
    "endpoint's engine, 32 at once": (f"{row('serve', 'batching', 'batched by count ÷ unbatched, requests/s'):.1f}×",),
    "the same, time of 256": (f"{row('serve', 'counts', 'answer, time ratio ÷ FLOPs ratio'):.2f} (target",),
    "endpoint behind Ray's HAProxy": edge("haproxy")[:2],
    "the same, one client": edge("haproxy")[2:],
    "endpoint behind Ray's own proxy": edge("edge"),
    "head of a cluster killed": (
        f"| {row('jobs', 'head', 'requests that failed'):g}; {row('jobs', 'head', 'latency, p99'):.0f} ms |",
    ),
    f"time of a run of {row('jobs', 'forecast', 'time as taken'):.0f} s": (
        f"a probe of {row('jobs', 'forecast', 'time of the probe'):.0f} s",
        f"{percent(row('jobs', 'forecast', 'forecast of the time, off by'))}; "
        f"{percent(row('jobs', 'forecast', 'forecast of the cost, off by'))} (targets",
    ),
    "command to first step of a run sent": (
        "{:.1f} s: {:.1f} against {:.1f} s".format(*SENT.values()).replace("-", "−"),
    ),
    "client: base install": (
        f"{row('jobs', 'client', 'base install'):.0f} s (target",
        f"{row('jobs', 'client', 'upload of a run'):.1f} MB (target",
    ),
    "ten times what it can answer": (
        f"{row('serve', 'overload', 'goodput, share of capacity'):.2f} (target",
        f"{row('serve', 'overload', 'refusals, p99'):.0f} ms (target",
        f"{row('serve', 'overload', 'memory growth of the cluster'):.0f} MiB",
    ),
    "load of 0.5 … 0.85": (
        f"{percent(max(late('on')), 1)} (target < 1 %) against {spans(late('off'))}",
        f"{row('serve', 'governor', 'full count back after a drop'):.1f} s (target",
    ),
    "AUTC of the schedule found": (
        "{} points (95 % {} to {})".format(*OVER_FLEX), "{} ({} to {})".format(*OVER_UNIFORM),
    ),
    "a search of four trials": (
        "{:.0f} min {:.0f} s".format(*divmod(SEARCHES[0]["wall_seconds"], 60)), percent(SEARCHES[0]["accounting"], 2),
    ),
    "share of a search's time": ("; ".join(f"{each['utilisation']:.3f}" for each in SEARCHES),),
    "compute to find what 16": (f"optuna {REPLAY['of_random']['optuna']:.2f},",),
    "144 tokens (": twin(144),
    "16 tokens (": twin(16),
    "4 tokens (": twin(4),
}  # fmt: skip


@pytest.mark.parametrize("beginning", FIGURES)
def test_the_readme_quotes_recorded_figures(beginning: str) -> None:
    (line,) = [line for line in LINES if line.removeprefix("| ").startswith(beginning)]
    for text in FIGURES[beginning]:
        assert text in line


def test_every_line_of_the_readme_that_was_measured_is_checked() -> None:
    """But for those that a test of their own proves."""
    measured = [line for line in LINES if re.search(r"\| `tokendial (bench|report) [^|]*\|$", line)]
    assert len(measured) > 20
    assert [line for line in measured if not line.removeprefix("| ").startswith(tuple(FIGURES))] == []


def test_the_guide_to_operating_says_how_much_travels() -> None:
    size = f"({row('jobs', 'client', 'upload of a run'):.1f} MB, edits included)"
    assert size in (ROOT / "docs" / "operating.md").read_text("utf-8")
