"""The fast loop: from what waits, what arrives and what a request costs to the visual tokens each request gets.

Plain arithmetic on clock readings: no threads, no tensors, no randomness. Level 0 is every request as it was asked; at
level n a request that consents gets at most the n-th efficient count of the ladder, never one below its floor.

Down at once: the first level at which the work ahead fits into `_BUDGET` of the target and arrivals leave the replica
some time. Up after `_HOLD_S` during which a higher level would have fitted well. Between two levels `lift` is the share
of requests that are served one level up, as many as arrivals leave time for, so that quality falls with the load and
not in steps.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Literal

from tokendial.serve.costs import Costs
from tokendial.serve.request import Reason

_BUDGET, _BUDGET_UP = 0.3, 0.15
_DEMAND, _DEMAND_UP = 0.9, 0.8
_HOLD_S = 0.5
_WINDOW_S = 1.0
_ADMIT = 0.55
_LEAST_ALONE = 3.0
_CROWD = 0.1
_FASTEST, _SLOWEST, _SLOWER_S = 0.25, 8.0, 0.25
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Terms:
    """What a request allows. `wanted` is the count of each image at full quality, `exact` those that never change."""

    wanted: tuple[int, ...]
    exact: tuple[bool, ...]
    may_bend: bool = False
    min_quality: float = 0.0
    target_s: float = inf
    reason: Reason = "largest"


@dataclass(frozen=True)
class Choice:
    """The counts a request gets, and why; `bent_to` is what bending made or, in the shadow, would have made of them."""

    counts: tuple[int, ...]
    reason: Reason
    bent_to: tuple[int, ...]


@dataclass(frozen=True)
class _Arrival:
    at: float
    work_s: tuple[float, ...]
    met: bool


class Governor:
    """Keeps the level of one replica. Times are seconds of any one clock."""

    def __init__(
        self,
        efficient: Sequence[int],
        quality: Mapping[int, float],
        costs: Costs,
        mode: Literal["off", "shadow", "on"] = "on",
        target_s: float = 1.0,
        floor_quality: float = 0.0,
    ) -> None:
        """`efficient` are the counts that no smaller one equals in quality, falling."""
        self.mode = mode
        self.target_s = target_s
        self.level = 0
        self.lift = 0.0
        self.scale = 1.0
        self.costs = costs
        # Asked for again and again: few different requests come.
        self._plan = lru_cache(1024)(self._planned)
        self._shares = lru_cache(1024)(self._shared)
        self._quality = dict(quality)
        self._floor = floor_quality
        self._steps = tuple(count for count in efficient if count < max(quality))
        self._barred: frozenset[int] = frozenset()
        self._arrivals: deque[_Arrival] = deque()
        self._demand = [0.0] * self.num_levels
        self._met = 0
        self._fits_since: float | None = None
        self._looked, self._passed_s = -inf, 0.0

    @property
    def num_levels(self) -> int:
        """Levels 0 … n; each further one caps bending requests at a smaller count."""
        return 1 + len(self._steps)

    def cap(self, level: int) -> int | None:
        """The count that bending requests are capped at; None at level 0."""
        return self._steps[level - 1] if level else None

    def expected(self, counts: Sequence[int]) -> float | None:
        """Expected quality of an answer: that of the image with the least, where all were measured."""
        known = [self._quality.get(count) for count in counts]
        return None if not known or None in known else min(quality for quality in known if quality is not None)

    def bar(self, counts: Collection[int]) -> bool:
        """Bend to none of these counts from now on; whether that changes anything."""
        changed = frozenset(counts) != self._barred
        if changed:
            self._barred = frozenset(counts)
            self._plan.cache_clear()
        return changed

    def recost(self, costs: Costs) -> None:
        """Reckon with these costs from now on."""
        self.costs = costs
        self.scale = 1.0
        self._shares.cache_clear()

    def plan(self, terms: Terms) -> tuple[tuple[int, ...], ...]:
        """What a request gets at each level."""
        if not terms.may_bend or self.mode == "off":
            return (terms.wanted,) * self.num_levels
        return self._plan(terms.wanted, terms.exact, max(terms.min_quality, self._floor))

    def _planned(self, wanted: tuple[int, ...], exact: tuple[bool, ...], floor: float) -> tuple[tuple[int, ...], ...]:
        images = list(zip(wanted, exact, strict=True))
        bent = (tuple(full if fixed else self._bent(full, cap, floor) for full, fixed in images) for cap in self._steps)
        return (wanted, *bent)

    def _bent(self, wanted: int, cap: int, floor: float) -> int:
        """The largest allowed count up to the cap; where all allowed ones lie above it, the smallest of them."""
        allowed = [
            count
            for count in self._steps
            if count < wanted and count not in self._barred and self._quality[count] >= floor
        ]
        if not allowed or cap >= wanted:
            return wanted
        return next((count for count in allowed if count <= cap), allowed[-1])

    def work_s(self, terms: Terms, new_tokens: float, text: int = 0) -> tuple[float, ...]:
        """Seconds of the replica that a request with so many tokens of text takes at each level, as calibrated."""
        shares = [self._shares(counts) for counts in self.plan(terms)]
        text_s = self.costs.text.share_s(text, new_tokens)
        return tuple(read_s + max(0.0, new_tokens - 1) * token_s + text_s for read_s, token_s in shares)

    def _shared(self, counts: tuple[int, ...]) -> tuple[float, float]:
        return self.costs.share_s(counts, 1), self.costs.token_s(counts)

    def arrived(self, now: float, work_s: Sequence[float], met: bool) -> None:
        """Note work that was asked for, refused or not, and whether it met others' work."""
        self._arrivals.append(_Arrival(now, tuple(work_s), met))
        self._met += met
        for level, seconds in enumerate(work_s):
            self._demand[level] += seconds

    def update(self, now: float, ahead_s: Sequence[float], running: bool = False) -> int:
        """The level from here on, given the calibrated seconds that the last in line waits for, at each level.

        `running`: whether answers are being written, which have been since the last look or before.
        """
        self._forget(now)
        if self.mode == "off":
            return 0
        if not running and now - self._looked - self._passed_s >= _HOLD_S:
            # Nobody looks where there is nothing to do, which is a load that fits well; nor does anybody during a pass.
            self._fits_since = self._looked
        self._looked, self._passed_s = now, 0.0
        fits = self._first(ahead_s, _BUDGET, _DEMAND)
        fits_well = self._first(ahead_s, _BUDGET_UP, _DEMAND_UP)
        if fits > self.level:
            self.level, self._fits_since = fits, None
        elif fits_well < self.level:
            if self._fits_since is None:
                self._fits_since = now
            elif now - self._fits_since >= _HOLD_S:
                self.level, self._fits_since = fits_well, None
        else:
            self._fits_since = None
        self.lift = self._room_above(ahead_s)
        return self.level

    def _room_above(self, ahead_s: Sequence[float]) -> float:
        """The share of arrivals that a level up leaves the replica some time for; 0 where work waits."""
        if not self.level or ahead_s[self.level] * self.scale > _BUDGET_UP * self.target_s:
            return 0.0
        if not self.crowded:
            return 1.0
        above, here = (self._demand[level] * self.scale for level in (self.level - 1, self.level))
        return min(1.0, max(0.0, _DEMAND_UP * _WINDOW_S - here) / (above - here)) if above > here else 0.0

    def _first(self, ahead_s: Sequence[float], budget: float, demand: float) -> int:
        """The first level whose work fits; the last one where none does."""
        for level, seconds in enumerate(ahead_s):
            in_time = seconds * self.scale <= budget * self.target_s
            if in_time and (self._demand[level] * self.scale <= demand * _WINDOW_S or not self.crowded):
                return level
        return self.num_levels - 1

    @property
    def demand_share(self) -> float:
        """The share of the replica's time that what arrived in the last second, refused or not, takes at full count.

        Above 1 this replica cannot give it.
        """
        return max(0.0, self._demand[0]) * self.scale / _WINDOW_S

    @property
    def crowded(self) -> bool:
        """Whether arrivals meet. Where they do not, each waits for the last one's answer, as one caller's do one after
        another: however much of the replica's time they take, nobody waits for anybody."""
        return 0 < self._met >= _CROWD * len(self._arrivals)

    def _forget(self, now: float) -> None:
        while self._arrivals and self._arrivals[0].at < now - _WINDOW_S:
            gone = self._arrivals.popleft()
            self._met -= gone.met
            for level, seconds in enumerate(gone.work_s):
                self._demand[level] -= seconds
        if not self._arrivals:
            self._demand = [0.0] * self.num_levels

    def admits(self, terms: Terms, ahead_s: Sequence[float], new_tokens: float) -> bool:
        """Whether an answer is to be expected within the target, at the level that bends most."""
        if self.mode != "on" or ahead_s[-1] == 0:
            return True
        smallest = self.plan(terms)[-1]
        alone_s = self.scale * self.costs.alone_s(smallest, new_tokens)
        return self.scale * ahead_s[-1] + alone_s <= _ADMIT * self.feasible_s(terms.target_s, smallest, new_tokens)

    def feasible_s(self, target_s: float, counts: tuple[int, ...], new_tokens: float) -> float:
        """A target, the operator's where it is infinite; where even an idle replica barely meets it, one that it can.

        Without this a target below what an answer takes would turn everybody away but one.
        """
        named_s = self.target_s if target_s == inf else target_s
        return max(named_s, _LEAST_ALONE * self.scale * self.costs.alone_s(counts, new_tokens))

    def choose(self, terms: Terms, waited_s: float, new_tokens: float, number: int = 0) -> Choice:
        """The counts of a request that starts now; its number decides whether it is among those that are lifted."""
        plan = self.plan(terms)
        # Multiples of the golden ratio fall evenly on the unit interval, whatever the share.
        level = self.level - (number * _GOLDEN % 1 < self.lift)
        bent = plan[level]
        if terms.may_bend and terms.target_s < inf:
            bent = self._in_time(plan[level:], terms.target_s - waited_s, new_tokens)
        if bent == terms.wanted:
            return Choice(terms.wanted, terms.reason, bent)
        if self.mode == "shadow":
            return Choice(terms.wanted, "shadow", bent)
        return Choice(bent, "bent" if plan[level] != terms.wanted else "target", bent)

    def _in_time(self, plan: Sequence[tuple[int, ...]], left_s: float, new_tokens: float) -> tuple[int, ...]:
        """The first counts whose answer is expected within what is left of a target; the last where none is."""
        for counts in plan:
            if self.scale * self.costs.alone_s(counts, new_tokens) <= _ADMIT * left_s:
                return counts
        return plan[-1]

    def corrected(self, predicted_s: float, took_s: float, text: int = 0) -> None:
        """Learn how far this machine is from its calibration just now: slowing down sooner than speeding up.

        A step over more text than any that was measured tells of that text, not of the machine.
        """
        self._passed_s += took_s
        if predicted_s > 0 and text <= self.costs.text.many:
            found = min(max(took_s / predicted_s, _FASTEST), _SLOWEST)
            weight = min(1.0, took_s / (_SLOWER_S if found > self.scale else _WINDOW_S))
            self.scale += weight * (found - self.scale)
