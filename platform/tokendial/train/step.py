"""One pass of a training step: which rows run at which count, and the weighted sum of their losses.

Rows and counts come from the plan of the global batch; normalisation over it belongs to the loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tokendial.contracts import Batch, Task
from tokendial.schedule import DistilConfig, Plan
from tokendial.schedule.draw import Group
from torch import Tensor, nn

# Logits of a step by count and rows, for works over the same rows to learn from.
Known = dict[tuple[int, tuple[int, ...] | None], Tensor]


@dataclass(frozen=True)
class Work:
    """Rows of a micro-batch that run at one count; `rows` None means all, `valid_B` masks per-example prefixes."""

    count: int
    rows: tuple[int, ...] | None
    weight_B: tuple[float, ...]
    teacher: int | None = None
    valid_B: tuple[int, ...] | None = None


def ordered(plan: Plan) -> list[Group]:
    """Groups in the order of their passes: one that teaches before those it teaches, then the largest count first."""
    return sorted(plan.groups, key=lambda group: (group.teacher_count is not None, -group.count))


def works(plan: Plan, first: int, rows: int, masked: bool) -> list[Work]:
    """The part of a plan that falls on positions [first, first + rows), in the order of its passes."""
    window = range(first, first + rows)
    if masked:
        return [_masked(plan, window)]
    found = []
    for group in ordered(plan):
        members = set(group.positions)
        mine = tuple(position - first for position in window if position in members)
        if mine:
            whole = None if len(mine) == rows else mine
            found.append(Work(group.count, whole, (group.loss_weight,) * len(mine), group.teacher_count))
    return found


def _masked(plan: Plan, window: range) -> Work:
    at = {position: group for group in plan.groups for position in group.positions}
    chosen = [at[position] for position in window]
    teacher = next((group.teacher_count for group in chosen if group.teacher_count), None)
    counts = tuple(group.count for group in chosen)
    return Work(max(counts), None, tuple(group.loss_weight for group in chosen), teacher, counts)


class StepModule(nn.Module):
    """What DeepSpeed wraps: model (and warm-up head) behind a forward that returns the loss of a list of works."""

    def __init__(self, task: Task, model: nn.Module, head: nn.Module | None, distil: DistilConfig | None) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self._task = task
        self._distil = distil

    def forward(self, batch: Batch, todo: Sequence[Work] | None, train_tower: bool) -> tuple[Tensor, list[Tensor]]:
        """Loss summed over targets (a scalar), and per work the unweighted cross-entropy sum; `todo` None: warm-up."""
        with torch.set_grad_enabled(train_tower and torch.is_grad_enabled()):
            features_BND = self._task.encode(self.model, batch)
        if todo is None:
            assert self.head is not None, "a warm-up stage was started without its head"
            loss, num = self._task.warmup_loss(self.head, features_BND, batch)
            # The loop divides by answer tokens; in their units, so that it reports the mean over warm-up targets.
            loss = loss * (self._task.num_targets(batch) / num)
            return loss, [loss.detach()]
        total = features_BND.new_zeros(())
        sums: list[Tensor] = []
        known: Known = {}
        for work in todo:
            loss, plain = self._work(work, features_BND, batch, known)
            total = total + loss
            sums.append(plain)
        return total, sums

    def _work(self, work: Work, features_BND: Tensor, batch: Batch, known: Known) -> tuple[Tensor, Tensor]:
        features, rows = features_BND, batch
        if work.rows is not None:
            features, rows = features_BND[list(work.rows)], select(batch, work.rows)
        expanded = self._task.expand(rows, work.count)
        valid = None if work.valid_B is None else torch.tensor(work.valid_B, device=features.device)
        logits = self._task.logits(self.model, features, expanded, work.count, valid)
        if self._distil is not None and valid is None:
            known[work.count, work.rows] = logits.detach()
        loss, plain = _weighted(self._task.loss, work.weight_B, expanded, logits)
        if work.teacher is not None and self._distil is not None:
            taught = work.teacher, work.rows
            if taught not in known:
                with torch.no_grad():
                    wider = self._task.expand(rows, work.teacher)
                    known[taught] = self._task.logits(self.model, features, wider, work.teacher)
            divergence = partial(self._divergence, self._distil.temperature)
            penalty, _ = _weighted(divergence, work.weight_B, rows, logits, known[taught])
            loss = loss + self._distil.weight * penalty
        return loss, plain

    def _divergence(self, temperature: float, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return self._task.distil(student, teacher, batch, temperature)


def _weighted(
    measure: Callable[..., Tensor], weight_B: tuple[float, ...], batch: Batch, *logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ weight · measure over rows, and the plain sum without gradient; row by row only where weights differ."""
    if len(set(weight_B)) == 1:
        loss = measure(*logits, batch)
        return weight_B[0] * loss, loss.detach()
    each_B = torch.stack(
        [measure(*(x[row : row + 1] for x in logits), select(batch, (row,))) for row in range(len(weight_B))]
    )
    return (each_B * each_B.new_tensor(weight_B)).sum(), each_B.sum().detach()


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch reduced to some of its rows."""
    return {name: _take(value, rows) for name, value in batch.items()}


def move(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch with its tensors on a device, floating ones in `dtype`."""
    return {name: _moved(value, device, dtype) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _moved(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _take(value: Any, rows: Sequence[int]) -> Any:
    return value[list(rows)] if isinstance(value, Tensor) else [value[row] for row in rows]
