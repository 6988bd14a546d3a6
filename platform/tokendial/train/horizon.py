"""What a run will do before it does it: stages as step ranges, the horizon of a FLOP or token bound, the forecast."""

from dataclasses import dataclass
from typing import Any

from tokendial.contracts import Cost, RunConfig, StageConfig
from tokendial.schedule import Plan, TokenSchedule
from tokendial.schedule.draw import Group

MAX_STEPS = 10_000_000


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
    return (drawn[0].start, drawn[-1].stop - drawn[0].start) if drawn else (plans[-1].stop, 0)


def step_cost(config: RunConfig[Any], cost: Cost, stage: StageConfig, plan: Plan | None) -> Spent:
    """One optimizer step; `plan` is None in a stage that warms the tower."""
    batch, trained = config.global_batch, frozenset(stage.train)
    if plan is None:
        return Spent(batch * cost.warmup_flops())
    flops = batch * cost.tower_flops("tower" in trained)
    tokens = 0
    for count, rows, teacher in _executed(config, plan):
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


def run_cost(config: RunConfig[Any], cost: Cost, horizon: int) -> Spent:
    """The whole run: the draws of every step, priced."""
    schedule = TokenSchedule(config.schedule)
    plans = stage_plans(config, horizon)
    first, span = language_span(plans)
    priced: dict[tuple[str, Plan | None], Spent] = {}
    total = Spent()
    for stage in plans:
        if stage.config.objective == "tower":
            each = step_cost(config, cost, stage.config, None)
            steps = stage.stop - stage.start
            total += Spent(each.flops * steps, each.tokens * steps)
            continue
        for step in range(stage.start, stage.stop):
            plan = schedule.draw(config.seed, step - first, config.global_batch, span)
            key = (stage.config.name, plan)
            if key not in priced:
                priced[key] = step_cost(config, cost, stage.config, plan)
            total += priced[key]
    return total


def horizon(config: RunConfig[Any], cost: Cost) -> int:
    """Optimizer steps of the run: given, or the most whose simulated draws stay within the FLOP or token bound."""
    budget = config.budget
    if budget.steps is not None:
        return budget.steps
    if budget.horizon is not None:
        return budget.horizon

    def within(steps: int) -> bool:
        spent = run_cost(config, cost, steps)
        return spent.flops <= budget.flops if budget.flops is not None else spent.tokens <= (budget.tokens or 0)

    if not within(1):
        raise ValueError(f"budget {budget.flops or budget.tokens:g} is less than one step costs")
    low, high = 1, 2
    while within(high):
        low, high = high, high * 2
        if high > MAX_STEPS:
            raise ValueError(f"budget {budget.flops or budget.tokens:g} allows more than {MAX_STEPS} steps")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


def _executed(config: RunConfig[Any], plan: Plan) -> list[tuple[int, int, int | None]]:
    """(count, rows, extra teacher pass or None) as the ranks execute a plan."""
    if config.schedule.mix == "sample":
        return _padded(config, plan)
    return [
        (group.count, len(group.positions), None if group.teacher_count in plan.counts else group.teacher_count)
        for group in plan.groups
    ]


def _padded(config: RunConfig[Any], plan: Plan) -> list[tuple[int, int, int | None]]:
    """Per-example counts run as one masked pass at the largest count of each micro-batch."""
    at = {position: group for group in plan.groups for position in group.positions}
    found = []
    for start in range(0, config.global_batch, config.rows):
        chosen = [at[position] for position in range(start, start + config.rows)]
        teacher = next((group.teacher_count for group in chosen if group.teacher_count), None)
        found.append((max(group.count for group in chosen), config.rows, teacher))
    return found
