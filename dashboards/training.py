"""Training runs: loss, speed, the ledger by count, ranks and checkpoints."""

from panels import Panel, Row, made

RUN = '{run=~"$run"}'
TRAINED = '{run=~"$run", count!="0"}'
RATE = "[$__rate_interval]"


def _by_count(series: str) -> str:
    """A counter's rate by count; count 0 is the tower's warm-up, which no visual token entered."""
    return f"sum by (count) (rate(ray_tokendial_train_{series}_total{TRAINED}{RATE}))"


def _quantile(share: float) -> str:
    buckets = f"rate(ray_tokendial_train_step_seconds_bucket{RUN}{RATE})"
    return f"histogram_quantile({share}, sum by (le, count) ({buckets}))"


DONE = f"max by (run) (ray_tokendial_train_done_steps{RUN})"
SLOWEST = f"min by (run) (ray_tokendial_train_done_steps{RUN})"
PLANNED = f"max by (run) (ray_tokendial_train_planned_steps{RUN})"
SAVED = f"max by (run) (ray_tokendial_train_checkpoint_steps{RUN})"

ROWS = (
    Row(
        "Progress",
        (
            Panel(
                "Done",
                "Share of the planned steps.",
                "percentunit",
                ((f"{DONE} / {PLANNED}", "{{run}}"),),
                "number",
                6,
                1,
            ),
            Panel(
                "Age of the newest checkpoint",
                "What a crash would cost is less than this.",
                "s",
                ((f"time() - max by (run) (ray_tokendial_train_checkpoint_timestamp_seconds{RUN})", "{{run}}"),),
                "number",
                6,
            ),
            Panel(
                "Batches passed over",
                "Batches whose loss or gradient was not finite; three end a run.",
                "short",
                ((f"max by (run) (ray_tokendial_train_skipped_batches{RUN})", "{{run}}"),),
                "number",
                6,
            ),
            Panel(
                "Tokens a second",
                "Visual and text tokens through the language model, padding left out.",
                "short",
                (
                    (
                        f"sum by (run) (rate(ray_tokendial_train_visual_tokens_total{RUN}{RATE})) + "
                        f"sum by (run) (rate(ray_tokendial_train_text_tokens_total{RUN}{RATE}))",
                        "{{run}}",
                    ),
                ),
                "number",
                6,
            ),
            Panel(
                "Loss by count",
                "Per answer token; counts that lag behind show here first.",
                "none",
                ((f"max by (run, count) (ray_tokendial_train_loss_nats{RUN})", "{{run}} {{count}}"),),
            ),
            Panel(
                "Validation quality by count",
                "The curve while it grows; empty where evaluation.every is 0.",
                "percentunit",
                ((f"max by (run, count) (ray_tokendial_train_validation_quality_ratio{RUN})", "{{run}} {{count}}"),),
                most=1,
            ),
            Panel(
                "Gradient norm",
                "Before clipping.",
                "none",
                ((f"max by (run) (ray_tokendial_train_gradient_norm{RUN})", "{{run}}"),),
            ),
        ),
    ),
    Row(
        "Ledger by count",
        (
            Panel("Visual tokens", "Per second.", "short", ((_by_count("visual_tokens"), "{{count}}"),), "stacked"),
            Panel("FLOPs", "Per second, as executed.", "short", ((_by_count("flops"), "{{count}}"),), "stacked"),
            Panel(
                "Examples",
                "Per second: the mix that the schedule draws.",
                "short",
                ((_by_count("examples"), "{{count}}"),),
                "stacked",
            ),
            Panel(
                "Step time by count",
                "Median and 95th percentile.",
                "s",
                ((_quantile(0.5), "{{count}} median"), (_quantile(0.95), "{{count}} 95 %")),
                span=12,
            ),
            Panel(
                "Steps by count",
                "Steps a minute.",
                "short",
                ((f"60 * sum by (count) (rate(ray_tokendial_train_step_seconds_count{RUN}{RATE}))", "{{count}}"),),
                span=12,
            ),
        ),
    ),
    Row(
        "Ranks and checkpoints",
        (
            Panel(
                "Steps of each rank",
                "A rank that stops holds all others in the next collective.",
                "short",
                ((f"max by (run, rank) (ray_tokendial_train_done_steps{RUN})", "{{run}} rank {{rank}}"),),
                span=12,
            ),
            Panel(
                "Slowest rank behind",
                "Steps between the first and the last rank.",
                "short",
                ((f"{DONE} - {SLOWEST}", "{{run}}"),),
                span=6,
            ),
            Panel(
                "Steps since the checkpoint",
                "Steps that a crash would repeat.",
                "short",
                ((f"{DONE} - {SAVED}", "{{run}}"),),
                span=6,
            ),
        ),
    ),
)

BOARD = made("tokendial-training", "tokendial · training", "run", "ray_tokendial_train_done_steps", ROWS)
