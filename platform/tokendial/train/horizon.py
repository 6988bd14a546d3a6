"""What a run will do before it does it: stages as step ranges, the horizon of a FLOP or token bound, the forecast."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tokendial.contracts import Cost, RunConfig, StageConfig
from tokendial.schedule import Plan, TokenSchedule
from tokendial.schedule.draw import Group

MAX_STEPS = 1_000_000  # of a FLOP or token bound, whose every step is simulated
SAMPLED_STEPS = 1000


@dataclass(frozen=True)
class StagePlan:
    """A stage and its optimizer steps [start, stop)."""

    config: StageConfig
    start: int
    stop: int


@dataclass(frozen=True)
class Spent:
    """What steps cost: FLOPs as executed and tokens through the language model, padding included."""

    flops: float = 0.0
    tokens: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.flops + other.flops, self.tokens + other.tokens)


def stage_plans(config: RunConfig[Any], horizon: int) -> tuple[StagePlan, ...]:
    """The stages over `horizon` steps, in proportion to their shares."""
    total = sum(stage.share for stage in config.stages)
    plans, start, share = [], 0, 0.0
    for stage in config.stages:
        share += stage.share
        stop = round(horizon * share / total)
        plans.append(StagePlan(stage, start, stop))
        start = stop
    return tuple(plans)


def language_span(plans: tuple[StagePlan, ...]) -> tuple[int, int]:
    """First step and number of steps that draw from the token schedule; its phases are fractions of these."""
    drawn = [plan for plan in plans if plan.config.objective == "language"]
    return drawn[0].start, drawn[-1].stop - drawn[0].start


def cut(plans: tuple[StagePlan, ...], steps: int) -> tuple[StagePlan, ...]:
    """The stages as far as the first `steps` optimizer steps."""
    return tuple(replace(plan, start=min(plan.start, steps), stop=min(plan.stop, steps)) for plan in plans)


def step_cost(config: RunConfig[Any], cost: Cost, stage: StageConfig, plan: Plan | None) -> Spent:
    """One optimizer step; `plan` is None in a stage that warms the tower."""
    batch, trained = config.global_batch, frozenset(stage.train)
    if plan is None:
        return Spent(batch * cost.warmup_flops())
    flops = batch * cost.tower_flops("tower" in trained)
    tokens = 0
    for count, rows, teacher in executed(config, plan):
        flops += rows * cost.language_flops(count, trained)
        tokens += rows * (count + config.data.text_tokens)
        if teacher is not None:
            flops += rows * cost.language_flops(teacher, trained, backward=False)
            tokens += rows * (teacher + config.data.text_tokens)
    return Spent(flops, tokens)


def group_flops(cost: Cost, stage: StageConfig, group: Group) -> float:
    """A group alone and without padding: the key by which counts share a step's FLOPs and seconds."""
    trained = frozenset(stage.train)
    each = cost.tower_flops("tower" in trained) + cost.language_flops(group.count, trained)
    if group.teacher_count is not None:
        each += cost.language_flops(group.teacher_count, trained, backward=False)
    return len(group.positions) * each


class CachedCost:
    """The prices of one example, each worked out once."""

    def __init__(self, cost: Cost) -> None:
        self.num_patches, self.num_parameters = cost.num_patches, cost.num_parameters
        self.tower_flops = cache(cost.tower_flops)
        self.language_flops = cache(cost.language_flops)
        self.warmup_flops = cache(cost.warmup_flops)


def run_cost(config: RunConfig[Any], cost: Cost, horizon: int, stride: int = 1, until: int | None = None) -> Spent:
    """The whole run, or its steps before `until`: the draws of every step, priced; with a stride, of every so many
    steps, as an estimate."""
    schedule, cost = TokenSchedule(config.schedule), CachedCost(cost)
    plans = stage_plans(config, horizon)
    first, span = language_span(plans)
    total = Spent()
    for stage in cut(plans, horizon if until is None else until):
        if stage.config.objective == "tower":
            each = step_cost(config, cost, stage.config, None)
            steps = stage.stop - stage.start
            total += Spent(each.flops * steps, each.tokens * steps)
            continue
        for step in range(stage.start, stage.stop, stride):
            plan = schedule.draw(config.seed, step - first, config.global_batch, span)
            each = step_cost(config, cost, stage.config, plan)
            steps = min(stride, stage.stop - step)
            total += Spent(each.flops * steps, each.tokens * steps)
    return total


def horizon(config: RunConfig[Any], cost: Cost) -> int:
    """Optimizer steps of the run: those of its bound, or the most whose simulated draws stay within FLOPs or tokens."""
    budget = config.budget
    if budget.steps is not None:
        return budget.steps
    if budget.seconds is not None:
        assert budget.horizon is not None, "seconds come with a horizon"
        return budget.horizon
    bound = budget.flops or budget.tokens or 0
    cost = CachedCost(cost)

    def spent(steps: int, stride: int = 1) -> float:
        whole = run_cost(config, cost, steps, stride)
        return whole.flops if budget.flops is not None else float(whole.tokens)

    if spent(1) > bound:
        raise ValueError(f"budget {bound:g} is less than one step costs")
    sampled = spent(MAX_STEPS, MAX_STEPS // SAMPLED_STEPS)
    if sampled <= bound:
        each = sampled / MAX_STEPS
        raise ValueError(f"budget {bound:g} allows more than {MAX_STEPS} steps of about {each:.3g}; give a smaller one")
    return _most(spent, bound, max(2, round(bound * MAX_STEPS / sampled)))


def _most(spent: Callable[[int], float], bound: float, guess: int) -> int:
    """The most steps that stay within the bound: a bracket around a guess, closed by the slope between its ends."""
    low, at_low, high, at_high = 1, spent(1), 0, 0.0
    while high - low != 1:
        price = spent(guess)
        if price <= bound:
            low, at_low = guess, price
        else:
            high, at_high = guess, price
        if not high:
            guess = low + max(1, low // 64)
            continue
        share = (bound - at_low) / (at_high - at_low)
        guess = min(max(low + round(share * (high - low)), low + 1), high - 1)
    return low


def executed(config: RunConfig[Any], plan: Plan) -> list[tuple[int, int, int | None]]:
    """(count, rows, extra teacher pass or None) as the ranks execute a plan: a count that runs over the same positions
    teaches without one, and groups of the same positions share one."""
    if config.schedule.mix == "sample":
        return _padded(config, plan)
    known: set[tuple[int | None, range | tuple[int, ...]]] = {(group.count, group.positions) for group in plan.groups}
    found = []
    for group in plan.groups:
        taught = group.teacher_count, group.positions
        found.append((group.count, len(group.positions), None if taught in known else group.teacher_count))
        known.add(taught)
    return found


def _padded(config: RunConfig[Any], plan: Plan) -> list[tuple[int, int, int | None]]:
    """Per-example counts run as one masked pass at the largest count of each micro-batch."""
    at = {position: group for group in plan.groups for position in group.positions}
    found = []
    for start in range(0, config.global_batch, config.rows):
        chosen = [at[position] for position in range(start, start + config.rows)]
        teacher = next((group.teacher_count for group in chosen if group.teacher_count), None)
        found.append((max(group.count for group in chosen), config.rows, teacher))
    return found
