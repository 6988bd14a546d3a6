"""The DeepSpeed side of training: one engine per stage, its configuration, its weights. Only this module imports it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from tokendial.contracts import RunConfig, StageConfig, Task
from tokendial.contracts.precision import on_device
from tokendial.train.step import StepModule
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


# DeepSpeed's own default.
MOST_IN_A_BUCKET = 500_000_000


def precision(config: RunConfig[Any], device: torch.device) -> torch.dtype:
    """bf16 where the device has units for it and the configuration allows, else fp32."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if config.precision == "bf16" and device.type == "cpu":
        raise ValueError("precision bf16 needs a GPU; on a CPU use fp32 or auto")
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def engine_config(config: RunConfig[Any], dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration of a run."""
    # Its memory-efficient linear layer would replace torch's own for the whole process, scoring after training too.
    zero: dict[str, Any] = {"stage": config.zero.stage, "memory_efficient_linear": False}
    if config.zero.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.zero.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.rows,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.optimizer.clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype is torch.bfloat16},
        "steps_per_print": 1 << 30,
    }


def start(
    module: StepModule, task: Task, config: RunConfig[Any], stage: StageConfig, dtype: torch.dtype
) -> DeepSpeedEngine:
    """An engine that trains the parts a stage names, with their own peak learning rates."""
    import deepspeed

    freeze_all_but(module, task, stage)
    optimizer = torch.optim.AdamW(
        parameter_groups(module, task, config, stage),
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
    )
    settings = engine_config(config, dtype)
    # DeepSpeed sets its buckets' memory aside at once, several gigabytes by default; no more than all gradients fill.
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    settings["zero_optimization"]["reduce_bucket_size"] = max(1, min(MOST_IN_A_BUCKET, trained))
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


def freeze_all_but(module: StepModule, task: Task, stage: StageConfig) -> None:
    """Take the gradients of parts that the stage does not name; what the model itself froze stays frozen."""
    for name, part in task.parts(module.model).items():
        for parameter in part.parameters():
            parameter.requires_grad_(parameter.requires_grad and name in stage.train)


def parameter_groups(
    module: StepModule, task: Task, config: RunConfig[Any], stage: StageConfig
) -> list[dict[str, Any]]:
    """One group per part and decay; vectors (norms, biases) do not decay. `peak` is what the loop scales."""
    chosen = config.optimizer
    factors = {"tower": chosen.tower_lr_factor, "projector": chosen.projector_lr_factor, "language": 1.0, "head": 1.0}
    parts = dict(task.parts(module.model))
    if module.head is not None:
        parts["head"] = module.head
    groups = []
    for name, part in parts.items():
        parameters = [p for p in part.parameters() if p.requires_grad]
        for decay in (True, False):
            members = [p for p in parameters if (p.dim() >= 2) is decay]
            if members:
                peak = chosen.lr * stage.lr_factor * factors[name]
                weight_decay = chosen.weight_decay if decay else 0.0
                groups.append({"params": members, "lr": peak, "peak": peak, "weight_decay": weight_decay, "part": name})
    return groups


def set_rate(engine: DeepSpeedEngine, fraction: float) -> float:
    """Set every group's learning rate to a fraction of its peak; returns the largest."""
    rates = []
    groups: list[dict[str, Any]] = engine.optimizer.param_groups  # pyright: ignore
    for group in groups:
        group["lr"] = group["peak"] * fraction
        rates.append(group["lr"])
    return max(rates)


def step(engine: DeepSpeedEngine) -> float:
    """Take the optimizer's step where the global batch is complete; returns the gradient norm before clipping."""
    norm = None
    if engine.zero_optimization_stage() == 0:
        # Plain data parallelism keeps no norm; after backward its gradients are already reduced.
        module = cast(StepModule, engine.module)
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    engine.step()
    return float(cast(float, engine.get_global_grad_norm() if norm is None else norm))


def full_state(engine: DeepSpeedEngine) -> Mapping[str, Tensor]:
    """Every tensor of the model on every rank's CPU, whatever the ZeRO stage (collective)."""
    import deepspeed

    model = cast(StepModule, engine.module).model
    parameters = list(model.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=engine.zero_optimization_stage() == 3):
        return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def apart(
    engine: DeepSpeedEngine, task: Task, config: RunConfig[Any], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The model as a rank can run it by itself (collective): under ZeRO-3, whose passes wait for all ranks, a copy."""
    if engine.zero_optimization_stage() < 3:
        return cast(StepModule, engine.module).model
    model = task.build_model(config)
    model.load_state_dict(full_state(engine))
    return on_device(model, device, dtype)


def save(engine: DeepSpeedEngine, folder: Path, state: Mapping[str, Any]) -> None:
    """Write this rank's shards of an exact checkpoint under `folder`/engine (collective)."""
    engine.save_checkpoint(str(folder), tag="engine", client_state=dict(state), save_latest=False)


def restore(engine: DeepSpeedEngine, folder: Path, universal: bool) -> Mapping[str, Any]:
    """Read back what `save` wrote; `universal` reads the converted form for another world size or stage."""
    engine._config.load_universal_checkpoint = universal  # pyright: ignore[reportOptionalMemberAccess]
    # Stage 3 gives every parameter group the first one's settings when it reads the converted form.
    groups: list[dict[str, Any]] = engine.optimizer.param_groups  # pyright: ignore
    own = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    path, state = engine.load_checkpoint(str(folder), tag="universal" if universal else "engine")
    if path is None or state is None:
        raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")
    for group, settings in zip(engine.optimizer.param_groups, own, strict=True):  # pyright: ignore
        group.update(settings)
    if universal and engine.zero_optimization_stage() == 3:
        # It also gives all parameters one and the same step counter, which each of them would then advance.
        for held in engine.optimizer.optimizer.state.values():  # pyright: ignore
            held["step"] = torch.as_tensor(held["step"]).clone()
    return state


def universal(folder: Path) -> None:
    """Convert a ZeRO 1–3 checkpoint so that any world size and stage can read it; written beside the shards."""
    import shutil
    import subprocess
    import sys

    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    part = folder / "universal.part"
    shutil.rmtree(part, ignore_errors=True)
    paths = ["--input_folder", str(folder / "engine"), "--output_folder", str(part)]
    workers = ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    done = subprocess.run([*command, *paths, *workers], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"checkpoint {folder} could not be converted: {done.stderr.strip()[-400:]}")
    _bridge(part)
    part.rename(folder / "universal")


def _bridge(part: Path) -> None:
    """Give the converted form what stage 3 looks for in it, and what the other stages do, whichever wrote it."""
    import shutil

    import deepspeed

    names = ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"]
    there = next(name for name in names if (part / name).exists())
    for name in names:
        if name != there:
            shutil.copy2(part / there, part / name)
    path = part / "zero" / "optimizer_state.pt"
    shared = torch.load(path, weights_only=False)
    parameters = sorted(path.parent.glob("*/exp_avg.pt"))
    if "optimizer_state_dict" not in shared:
        step = torch.load(parameters[0].with_name("step.pt"), weights_only=False)
        shared["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": shared["param_groups"]}
    for parameter in parameters:
        if not parameter.with_name("step.pt").exists():
            torch.save(shared["optimizer_state_dict"]["state"][0]["step"], parameter.with_name("step.pt"))
        for name in ("fp32.pt", "exp_avg.pt", "exp_avg_sq.pt"):
            value = torch.load(parameter.with_name(name), weights_only=False)
            if isinstance(value, torch.Tensor):
                torch.save({"param": value}, parameter.with_name(name))
    shared.setdefault("ds_version", deepspeed.__version__)
    torch.save(shared, path)
