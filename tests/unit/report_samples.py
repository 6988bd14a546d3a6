"""Synthetic answers shaped like the digits experiment: a flexible model and twins that collapse off their count."""

import io
import random
from collections.abc import Mapping

from PIL import Image
from tokendial.curve import ItemScores, group_quality, regret, served_matrix, token_curve
from tokendial.ledger import Ledger
from tokendial.results import ExampleAnswers, RunResult

GRID = (1, 4, 9, 16, 36, 64, 144)
NUM = 800
CURVES: Mapping[int | None, tuple[float, ...]] = {
    None: (0.15, 0.35, 0.53, 0.96, 0.92, 0.96, 0.965),
    4: (0.20, 0.37, 0.30, 0.25, 0.20, 0.15, 0.12),
    16: (0.10, 0.29, 0.30, 0.97, 0.80, 0.70, 0.25),
    144: (0.10, 0.21, 0.40, 0.80, 0.85, 0.93, 0.97),
}
FLOPS: Mapping[int | None, float] = {None: 1e13, 4: 4e12, 16: 6e12, 144: 2e13}


def scores(twin: int | None, seed: int, num: int = NUM) -> ItemScores:
    """Right and wrong answers at the rates of `CURVES`; four questions about each image."""
    draw = random.Random(f"{twin} {seed}")
    quality = {
        count: [float(draw.random() < rate) for _ in range(num)] for count, rate in zip(GRID, CURVES[twin], strict=True)
    }
    return ItemScores([f"m{i // 4}" for i in range(num)], quality, ["read", "count"] * (num // 2))


def name(twin: int | None, seed: int) -> str:
    return f"me.digits.{twin or 'flex'}-{seed}"


def ledger(counts: tuple[int, ...], flops: float) -> Ledger:
    spent = Ledger(price_per_hour=1.2)
    for count in counts:
        spent.add(count, visual_tokens=count * 16000, text_tokens=768000, flops=flops / len(counts), steps=500)
    spent.steps = 500 * len(counts)
    spent.hold(200, workers=2, cpus=2)
    return spent


def result(twin: int | None, seed: int) -> RunResult:
    answers = scores(twin, seed)
    curve = token_curve(answers, resamples=200)
    counts = (4, 16, 144) if twin is None else (twin,)
    return RunResult(
        run_id="0" * 32,
        name=name(twin, seed),
        status="FINISHED",
        autc=curve.autc,
        autc_ci=curve.autc_ci,
        curve=curve.points,
        groups=group_quality(answers),
        metric="accuracy",
        split="test",
        workload="digits",
        experiment="digits",
        schedule="tokenflex" if twin is None else "fixed",
        trained_counts=counts,
        seed=seed,
        steps=1500,
        flops=FLOPS[twin],
        seconds=200.0,
        ledger=ledger(counts, FLOPS[twin]).to_json(),
    )


def with_twins(seeds: tuple[int, ...] = (0, 1, 2)) -> RunResult:
    """The flexible run's result with regret and matrix over seeds."""
    flexible = {seed: scores(None, seed) for seed in seeds}
    twins = {count: {seed: scores(count, seed) for seed in seeds} for count in (4, 16, 144)}
    matrix = served_matrix(flexible, twins)
    return result(None, 0).model_copy(update={"matrix": matrix, "regret": regret(flexible, twins), "twins": "steps"})


def examples(num: int = 4) -> list[ExampleAnswers]:
    rows = []
    for index in range(num):
        image = io.BytesIO()
        Image.new("RGB", (8, 8), (40 * index, 90, 120)).save(image, "PNG")
        right = index % 2 == 0
        answers = {4: "1", 16: "3" if right else "<8>", 144: "3"}
        quality = {4: 0.0, 16: float(right), 144: 1.0}
        rows.append(ExampleAnswers(image.getvalue(), f"which digit is in row {index}?", "3", answers, quality, "read"))
    return rows
