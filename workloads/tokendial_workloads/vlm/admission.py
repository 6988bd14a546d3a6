"""Whether a projector can run what a configuration asks for, found out before torch is imported."""

from typing import Any

from tokendial.contracts import RunConfig

from .counts import check_count
from .shapes import tower_shape


def check_counts(config: RunConfig[Any]) -> None:
    """Raise ValueError where a scheduled or evaluated count is not admissible, or a mix needs prefixes."""
    model, grid = config.model, tower_shape(config.model).grid
    for field, counts in (("schedule.counts", config.schedule.counts), ("evaluation.counts", config.evaluation.counts)):
        for k in counts:
            try:
                check_count(model.projector, grid, model.max_queries, k)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from error
    if config.schedule.mix == "sample" and model.projector != "query":
        raise ValueError(
            f"schedule.mix 'sample' gives each example a prefix of its own, which projector {model.projector!r} lacks; "
            "choose model.projector=query, or mix one, all, sandwich or stratified"
        )
