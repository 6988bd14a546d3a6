"""The learning rate as a fraction of its peak, a pure function of progress through a stage."""

import math

from tokendial.contracts import OptimizerConfig

ONE_CYCLE_START = 0.04


def rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Multiplier of the peak at `step` of a stage of `steps`.

    one_cycle rises and falls along half cosines (Smith & Topin 2018); cosine rises linearly; constant only warms up.
    """
    warm = config.warmup * steps
    if step < warm:
        share = (step + 1) / (warm + 1)
        if config.shape == "one_cycle":
            return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * (1 - math.cos(math.pi * share)) / 2
        return share
    if config.shape == "constant":
        return 1.0
    share = (step - warm) / max(1.0, steps - warm)
    return config.floor + (1 - config.floor) * (1 + math.cos(math.pi * share)) / 2
