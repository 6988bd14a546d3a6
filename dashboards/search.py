"""Searches: trials, the best curve so far, and what of the budget is spent."""

from panels import Panel, Row, made

RUN = '{run=~"$run"}'
SPENT = f"max by (run) (ray_tokendial_search_spent_flops{RUN})"
BUDGET = f"max by (run) (ray_tokendial_search_budget_flops{RUN})"

ROWS = (
    Row(
        "Search",
        (
            Panel(
                "Budget spent",
                "FLOPs that trials have spent, of those the search may spend.",
                "percentunit",
                ((f"{SPENT} / {BUDGET}", "{{run}}"),),
                "number",
                6,
                1,
            ),
            Panel(
                "Best area",
                "Area under the best trial's validation curve over log2 k, 0 to 1.",
                "percentunit",
                ((f"max by (run) (ray_tokendial_search_best_autc_ratio{RUN})", "{{run}}"),),
                "number",
                6,
                1,
            ),
            Panel(
                "Trials that are over",
                "Of those planned.",
                "percentunit",
                (
                    (
                        'sum by (run) (ray_tokendial_search_trials{run=~"$run", state!="running"}) / '
                        f"max by (run) (ray_tokendial_search_planned_trials{RUN})",
                        "{{run}}",
                    ),
                ),
                "number",
                6,
                1,
            ),
            Panel(
                "Best curve",
                "Quality of the best trial by count.",
                "percentunit",
                ((f"max by (count) (ray_tokendial_search_best_quality_ratio{RUN})", "{{count}}"),),
                "bars",
                6,
                1,
            ),
            Panel(
                "Trials by state",
                "Pruned ones were stopped early at equal spending.",
                "short",
                ((f"max by (run, state) (ray_tokendial_search_trials{RUN})", "{{run}} {{state}}"),),
                span=12,
            ),
            Panel(
                "Spent FLOPs",
                "Beside the budget.",
                "short",
                ((SPENT, "{{run}} spent"), (BUDGET, "{{run}} budget")),
                span=12,
            ),
        ),
    ),
)

BOARD = made("tokendial-search", "tokendial · search", "run", "ray_tokendial_search_planned_trials", ROWS)
