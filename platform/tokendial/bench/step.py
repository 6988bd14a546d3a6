"""Step time of training against its peers, and what a mixed law saves against always-max: contests and their rows.

Every ratio is the median over rounds of (step of one loop ÷ step of its peer, same batch, same round, same process);
with several workers a step takes as long as its slowest rank.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokendial import identity
from tokendial.bench.records import Row, single, spread
from tokendial.contracts import RunConfig
from tokendial.experiments import ConfigError
from tokendial.resolve import resolve

WARM_STEPS = 5
ROWS = 80
LEAST_STEP_S = 0.15
MOST_OVER_PLAIN = 1.08
MOST_IN_TRACKING = 0.01
LEAST_SAVING = 0.85

# Visual tokens dominate: 256 patches, up to 256 visual tokens beside 51 of text, language model of width 256.
SAVING_ROWS = 8
SAVING_OVERRIDES = (
    "schedule=tokenflex",
    "schedule.counts=[16,64,256]",
    "model.vision.kind=siglip_vision_model",
    'model.vision.config={"hidden_size":128,"num_attention_heads":4,"intermediate_size":384,"num_hidden_layers":2,'
    '"image_size":48,"patch_size":3}',
    "model.language.kind=llama",
    'model.language.config={"hidden_size":256,"num_attention_heads":4,"intermediate_size":768,"num_hidden_layers":4}',
    "evaluation.counts=[16,64,256]",
)


def configuration(experiment: str, workers: int, steps: int, rows: int, *overrides: str) -> RunConfig[Any]:
    """The experiment as one stage that trains everything, `rows` examples per worker and step."""
    config = resolve(
        experiment,
        [
            f"workers={workers}",
            f"global_batch={rows * workers}",
            "micro_batch=null",
            f"budget.steps={steps}",
            'stages=[{"name":"all","share":1}]',
            *overrides,
        ],
    )
    if config.schedule.mix != "one" or config.schedule.distil is not None:
        raise ConfigError(
            f"experiment {experiment!r} has mix {config.schedule.mix!r}; the plain loop it is measured against needs a "
            "law that gives one count a step, without distillation"
        )
    return config


def step_rows(experiment: str, workers: int, steps: int) -> list[Row]:
    """ZeRO 0–3 and Hugging Face's Trainer against the plain loop (DDP for two workers), all in one rotation."""
    total = steps + WARM_STEPS
    configs = {
        stage: configuration(experiment, workers, total, ROWS, f"zero.stage={stage}").model_dump(mode="json")
        for stage in range(4)
    }
    lanes = {f"ZeRO-{stage}": {"kind": "ours", "config": config} for stage, config in configs.items()}
    lanes["plain"] = {"kind": "plain", "config": configs[1]}
    lanes["HF Trainer"] = {"kind": "trainer", "config": configs[1]}
    measured = _contest(lanes, workers, total, tracked="ZeRO-1")
    seconds = _seconds(measured)
    setting = f"{experiment}, {workers} worker{'s' * (workers > 1)}, {ROWS} examples each"
    peer = "DDP-gloo" if workers > 1 else "plain torch loop"
    rows = [_over(f"{name} ÷ {peer}", setting, seconds[name], seconds["plain"]) for name in lanes if name != "plain"]
    rows = [row.model_copy(update={"at_most": MOST_OVER_PLAIN}) if "ZeRO-1" in row.name else row for row in rows]
    rows.append(_over("ZeRO-1 ÷ HF Trainer", setting, seconds["ZeRO-1"], seconds["HF Trainer"]))
    if workers == 1:
        # Other work on the machine does not enter CPU time; with two workers, waiting for the other one does.
        cpu_seconds = _seconds(measured, "cpu_seconds")
        rows.append(_over(f"CPU time, ZeRO-1 ÷ {peer}", setting, cpu_seconds["ZeRO-1"], cpu_seconds["plain"]))
    if statistics.median(seconds["plain"]) < LEAST_STEP_S:
        setting += f" (below {LEAST_STEP_S * 1e3:.0f} ms: figures not valid)"
    rows.append(
        Row(
            name=f"step of the {peer}", setting=setting, unit="s", **spread(seconds["plain"]),
            floor_s=_floor_s(measured, "plain"),
            samples={**seconds, "count": _after_warm(measured[0]["counts"]["plain"])},
        )
    )  # fmt: skip
    return [*rows, *_tracking(measured[0], setting)]


def saving_rows(experiment: str, steps: int) -> list[Row]:
    """Saving realised of the 2:3:5 law against always-max, both through the whole training loop."""
    total = steps + WARM_STEPS
    mixed = configuration(experiment, 1, total, SAVING_ROWS, *SAVING_OVERRIDES)
    always = configuration(experiment, 1, total, SAVING_ROWS, *SAVING_OVERRIDES, "schedule.weights=[0,0,1]")
    lanes = {
        "mixed": {"kind": "ours", "config": mixed.model_dump(mode="json")},
        "always-max": {"kind": "ours", "config": always.model_dump(mode="json")},
    }
    measured = _contest(lanes, 1, total, tracked="mixed")
    return _saving(measured, experiment)


