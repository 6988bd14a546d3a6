"""A replica on a simulated clock: the engine's own batcher and governor, with steps that take what `Costs` say."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from tokendial.serve import autoscaling
from tokendial.serve.batching import Batcher, Full, Ticket
from tokendial.serve.costs import Costs, Line
from tokendial.serve.governor import Choice, Governor, Terms

QUALITY = {16: 0.6, 64: 0.8, 144: 0.9, 256: 0.95}
COSTS = Costs(
    encode=Line(0.002, 0.004),
    prefill={16: Line(0.001, 0.002), 64: Line(0.001, 0.006), 144: Line(0.001, 0.013), 256: Line(0.001, 0.024)},
    decode={16: Line(0.003, 0.0002), 256: Line(0.003, 0.0004)},
    batch=16,
)
NEW_TOKENS = 4
ROOM_TOKENS = 32.0 * 256
FULL_S = COSTS.share_s((256,), NEW_TOKENS)
CAPACITY = 1 / FULL_S  # requests/s where all have the largest count
RATIO = FULL_S / COSTS.share_s((16,), NEW_TOKENS)  # what bending can win
BENDS = Terms((256,), (False,), may_bend=True)
STAYS = Terms((256,), (False,), may_bend=False)


@dataclass
class Served:
    """One request as it went; `started` counts and `ended` are None where it was refused."""

    arrived: float
    terms: Terms
    choice: Choice | None = None
    ended: float | None = None

    @property
    def latency_s(self) -> float:
        return inf if self.ended is None else self.ended - self.arrived


@dataclass
class Outcome:
    served: list[Served] = field(default_factory=list)
    levels: list[tuple[float, int]] = field(default_factory=list)
    loads: list[tuple[float, dict[str, float]]] = field(default_factory=list)  # time, what a replica reports
    largest_batch: int = 0

    @property
    def accepted(self) -> list[Served]:
        return [one for one in self.served if one.choice is not None]

    @property
    def refused_share(self) -> float:
        return 1 - len(self.accepted) / len(self.served)

    def late_share(self, target_s: float) -> float:
        """Of the accepted, those answered after the target."""
        return sum(one.latency_s > target_s for one in self.accepted) / max(1, len(self.accepted))

    def mean_quality(self) -> float:
        given = [QUALITY[count] for one in self.accepted for count in (one.choice.counts if one.choice else ())]
        return sum(given) / len(given)


def governor(mode: Literal["off", "shadow", "on"] = "on", costs: Costs = COSTS, **fields: float) -> Governor:
    return Governor(sorted(QUALITY, reverse=True), QUALITY, costs, mode, **fields)


def poisson(rate: float, until_s: float, terms: Sequence[Terms], seed: int, from_s: float = 0.0) -> list[Served]:
    """Open-loop arrivals at `rate` per second, terms drawn at random."""
    draws = random.Random(seed)
    arrivals, now = [], from_s
    while (now := now + draws.expovariate(rate)) < until_s:
        arrivals.append(Served(now, draws.choice(terms)))
    return arrivals


def simulate(
    arrivals: Iterable[Served],
    chosen: Governor,
    num_slots: int = 32,
    slowdown: Callable[[float], float] = lambda now: 1.0,
    max_queue: int = 4096,
) -> Outcome:
    """Serve until all is done; at a time the machine is `slowdown(time)` times slower than its calibration said."""
    outcome = Outcome()
    batcher = Batcher(chosen, max_queue=max_queue)
    waiting = sorted(arrivals, key=lambda one: one.arrived)
    outcome.served = waiting
    upcoming = list(enumerate(waiting))[::-1]
    running: dict[int, int] = {}
    now = 0.0

    def admit(until: float) -> None:
        while upcoming and upcoming[-1][1].arrived <= until:
            number, one = upcoming.pop()
            try:
                batcher.admit(Ticket(number, one.terms, one.arrived, max_new_tokens=NEW_TOKENS), one.arrived)
            except Full:
                continue
            one.choice = Choice((), "largest", ())

    def take(took_s: float, predicted_s: float) -> None:
        nonlocal now
        took_s *= slowdown(now)
        now += took_s
        admit(now)
        chosen.corrected(predicted_s, took_s)

    while upcoming or batcher.num_waiting or running:
        if not batcher.num_waiting and not running:
            now = max(now, upcoming[-1][1].arrived)
            admit(now)
        start = batcher.start(now, num_slots - len(running), num_slots)
        outcome.levels.append((now, chosen.level))
        load = autoscaling.report(batcher.wanted_tokens, chosen.demand_share, chosen.crowded, ROOM_TOKENS)
        outcome.loads.append((now, load))
        if start is not None:
            counts = next(iter(start.choices.values())).counts
            outcome.largest_batch = max(outcome.largest_batch, len(start.choices))
            for number, choice in start.choices.items():
                waiting[number].choice = choice
                running[number] = 1
            take(*(costs.read_s(counts, len(start.choices)) for costs in (COSTS, chosen.costs)))
            batcher.read(start.choices)
        if running:
            take(*(costs.decode_s(256, len(running)) for costs in (COSTS, chosen.costs)))
            batcher.stepped()
            running = {number: written + 1 for number, written in running.items()}
            for number in [number for number, written in running.items() if written >= NEW_TOKENS]:
                del running[number]
                batcher.leave(number, NEW_TOKENS)
                waiting[number].ended = now
    return outcome


def scaled(factor: float) -> Costs:
    """Costs that are a factor higher all over."""

    def off(line: Line) -> Line:
        return Line(factor * line.fixed_s, factor * line.row_s)

    return replace(
        COSTS,
        encode=off(COSTS.encode),
        prefill={count: off(line) for count, line in COSTS.prefill.items()},
        decode={count: off(line) for count, line in COSTS.decode.items()},
    )
