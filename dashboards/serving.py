"""Endpoints: requests, latency, the mix of counts, the governor, quality, replicas; from the endpoint's own page."""

from panels import Panel, Row, made

MODEL = '{model=~"$model"}'
RATE = "[$__rate_interval]"
# The page of one endpoint process is read through the proxy of every node: it counts once.
ONCE = "max without (instance, pod, container)"


# A replica's whole start as Ray measures it, less what ran in its own process.
_STARTED, _BEGUN = (
    f'sum(ray_serve_replica_{part}_latency_ms_sum{{deployment="engine"}})' for part in ("startup", "initialization")
)
SCHEDULE = f'({_STARTED} - {_BEGUN}) / 1000 / sum(ray_serve_replica_startup_latency_ms_count{{deployment="engine"}})'


def _rate(series: str, by: str) -> str:
    return f"sum by ({by}) ({ONCE} (rate(tokendial_serve_{series}_total{MODEL}{RATE})))"


def _quantile(share: float, series: str, by: str) -> str:
    buckets = f"{ONCE} (rate(tokendial_serve_{series}_bucket{MODEL}{RATE}))"
    return f"histogram_quantile({share}, sum by (le, {by}) ({buckets}))"


def _mean(series: str) -> str:
    total, number = (f"sum({ONCE} (rate(tokendial_serve_{series}_{part}{MODEL}{RATE})))" for part in ("sum", "count"))
    return f"{total} / {number}"


ROWS = (
    Row(
        "Requests",
        (
            Panel(
                "Answers",
                "Per second, by HTTP status; streams by how they ended: 499 the client left, 500 failed, 503 lost.",
                "reqps",
                ((_rate("requests", "code"), "{{code}}"),),
                "stacked",
            ),
            Panel(
                "Refusals",
                "Per second, by cause; for load: busy (no room), target (no hope of meeting it), expired (not begun).",
                "reqps",
                ((f"sum by (cause) ({ONCE} (rate(tokendial_serve_refusals_total{RATE})))", "{{cause}}"),),
                "stacked",
            ),
            Panel(
                "Latency of whole answers",
                "Median and 99th percentile, by count.",
                "s",
                (
                    (_quantile(0.5, "latency_seconds", "count"), "{{count}} median"),
                    (_quantile(0.99, "latency_seconds", "count"), "{{count}} 99 %"),
                ),
            ),
            Panel(
                "Time to the first piece",
                "Of streams.",
                "s",
                (
                    (_quantile(0.5, "first_token_seconds", "model"), "median"),
                    (_quantile(0.99, "first_token_seconds", "model"), "99 %"),
                ),
            ),
            Panel("Parts of an answer", "Median.", "s", ((_quantile(0.5, "stage_seconds", "stage"), "{{stage}}"),)),
            Panel(
                "Tokens generated",
                "Per second, by key.",
                "short",
                ((_rate("completion_tokens", "key"), "{{key}}"),),
                "stacked",
            ),
        ),
    ),
    Row(
        "The dial",
        (
            Panel("Images by count", "Per second.", "short", ((_rate("images", "count"), "{{count}}"),), "stacked"),
            Panel(
                "Images by reason",
                "Per second: who chose the count.",
                "short",
                ((_rate("images", "reason"), "{{reason}}"),),
                "stacked",
            ),
            Panel(
                "Visual tokens used and wanted",
                "Per second; between them lies what bending saved.",
                "short",
                (
                    (_rate("visual_tokens", "model"), "{{model}} used"),
                    (_rate("wanted_tokens", "model"), "{{model}} wanted"),
                ),
            ),
            Panel(
                "Governor",
                "By replica: rungs below the largest count, and the share of requests that is held to the rung above.",
                "short",
                (
                    (f"max by (model, replica) (tokendial_serve_governor_level_steps{MODEL})", "{{model}} {{replica}}"),
                    (
                        f"max by (model, replica) (tokendial_serve_governor_lift_ratio{MODEL})",
                        "{{model}} {{replica}} lifted",
                    ),
                ),
                span=6,
            ),
            Panel(
                "Counts that are bent to",
                "By replica: what bending is held to, and the counts that it passes over as their answers disagreed.",
                "short",
                (
                    (f"max by (model, replica) (tokendial_serve_governor_cap_tokens{MODEL})", "{{model}} {{replica}}"),
                    (
                        f"max by (model, replica, count) (tokendial_serve_governor_barred_tokens{MODEL})",
                        "{{model}} {{replica}} barred",
                    ),
                ),
                span=6,
            ),
            Panel(
                "Agreement with full count",
                "Bent answers equal to their replay; the floor rises when it falls.",
                "percentunit",
                ((f"min by (model, count) (tokendial_serve_agreement_ratio{MODEL})", "{{model}} {{count}}"),),
                span=6,
                most=1,
            ),
            Panel(
                "Expected quality",
                "Mean of what answers were promised.",
                "percentunit",
                ((_mean("expected_quality_ratio"), "mean"),),
                span=6,
                most=1,
            ),
        ),
    ),
    Row(
        "Replicas",
        (
            Panel(
                "Replicas",
                "Engines that answer.",
                "short",
                ((f"max by (model) (tokendial_serve_replicas{MODEL})", "{{model}}"),),
            ),
            Panel(
                "In the engines",
                "Requests that wait and that hold a slot.",
                "short",
                (
                    (
                        f"sum by (model) (max by (model, replica) (tokendial_serve_queued_requests{MODEL}))",
                        "{{model}} waiting",
                    ),
                    (
                        f"sum by (model) (max by (model, replica) (tokendial_serve_running_requests{MODEL}))",
                        "{{model}} running",
                    ),
                ),
            ),
            Panel(
                "Visual tokens wanted in flight",
                "At full quality: replicas are added for the larger of this and the next.",
                "short",
                (
                    (
                        f"max by (model, replica) (tokendial_serve_inflight_wanted_tokens{MODEL})",
                        "{{model}} {{replica}}",
                    ),
                ),
            ),
            Panel(
                "Share of each replica's time wanted by arrivals",
                "At full quality, bent and refused ones too. It adds replicas only while requests meet.",
                "percentunit",
                ((f"max by (model, replica) (tokendial_serve_demand_ratio{MODEL})", "{{model}} {{replica}}"),),
            ),
            Panel(
                "Each replica's own ladder",
                "Latency that it measured before it took traffic, by count.",
                "s",
                (
                    (
                        f"max by (replica, count) (tokendial_serve_measured_latency_seconds{MODEL})",
                        "{{replica}} {{count}}",
                    ),
                ),
            ),
            Panel(
                "Start of the newest replica",
                "By part; schedule: what Ray took until its processes began, a mean of all replicas.",
                "s",
                (
                    (f"max by (part) (tokendial_serve_start_seconds{MODEL})", "{{part}}"),
                    (SCHEDULE, "schedule"),
                ),
                "bars",
            ),
            Panel(
                "Versions and retries",
                "The version that takes traffic; changes and answers begun again in an hour.",
                "short",
                (
                    (f"max by (model, version) (tokendial_serve_model_info{MODEL})", "{{model}} {{version}}"),
                    (
                        # Every endpoint process counts every change.
                        "max by (outcome) (increase(tokendial_serve_model_changes_total[1h]))",
                        "{{outcome}}",
                    ),
                    (
                        f"sum by (model) ({ONCE} (increase(tokendial_serve_retries_total{MODEL}[1h])))",
                        "{{model}} retries",
                    ),
                ),
            ),
        ),
    ),
)

BOARD = made("tokendial-serving", "tokendial · serving", "model", "tokendial_serve_requests_total", ROWS)