def _saving(measured: Sequence[Mapping[str, Any]], experiment: str) -> list[Row]:
    """Paired time ratios by count, weighted by how often the law drew each; the FLOPs ratio over the same steps."""
    seconds = _seconds(measured)
    counts = _after_warm(measured[0]["counts"]["mixed"])
    flops = {name: _after_warm(values) for name, values in measured[0]["flops"].items()}
    pairs = list(zip(counts, seconds["mixed"], seconds["always-max"], strict=True))
    by_count = {k: [own / most for count, own, most in pairs if count == k] for k in sorted(set(counts))}
    flops_ratio = sum(flops["mixed"]) / sum(flops["always-max"])
    setting = f"{experiment} with 256 patches, counts 16/64/256, LM width 256, {SAVING_ROWS} examples"
    quantiles = [{k: spread(values)[at] if len(values) > 1 else values[0] for k, values in by_count.items()}
                 for at in ("value", "high", "low")]  # fmt: skip
    saved = [
        (1 - sum(ratio[k] * len(by_count[k]) for k in by_count) / len(counts)) / (1 - flops_ratio)
        for ratio in quantiles
    ]
    times = {"value": 1 - saved[0] * (1 - flops_ratio), "low": 0.0, "high": 0.0}
    times |= {"low": 1 - saved[2] * (1 - flops_ratio), "high": 1 - saved[1] * (1 - flops_ratio)}
    return [
        Row(
            name="saving realised, 2:3:5 law", setting=setting, unit="share", value=saved[0], low=saved[1],
            high=saved[2], num_samples=len(counts), at_least=LEAST_SAVING,
            samples={**seconds, "count": counts, **{f"flops {name}": values for name, values in flops.items()}},
        ),
        Row(name="step time, mixed ÷ always-max", setting=setting, unit="ratio", num_samples=len(counts), **times),
        single("FLOPs, mixed ÷ always-max", setting, flops_ratio, "ratio", num_samples=len(counts)),
        Row(
            name="step at always-max", setting=setting, unit="s", **spread(seconds["always-max"]),
            floor_s=_floor_s(measured, "always-max"),
        ),
    ]  # fmt: skip


def _contest(lanes: Mapping[str, Any], workers: int, steps: int, tracked: str) -> list[dict[str, Any]]:
    from tokendial.bench import gang
    from tokendial.resolve import from_document
    from tokendial.tracking import default_uri
    from tokendial.tracking.opening import open_run

    with tempfile.TemporaryDirectory(prefix="tokendial-bench-") as folder:
        uri = default_uri(Path(folder))
        run_id = open_run(from_document(lanes[tracked]["config"]), identity.capture(), uri, Path(folder) / "run")
        order = {"lanes": lanes, "steps": steps, "folder": folder, "tracked": tracked, "uri": uri, "run_id": run_id}
        gang.connect()
        return gang.run_contest(order, workers)


def _seconds(measured: Sequence[Mapping[str, Any]], clock: str = "seconds") -> dict[str, list[float]]:
    """Seconds per step after warm-up, of the slowest rank."""
    lanes = measured[0][clock]
    return {
        name: _after_warm([max(step) for step in zip(*(rank[clock][name] for rank in measured), strict=True)])
        for name in lanes
    }


def _after_warm(values: Sequence[Any]) -> list[Any]:
    return list(values[WARM_STEPS:])


def _over(name: str, setting: str, own: Sequence[float], peer: Sequence[float]) -> Row:
    ratios = [mine / theirs for mine, theirs in zip(own, peer, strict=True)]
    return Row(name=name, setting=setting, unit="ratio", **spread(ratios))


def _floor_s(measured: Sequence[Mapping[str, Any]], lane: str) -> float:
    """Median step FLOPs of a worker at the highest GEMM rate of a rank."""
    rate = max(rank["gemm_flops_per_s"] for rank in measured)
    return statistics.median(_after_warm(measured[0]["flops"][lane])) / rate


def _tracking(first: Mapping[str, Any], setting: str) -> list[Row]:
    """What tracking costs the tracked lane; its threads' CPU time falls on whichever lane has its turn."""
    steps = first["seconds"]["ZeRO-1"]
    return [
        single(name, setting, first[key] / sum(steps), "share", limit, num_samples=len(steps))
        for name, key, limit in (
            ("tracking calls on the training thread ÷ step", "tracking_caller_s", MOST_IN_TRACKING),
            ("CPU time of tracking's own threads ÷ step", "tracking_threads_cpu_s", None),
        )
    ]
