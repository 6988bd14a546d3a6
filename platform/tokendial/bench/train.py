"""`tokendial bench train`: step time against peers, saving of a mixed law, tracking, pooling, start, memory.

Parts run one after another; within a part, loops take turns step by step. Leave the machine alone meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokendial import environment
from tokendial.bench import parts, records
from tokendial.experiments import ConfigError, experiment_names

PARTS = {
    "one": "ZeRO 0–3 and HF Trainer + DeepSpeed with one worker, against a plain torch loop",
    "two": "the same with two workers, against DDP-gloo",
    "saving": "saving realised by the 2:3:5 law against always-max",
    "pooling": "CPU pooling against the read floor",
    "start": "command to first step, peak memory of a worker",
}
QUICK_STEPS = 3


def main(arguments: Sequence[str]) -> int:
    """Measure, print, keep, or show what was kept."""
    parser = parts.parser("train", __doc__, PARTS, f"{QUICK_STEPS} steps")
    parser.add_argument("--steps", type=int, default=40, help="steps of each loop after 5 of warm-up (default 40)")
    parser.add_argument("--experiment", default="digits.demo", help="experiment whose model and data are used")
    chosen = parser.parse_args(list(arguments))
    records.chosen_parts(chosen.only, PARTS)
    if chosen.experiment not in experiment_names() and ":" not in chosen.experiment:
        raise ConfigError(f"experiment {chosen.experiment!r} is unknown; `tokendial train --list` shows them")
    if chosen.steps < 2:
        raise ConfigError(f"--steps {chosen.steps} is too few for a median and its spread; give 2 or more")
    if chosen.show:
        return parts.show(chosen.out)
    environment.apply()
    steps = QUICK_STEPS if chosen.quick else chosen.steps
    return parts.measure(chosen, PARTS, lambda part: _measure(part)(chosen.experiment, steps))


def _measure(part: str) -> Callable[[str, int], list[records.Row]]:
    """A part's measurement as a function of experiment and steps; torch and Ray are imported here."""
    from tokendial.bench import gang, step
    from tokendial.bench.pooling import pooling_rows
    from tokendial.bench.start import start_rows
    from tokendial.train.driver import sigterm_raises

    def on_ray(measure: Callable[[], list[records.Row]]) -> list[records.Row]:
        try:
            with sigterm_raises():
                return measure()
        finally:
            gang.disconnect()

    return {
        "one": lambda name, steps: on_ray(lambda: step.step_rows(name, 1, steps)),
        "two": lambda name, steps: on_ray(lambda: step.step_rows(name, 2, steps)),
        "saving": lambda name, steps: on_ray(lambda: step.saving_rows(name, steps)),
        "pooling": lambda name, steps: pooling_rows(steps),
        "start": lambda name, steps: start_rows(name),
    }[part]
