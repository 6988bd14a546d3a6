"""The examples × counts table: fixed images and questions, the answer at every count coloured right or wrong."""

from collections.abc import Sequence
from pathlib import Path

from tokendial.report.page import cell, page, png_cell, section, table
from tokendial.results import ExampleAnswers


def examples_html(examples: Sequence[ExampleAnswers], path: Path) -> Path:
    """Write the table as one HTML file, the examples whose answer depends most on the count first."""
    note = "green: right, orange: wrong or partly right; examples that change with the count come first"
    parts = [section("Answers", note, examples_body(examples))]
    path.write_text(page("Examples at every count", f"{len(examples)} fixed examples", parts), "utf-8")
    return path


def examples_body(examples: Sequence[ExampleAnswers]) -> str:
    """The table alone."""
    counts = sorted({count for example in examples for count in example.answers})
    ordered = sorted(examples, key=_steadiness)
    rows = [
        [
            png_cell(example.image_png, example.question),
            cell(example.question, "text"),
            cell(example.target, "text"),
            *(_answer(example, count) for count in counts),
        ]
        for example in ordered
    ]
    return table(["image", "question", "target", *(f"{count} tokens" for count in counts)], rows)


def _steadiness(example: ExampleAnswers) -> float:
    """Minus the spread of quality over counts."""
    values = example.quality.values()
    return min(values, default=0.0) - max(values, default=0.0)


def _answer(example: ExampleAnswers, count: int) -> str:
    if count not in example.answers:
        return cell("")
    return cell(example.answers[count] or "(nothing)", "right" if example.quality[count] >= 1 else "wrong")
