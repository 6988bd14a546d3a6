"""The loss of a plan, as the training step computes it, against plain separate passes through the same model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokendial.contracts import Batch, Task
from tokendial.experiments import workload
from tokendial.resolve import resolve
from tokendial.schedule import Plan, ScheduleConfig, TokenSchedule, preset
from tokendial.schedule.draw import Group
from tokendial.train.step import StepModule, works
from torch import Tensor, nn

COUNTS = (4, 16, 36)
SIZE = 8


class Bench:
    """A tiny digits model, a batch, and the loss of a plan in one pass and in separate ones."""

    def __init__(self, schedule: ScheduleConfig, *overrides: str) -> None:
        counts = f"schedule.counts={list(schedule.counts)}"
        self.config = resolve("digits.tiny", ("schedule=uniform", counts, *overrides))
        self.schedule = schedule
        data, self.task = workload("digits").load(self.config)
        examples = data.datasets(self.config)["train"]
        self.batch: Batch = data.collate([examples[i] for i in range(SIZE)])
        self.model: nn.Module = self.task.build_model(self.config).eval()
        self.module = StepModule(self.task, self.model, None, schedule.distil)

    def plan(self, step: int = 0) -> Plan:
        return TokenSchedule(self.schedule).draw(0, step, SIZE, 100)

    def loss(self, plan: Plan, rows: int = SIZE) -> Tensor:
        """The engine's way: micro-batches of `rows`, their losses added."""
        total = torch.zeros(())
        for first in range(0, SIZE, rows):
            micro = take(self.batch, range(first, first + rows))
            total = total + self.module(micro, works(plan, first, rows, self.schedule.mix == "sample"), True)[0]
        return total

    def logits(self, position: int, count: int) -> tuple[Tensor, Batch]:
        """One example alone, encoded anew, at its own count."""
        one = take(self.batch, [position])
        expanded = self.task.expand(one, count)
        return self.task.logits(self.model, self.task.encode(self.model, one), expanded, count), expanded

    def plain(self, plan: Plan) -> Tensor:
        """The definition: Σ over groups and examples of weight · (cross-entropy + λ · KL(teacher ‖ student))."""
        distil, total = self.schedule.distil, torch.zeros(())
        for group in plan.groups:
            for position in group.positions:
                logits, expanded = self.logits(position, group.count)
                loss = self.task.loss(logits, expanded)
                if distil is not None and group.teacher_count is not None:
                    with torch.no_grad():
                        teacher, _ = self.logits(position, group.teacher_count)
                    one = take(self.batch, [position])
                    loss = loss + distil.weight * self.task.distil(logits, teacher, one, distil.temperature)
                total = total + group.loss_weight * loss
        return total

    def gradients(self, loss: Tensor) -> Mapping[str, Tensor]:
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        return {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}


def take(batch: Mapping[str, Any], rows: Sequence[int]) -> Batch:
    return {n: v[list(rows)] if isinstance(v, Tensor) else [v[r] for r in rows] for n, v in batch.items()}


def assert_same_gradients(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert len(one) > 20
    # A softmax does not see a shift of its keys: their bias has a gradient of rounding alone, so the scale is global.
    scale = max(float(value.abs().max()) for value in other.values())
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6 * scale, msg=name)


def custom(**fields: Any) -> ScheduleConfig:
    return ScheduleConfig.model_validate({"counts": COUNTS, "weights": (2, 3, 5), **fields})


DISTIL = {"teacher": "max", "weight": 0.7, "temperature": 2.0}
SCHEDULES: Mapping[str, ScheduleConfig] = {
    "one": custom(),
    "one, loss weights": custom(loss_weights=(3, 0.5, 2)),
    "one, importance": custom(importance=True),
    "one, distilled": custom(distil=DISTIL),
    "one, a teacher in the middle": custom(distil={"teacher": 16, "weight": 2.0}),
    "m3": preset("m3", COUNTS),
    "m3, loss weights": custom(mix="all", loss_weights=(1, 2, 5)),
    "smallest": custom(mix="smallest"),
    "sandwich": custom(mix="sandwich", distil=DISTIL),
    "stratified": custom(mix="stratified", weights=(1, 1, 2), stratum=2),
    "stratified, weighted and distilled": custom(
        mix="stratified", weights=(1, 1, 2), stratum=2, loss_weights=(1, 2, 3), distil=DISTIL
    ),
}


