"""A contest: providers of one result on one shape, timed against a floor that is measured in the same rounds.

On a CPU, calls take turns and process time is counted, so that other work on the machine weighs on all alike; on CUDA,
each is timed by triton's own benchmark, which flushes the cache between calls.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Call = Callable[[], Any]
OURS, EAGER, FLOOR = "tokendial", "eager", "floor"


@dataclass(frozen=True)
class Target:
    """Ours must reach `at_least` times the speed of `against`: a provider, or the floor."""

    against: str
    at_least: float


@dataclass(frozen=True)
class Contest:
    """One op, direction and shape; `moved_bytes` counts what must be read and written once."""

    op: str
    direction: str
    shape: str
    floor: Call
    floor_name: str
    providers: Mapping[str, Call]
    targets: tuple[Target, ...] = ()
    moved_bytes: int | None = None


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, and 20th and 80th percentile."""

    median_ms: float
    p20_ms: float
    p80_ms: float


@dataclass(frozen=True)
class Row:
    """One provider's result in one contest; ratios above 1 mean faster than the floor or than eager."""

    op: str
    direction: str
    shape: str
    provider: str
    timing: Timing
    floor_name: str
    of_floor: float
    over_eager: float
    gigabytes_per_s: float | None
    peak_memory_mib: float | None
    targets: dict[str, str] = field(default_factory=dict)


def time_on_cpu(calls: Mapping[str, Call], num_rounds: int = 41) -> dict[str, Timing]:
    """Time all calls `num_rounds` times, in an order drawn anew each round, by process time and with warm caches."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls.items())
    draw = random.Random(0)
    for _ in range(num_rounds):
        draw.shuffle(order)
        for name, call in order:
            call()
            start = time.process_time_ns()
            call()
            samples[name].append((time.process_time_ns() - start) / 1e6)
    return {name: _percentiles(values) for name, values in samples.items()}


def _percentiles(values: list[float]) -> Timing:
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Timing(statistics.median(values), fifths[0], fifths[3])


def time_on_cuda(calls: Mapping[str, Call]) -> dict[str, Timing]:
    """Time each call with triton's benchmark."""
    from triton.testing import do_bench

    timings = {}
    for name, call in calls.items():
        quantiles: Any = do_bench(call, quantiles=[0.5, 0.2, 0.8])
        timings[name] = Timing(*quantiles)
    return timings


def peak_memory_mib(call: Call) -> float | None:
    """What a call allocates at its peak on CUDA beyond what is already held; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 2**20


def run_contest(contest: Contest, on_cuda: bool) -> list[Row]:
    """Time the floor and all providers, and judge ours against its targets."""
    calls = {FLOOR: contest.floor, **contest.providers}
    timings = time_on_cuda(calls) if on_cuda else time_on_cpu(calls)
    rows = []
    for name in contest.providers:
        timing = timings[name]
        moved = contest.moved_bytes
        rows.append(
            Row(
                contest.op,
                contest.direction,
                contest.shape,
                name,
                timing,
                contest.floor_name,
                timings[FLOOR].median_ms / timing.median_ms,
                timings[EAGER].median_ms / timing.median_ms,
                moved / timing.median_ms / 1e6 if moved else None,
                peak_memory_mib(contest.providers[name]) if on_cuda else None,
                _judge(contest, timings) if name == OURS else {},
            )
        )
    return rows


def _judge(contest: Contest, timings: Mapping[str, Timing]) -> dict[str, str]:
    verdicts = {}
    for target in contest.targets:
        name = f">= {target.at_least}x {target.against}"
        if target.against not in timings:
            verdicts[name] = f"not judged: {target.against} was not measured"
            continue
        reached = timings[target.against].median_ms / timings[OURS].median_ms
        verdict = "met" if reached >= target.at_least else "missed"
        verdicts[name] = f"{verdict}: {reached:.3f}"
    return verdicts
