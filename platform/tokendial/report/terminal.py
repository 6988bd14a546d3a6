"""Tables for a terminal: the token curve with its intervals as text bars, the ledger, comparisons."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokendial.curve import Matrix, Rise
from tokendial.ledger import Ledger, Tally
from tokendial.report.palette import FLEXIBLE
from tokendial.report.series import Series, apart, series_of
from tokendial.results import RunResult

BAR_CELLS = 30
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def print_result(result: RunResult, console: Console) -> None:
    """The curve, regret and matrix where there are twins, and the ledger of one run."""
    if result.curve:
        console.print(curve_table(result))
    for after, rise in sorted(result.rises.items()):
        console.print(_rise(after, rise), highlight=False, soft_wrap=True)
    if len(result.groups) > 1:
        console.print(detail_table("By question type", "type", result.groups))
    if result.extras:
        console.print(detail_table("Secondary measures", "measure", result.extras))
    if result.regret:
        console.print(regret_table(result))
    if result.matrix:
        console.print(matrix_table(result.matrix))
    if result.spent:
        console.print(ledger_table(result.spent))


def print_comparison(results: Sequence[RunResult], console: Console) -> None:
    """One row per group of runs, and why groups stay apart; raises ValueError where their grids or metrics differ."""
    series = series_of(results)
    console.print(comparison_table(series))
    for reason in apart(series):
        console.print(reason, highlight=False, soft_wrap=True)


def curve_table(result: RunResult) -> Table:
    """Quality at each count; ● marks a count that the schedule trained at, ├─┤ the 95 % interval."""
    title = f"{result.name}  {result.metric} on {result.split}"
    table = Table(title=title, title_justify="left", caption=_autc(result), caption_justify="left")
    for name in ("tokens", "quality", "95 % interval"):
        table.add_column(name, justify="right")
    table.add_column("0 " + "·" * (BAR_CELLS - 4) + " 1", no_wrap=True)
    for count, point in sorted(result.curve.items()):
        trained = "●" if count in result.trained_counts else "○"
        low, high = point.ci
        table.add_row(
            f"{trained} {count}", f"{point.quality:.3f}", f"{low:.3f} to {high:.3f}", bar(point.quality, low, high)
        )
    return table


def bar(quality: float, low: float, high: float, cells: int = BAR_CELLS) -> Text:
    """A bar of `cells` characters up to the quality, with the interval drawn over its end."""
    eighths = round(min(max(quality, 0.0), 1.0) * cells * 8)
    letters = list("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip())
    letters += [" "] * (cells - len(letters))
    text = Text("".join(letters), style=FLEXIBLE)
    first, last = (min(cells - 1, max(0, int(bound * cells))) for bound in (low, high))
    if last > first:
        marks = Text("├" + "─" * (last - first - 1) + "┤", style="bold")
        return Text.assemble(text[:first], marks, text[last + 1 :])
    return text


def detail_table(title: str, label: str, lines: Mapping[str, Mapping[int, float]]) -> Table:
    """One row per line, one column per count."""
    table = Table(title=title, title_justify="left")
    table.add_column(label)
    counts = sorted({count for line in lines.values() for count in line})
    for count in counts:
        table.add_column(str(count), justify="right")
    for name, line in sorted(lines.items()):
        table.add_row(name, *(f"{line[count]:.3f}" if count in line else "" for count in counts))
    return table


def regret_table(result: RunResult) -> Table:
    """What the flexible model gives up against each twin at the twin's own count."""
    title = f"Regret against twins of the same {result.twins or 'steps'}"
    table = Table(title=title, title_justify="left")
    for name in ("tokens", "regret", "95 % interval", "p", "by seed"):
        table.add_column(name, justify="right")
    for count, gap in sorted(result.regret.items()):
        seeds = "  ".join(f"{value:+.3f}" for _, value in sorted(gap.per_seed.items()))
        table.add_row(str(count), f"{gap.mean:+.4f}", f"{gap.ci[0]:+.4f} to {gap.ci[1]:+.4f}", f"{gap.p:.3f}", seeds)
    return table


def ledger_table(ledger: Ledger) -> Table:
    """What a run spent, per count and in all."""
    money = "" if ledger.money is None else f", price {ledger.money:.2f}"
    caption = f"{ledger.cpu_hours:.3f} CPU-hours, {ledger.gpu_hours:.3f} GPU-hours{money}"
    table = Table(title="Ledger", title_justify="left", caption=caption, caption_justify="left", box=None)
    for name in ("tokens", "steps", "examples", "visual", "text", "pad", "FLOPs", "seconds", "MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for count in sorted(ledger.counts):
        table.add_row(str(count) if count else "warm-up", *_tally(ledger.counts[count]))
    table.add_section()
    table.add_row("all", *_tally(ledger.total))
    return table


def comparison_table(series: Sequence[Series]) -> Table:
    """One row per group of runs: AUTC and quality at each count, mean over seeds."""
    counts = series[0].counts
    table = Table(title="Token curves", title_justify="left")
    table.add_column("runs")
    for name in ("seeds", "AUTC", *map(str, counts)):
        table.add_column(name, justify="right")
    for line in series:
        cells = [f"{line.points[count].quality:.3f}" for count in counts]
        table.add_row(line.label, str(len(line.seeds)), f"{line.autc:.3f}", *cells)
    return table


def matrix_table(matrix: Matrix) -> Table:
    """Trained-at × served-at; a twin's own count in bold."""
    title = f"Trained at × served at (same {matrix.kind}, seeds {', '.join(map(str, matrix.seeds))})"
    table = Table(title=title, title_justify="left")
    table.add_column("trained at")
    for count in matrix.counts:
        table.add_column(str(count), justify="right")
    for label, line in zip(matrix.rows, matrix.quality, strict=True):
        cells = [
            Text(f"{value:.3f}", style="bold" if label == str(count) else "")
            for count, value in zip(matrix.counts, line, strict=True)
        ]
        table.add_row(label, *cells)
    return table


def _autc(result: RunResult) -> str:
    if result.autc is None:
        return ""
    interval = f" ({result.autc_ci[0]:.3f} to {result.autc_ci[1]:.3f})" if result.autc_ci else ""
    return f"AUTC {result.autc:.3f}{interval}   ● trained count   ○ never trained at"


def _rise(after: int, rise: Rise) -> str:
    low, high = (100 * bound for bound in rise.ci)
    verdict = "" if low > 0 else ": a fall" if rise.falls else ": no difference that can be told"
    return f"{rise.before} → {after}: {100 * rise.mean:+.2f} points ({low:+.2f} to {high:+.2f}, paired){verdict}"


def _tally(tally: Tally) -> list[str]:
    return [
        *map(_short, (tally.steps, tally.examples, tally.visual_tokens, tally.text_tokens, tally.pad_tokens)),
        f"{tally.flops:.2e}",
        f"{tally.seconds:,.1f}",
        f"{tally.peak_bytes / 2**20:.0f}",
    ]


def _short(number: int) -> str:
    """At most three digits before a unit: 950, 22.4k, 3.04M; the ledger's JSON has every digit."""
    for scale, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 0.9995 * scale:
            return f"{number / scale:.3g}{unit}"
    return str(number)
