"""Time and memory of a run on a larger cluster, calculated: nothing here was measured there.

    step = FLOPs ÷ (workers × peak × utilisation) + (1 − overlap) × communication
    communication = n (w − 1) ÷ w × bytes of the weights ÷ bandwidth of the slowest link
                    n = 2 up to ZeRO 2 (ring all-reduce of gradients), 3 in ZeRO 3 (two gathers, one scatter)
    memory = 2 bytes a weight in bf16, and where it is trained 14 more (its gradient, fp32 copy and two moments);
             4 and 12 in fp32, where ZeRO 1 and 2 hold each worker's part of the trained weights once more;
             divided as the stage divides them

Run it: python -m tokendial.sizing vlm.paper
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from tokendial.contracts import Cost, RunConfig
from tokendial.experiments import workload
from tokendial.resolve import resolve
from tokendial.train.driver import with_horizon
from tokendial.train.horizon import run_cost

# One H100 SXM: dense bf16 FLOP/s; utilisation and overlap are assumptions, 400 Gbit/s the link between nodes.
PEAK_FLOPS = 989e12
UTILISATION = 0.4
OVERLAP = 0.5
LINK_BYTES = {True: 450e9, False: 50e9}
PER_NODE = 8
HEADER = "| GPUs | ZeRO | hours | step, s | of it communication | state per GPU, GB |"


class Size(NamedTuple):
    workers: int
    stage: int
    hours: float
    step_s: float
    communication: float
    state_gb: float

    def row(self) -> str:
        return (
            f"| {self.workers} | {self.stage} | {self.hours:.1f} | {self.step_s:.2f} | {self.communication:.0%} | "
            f"{self.state_gb:.0f} |"
        )


def size(config: RunConfig[Any], workers: int, stage: int) -> Size:
    """The run on `workers` GPUs under a ZeRO stage."""
    config = with_horizon(config)
    cost = workload(config.workload).cost(config)
    steps = config.budget.horizon or 1
    compute_s = run_cost(config, cost, steps).flops / steps / (workers * PEAK_FLOPS * UTILISATION)
    parameters = sum(cost.num_parameters.values())
    passes = 3 if stage == 3 else 2
    sent = passes * (workers - 1) / workers * 2 * parameters
    waited_s = (1 - OVERLAP) * sent / LINK_BYTES[workers <= PER_NODE]
    state = state_bytes(config, cost, workers, stage, bf16=True)
    step_s = compute_s + waited_s
    return Size(workers, stage, step_s * steps / 3600, step_s, waited_s / step_s, state / 1e9)


def state_bytes(config: RunConfig[Any], cost: Cost, workers: int, stage: int, bf16: bool) -> float:
    """What a worker holds of weights, gradients and optimizer under a ZeRO stage, while the most parts are trained."""
    sizes = cost.num_parameters
    trained = max(sum(sizes[part] for part in recipe.train) for recipe in config.stages)
    weight, gradient, optimizer = (2, 2, 12) if bf16 else (4, 4, 12 if stage in (1, 2) else 8)
    held = {1: optimizer * trained, 2: gradient * trained, 3: weight * sum(sizes.values())}
    return sum(size / (workers if stage >= divides else 1) for divides, size in held.items())


def table(config: RunConfig[Any]) -> str:
    """Rows for one node and several, as Markdown."""
    sizes = [size(config, workers, stage) for workers in (8, 16, 32, 64) for stage in (1, 3)]
    return "\n".join([HEADER, "|---|---|---|---|---|---|", *(one.row() for one in sizes)])


if __name__ == "__main__":
    print(table(resolve(sys.argv[1], sys.argv[2:], machine_cpus=None)))
