"""Tables as MLflow's artifact view reads them: `{"columns": [...], "data": [[...], ...]}`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokendial.curve import Matrix
from tokendial.results import ExampleAnswers, RunResult

IMAGES = "tables/images"
ANSWER, QUALITY = " tokens", " tokens: quality"


def curve_table(result: RunResult) -> Mapping[str, Any]:
    rows = [
        [
            count,
            round(point.quality, 4),
            round(point.ci[0], 4),
            round(point.ci[1], 4),
            point.n,
            count in result.trained_counts,
        ]
        for count, point in sorted(result.curve.items())
    ]
    return {"columns": ["tokens", "quality", "low", "high", "examples", "trained"], "data": rows}


def matrix_table(matrix: Matrix) -> Mapping[str, Any]:
    rows = [
        [label, *(round(value, 4) for value in line)] for label, line in zip(matrix.rows, matrix.quality, strict=True)
    ]
    return {"columns": ["trained at", *(f"served at {count}" for count in matrix.counts)], "data": rows}


def examples_table(examples: Sequence[ExampleAnswers]) -> Mapping[str, Any]:
    counts = sorted({count for example in examples for count in example.answers})
    rows = [
        [
            {"type": "image", "filepath": f"{IMAGES}/{index}.png", "compressed_filepath": f"{IMAGES}/{index}.png"},
            example.question,
            example.target,
            *(_marked(example, count) for count in counts),
            *(example.quality.get(count) for count in counts),
        ]
        for index, example in enumerate(examples)
    ]
    columns = [f"{count}{ANSWER}" for count in counts] + [f"{count}{QUALITY}" for count in counts]
    return {"columns": ["image", "question", "target", *columns], "data": rows}


def read_examples_table(table: Mapping[str, Any], images: Path) -> list[ExampleAnswers]:
    """What `examples_table` made of examples, without their groups; raises ValueError where a row has other columns.

    Where an older table has no column of a count's quality, it is 1 for an answer marked ✓ and else 0.
    """
    counts = [int(name.removesuffix(ANSWER)) for name in table["columns"] if name.endswith(ANSWER)]
    examples = []
    for line in table["data"]:
        row = dict(zip(table["columns"], line, strict=True))
        told = [count for count in counts if row[f"{count}{ANSWER}"]]
        examples.append(
            ExampleAnswers(
                image_png=(images / row["image"]["filepath"]).read_bytes(),
                question=row["question"],
                target=row["target"],
                answers={count: row[f"{count}{ANSWER}"][2:] for count in told},
                quality={count: _quality(row, count) for count in told},
            )
        )
    return examples


def curve_markdown(result: RunResult) -> str:
    """The run's description in the UI: its curve as a table."""
    lines = [
        f"**{result.workload}**, {result.metric} on {result.split}, schedule {result.schedule}, AUTC {result.autc:.4f}",
        "",
        "| tokens | quality | 95 % interval |",
        "|---:|---:|:---|",
    ]
    lines += [
        f"| {count} | {point.quality:.3f} | {point.ci[0]:.3f} to {point.ci[1]:.3f} |"
        for count, point in sorted(result.curve.items())
    ]
    return "\n".join(lines)


def _marked(example: ExampleAnswers, count: int) -> str:
    if count not in example.answers:
        return ""
    return f"{'✓' if example.quality[count] >= 1 else '✗'} {example.answers[count]}"


def _quality(row: Mapping[str, Any], count: int) -> float:
    return row.get(f"{count}{QUALITY}", float(row[f"{count}{ANSWER}"].startswith("✓")))