@pytest.mark.parametrize("rows", [SIZE, 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_has_the_loss_and_the_gradients_of_separate_passes(name: str, rows: int) -> None:
    bench = Bench(SCHEDULES[name])
    plan = next(p for p in map(bench.plan, range(100)) if p.groups[0].count == COUNTS[0])
    together, apart = bench.loss(plan, rows), bench.plain(plan)
    assert together.item() == pytest.approx(apart.item(), rel=1e-5)
    assert_same_gradients(bench.gradients(together), bench.gradients(apart))


PREFIXES: Mapping[str, ScheduleConfig] = {
    "counts": custom(mix="sample"),
    "loss weights": custom(mix="sample", loss_weights=(3, 0.5, 2)),
    "importance": custom(mix="sample", importance=True),
}


@pytest.mark.parametrize("rows", [SIZE, 2])
@pytest.mark.parametrize("name", PREFIXES)
def test_masked_prefixes_have_the_loss_of_each_example_alone_at_its_own_count(name: str, rows: int) -> None:
    bench = Bench(PREFIXES[name], "model.projector=query", "model.max_queries=144")
    plan = bench.plan(step=1)
    assert len(plan.groups) == 3, "the draw should mix counts"
    together, apart = bench.loss(plan, rows), bench.plain(plan)
    assert together.item() == pytest.approx(apart.item(), rel=1e-5)
    assert_same_gradients(bench.gradients(together), bench.gradients(apart))


def test_distilled_prefixes_weigh_each_example_by_its_own_weight() -> None:
    schedule = custom(mix="sample", loss_weights=(3, 0.5, 2), distil=DISTIL)
    bench = Bench(schedule, "model.projector=query", "model.max_queries=144")
    plan = bench.plan(step=1)
    assert bench.loss(plan).item() == pytest.approx(bench.plain(plan).item(), rel=1e-5)


def test_the_teacher_gets_no_gradient() -> None:
    bench = Bench(custom(distil=DISTIL))
    everyone = range(SIZE)
    alone, taught = (Plan((Group(4, everyone, 1.0, teacher),)) for teacher in (None, 36))
    seen: list[bool] = []
    original: Callable[..., Tensor] = bench.task.distil

    def spy(student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        seen.append(teacher.requires_grad)
        return original(student, teacher, batch, temperature)

    bench.task.distil = spy  # type: ignore[method-assign]
    assert bench.loss(taught) > bench.loss(alone)
    assert seen == [False]


class InPlace(torch.autograd.Function):
    """As Liger-Kernel's: the gradient is computed forward, where the logits were."""

    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, labels_T: Tensor, _: None, ignored: int, *__: Any) -> tuple[Tensor]:
        with torch.enable_grad():
            exact = logits_TV.detach().clone().requires_grad_()
            losses_T = F.cross_entropy(exact, labels_T, ignore_index=ignored, reduction="none")
            (gradient,) = torch.autograd.grad(losses_T.sum(), exact)
        logits_TV.data.copy_(gradient)
        ctx.save_for_backward(logits_TV.data)
        return (losses_T.detach(),)

    @staticmethod
    def backward(ctx: Any, *grads_T: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * grads_T[0][:, None], *[None] * 6


@pytest.mark.parametrize("rows", [SIZE, 1])
@pytest.mark.parametrize("name", ["sandwich", "stratified, weighted and distilled"])
def test_a_loss_that_overwrites_its_logits_leaves_those_that_teach_and_learn(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(SCHEDULES[name])
    plan = bench.plan()
    plain = bench.loss(plan, rows)
    wanted = bench.gradients(plain)
    monkeypatch.setattr("tokendial_kernels.cross_entropy.runs_liger", lambda tensor: True)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", SimpleNamespace(LigerCrossEntropyFunction=InPlace))
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    found = bench.loss(plan, rows)
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    assert_same_gradients(bench.gradients(found), wanted)


class CountsEncodings:
    """A task that counts how often examples are encoded."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.encoded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def encode(self, model: nn.Module, batch: Batch) -> Tensor:
        self.encoded += len(batch["source"])
        return self._task.encode(model, batch)


@pytest.mark.parametrize("name", ["m3", "sandwich", "stratified", "one, distilled"])
def test_each_example_is_encoded_once_whatever_the_number_of_counts(name: str) -> None:
    bench = Bench(SCHEDULES[name])
    counting: Any = CountsEncodings(bench.task)
    bench.module = StepModule(counting, bench.model, None, bench.schedule.distil)
    bench.loss(bench.plan(), rows=4)
    assert counting.encoded == SIZE


def test_a_frozen_tower_keeps_no_graph() -> None:
    bench = Bench(custom())
    loss, _ = bench.module(bench.batch, works(bench.plan(), 0, SIZE, masked=False), False)
    loss.backward()
    tower = list(bench.task.parts(bench.model)["tower"].parameters())
    assert all(parameter.grad is None for parameter in tower)
    projector = list(bench.task.parts(bench.model)["projector"].parameters())
    assert all(parameter.grad is not None for parameter in projector)


def test_the_reported_sums_are_unweighted_cross_entropy() -> None:
    bench = Bench(SCHEDULES["m3, loss weights"])
    plan = bench.plan()
    _, sums = bench.module(bench.batch, works(plan, 0, SIZE, masked=False), True)
    expected = [
        sum(bench.task.loss(*bench.logits(position, count)).item() for position in range(SIZE))
        for count in sorted(COUNTS, reverse=True)
    ]
    assert [value.item() for value in sums] == pytest.approx(expected, rel=1e-5)


def test_positions_fall_to_micro_batches_and_ranks_without_overlap() -> None:
    plan = TokenSchedule(custom(mix="stratified", weights=(1, 1, 2), stratum=2)).draw(0, 0, 16, 100)
    covered = []
    for first in range(0, 16, 2):
        for work in works(plan, first, 2, masked=False):
            rows = range(2) if work.rows is None else work.rows
            covered += [(work.count, first + row) for row in rows]
    assert sorted(covered) == sorted((g.count, p) for g in plan.groups for p in g.positions)
