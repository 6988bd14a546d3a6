"""The loops that are compared: tokendial's own, a plain torch loop (DDP where there are several workers), HF's Trainer.

All train the same model on the same batches at the same counts, in fp32, with AdamW, clipping and a one-cycle rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from tokendial.bench.turns import Loop
from tokendial.contracts import Batch, Task
from tokendial.train import engine as ds
from tokendial.train.horizon import StagePlan
from tokendial.train.loop import Job, State, run_stage
from tokendial.train.order import rank_batches
from tokendial.train.rate import rate
from tokendial.train.step import StepModule

Report = Callable[[int, Mapping[str, float]], None]


def ours(job: Job, plan: StagePlan, report: Report) -> Loop:
    """The training loop of every run (`train.loop.run_stage`): collectives, rate, ledger; `report` as a run reports."""

    def loop(step_done: Callable[[], None]) -> None:
        module = StepModule(job.task, job.task.build_model(job.config), None, job.config.schedule.distil)
        module.train()
        engine = ds.start(module.to(job.device), job.task, job.config, plan.config, job.dtype)

        def after_step(state: State, measured: Mapping[str, float]) -> None:
            report(state.step, measured)
            step_done()

        run_stage(job, engine, plan, State(), after_step)

    return loop


class Loss(nn.Module):
    """A model and its loss per answer token of the worker's own batch, as a plain loop has it."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, batch: Batch, count: int) -> Tensor:
        features_BND = self._task.encode(self.model, batch)
        expanded = self._task.expand(batch, count)
        loss = self._task.loss(self._task.logits(self.model, features_BND, expanded, count), expanded)
        return loss / self._task.num_targets(batch)


def plain(job: Job, plan: StagePlan) -> Loop:
    """A torch loop with nothing around it: fused AdamW, the fastest here; DDP with a static graph and bucket views."""

    def loop(step_done: Callable[[], None]) -> None:
        module, optimizer, scheduler = _parts(job, plan)
        forward: nn.Module = module
        if job.world > 1:
            forward = DistributedDataParallel(
                module, static_graph=True, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        parameters = [p for p in module.parameters() if p.requires_grad]
        for batch, count in zip(_loader(job, plan), counts_of(job, plan), strict=True):
            loss = forward(batch, count)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, job.config.optimizer.clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            loss.item()
            step_done()

    return loop


def trainer(job: Job, plan: StagePlan, folder: str) -> Loop:
    """Hugging Face's Trainer under DeepSpeed, driving its own loop; it logs, saves and evaluates nothing."""

    def loop(step_done: Callable[[], None]) -> None:
        import transformers

        counts = counts_of(job, plan)

        class HandOver(transformers.TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                step_done()

        class Bench(transformers.Trainer):
            def get_train_dataloader(self) -> DataLoader[Any]:
                return _loader(job, plan)

            def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
                return model(inputs, counts[self.state.global_step])

        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=plan.stop,
            per_device_train_batch_size=job.config.rows,
            gradient_accumulation_steps=job.config.accumulation,
            max_grad_norm=job.config.optimizer.clip,
            deepspeed=ds.engine_config(job.config, job.dtype),
            use_cpu=job.device.type == "cpu",
            remove_unused_columns=False,
            average_tokens_across_devices=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        module, optimizer, scheduler = _parts(job, plan)
        Bench(
            model=module, args=arguments, train_dataset=job.examples, callbacks=[HandOver()],  # pyright: ignore
            optimizers=(optimizer, scheduler),
        ).train()  # fmt: skip

    return loop


def counts_of(job: Job, plan: StagePlan) -> Sequence[int]:
    """The count of every step, drawn as the run draws it; the law must give one count a step."""
    first, length = job.span
    draws = (
        job.schedule.draw(job.config.seed, step - first, job.config.global_batch, length)
        for step in range(plan.start, plan.stop)
    )
    return [draw.groups[0].count for draw in draws]


def _parts(job: Job, plan: StagePlan) -> tuple[Loss, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    config = job.config.optimizer
    module = Loss(job.task, job.task.build_model(job.config)).to(job.device)
    module.train()
    grouped = StepModule(job.task, module.model, None, None)
    optimizer = torch.optim.AdamW(
        ds.parameter_groups(grouped, job.task, job.config, plan.config),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    steps = plan.stop - plan.start + 1
    return module, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(config, step, steps))


def _loader(job: Job, plan: StagePlan) -> DataLoader[Any]:
    config = job.config
    indices = rank_batches(
        config.seed, len(job.examples), plan.start, plan.stop, config.accumulation, config.rows, job.world, job.rank
    )
    return DataLoader(
        job.examples,  # pyright: ignore[reportArgumentType]
        batch_sampler=list(indices),
        collate_fn=job.data.collate,
    )
