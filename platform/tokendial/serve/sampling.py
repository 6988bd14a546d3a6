"""The next token of each row: the likeliest one, or a draw from the nucleus by the request's own generator.

Shapes: n rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokendial.serve.request import Sampling


def generator_of(sampling: Sampling) -> torch.Generator | None:
    """The request's own generator: a draw never depends on what else is served. None where it is greedy."""
    if sampling.temperature == 0:
        return None
    made = torch.Generator()
    if sampling.seed is None:
        made.seed()
    else:
        made.manual_seed(sampling.seed)
    return made


def next_ids(
    logits_nV: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator | None]
) -> list[int | None]:
    """One id for each row; None where its logits are not numbers, from which nothing can be chosen."""
    likeliest_n = logits_nV.argmax(-1)
    # argmax takes a NaN for the largest, so the largest tells of all.
    finite_n = logits_nV.gather(-1, likeliest_n[:, None])[:, 0].isfinite()
    ids: list[int | None] = [None if index < 0 else index for index in likeliest_n.where(finite_n, -1).tolist()]
    for row, (sampling, generator) in enumerate(zip(samplings, generators, strict=True)):
        if generator is not None and ids[row] is not None:
            ids[row] = _draw(logits_nV[row].float().cpu(), sampling, generator)
    return ids


def _draw(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Nucleus sampling (Holtzman et al. 2020): the fewest likeliest tokens that hold `top_p` of the probability."""
    # In fp64, so that a temperature near 0 is greedy and not a division that overflows.
    prob_V = (logits_V.double() / max(sampling.temperature, 1e-6)).softmax(-1)
    if sampling.top_p < 1:
        sorted_V, order_V = prob_V.sort(descending=True, stable=True)
        outside_V = sorted_V.cumsum(0) - sorted_V >= sampling.top_p
        outside_V[0] = False
        prob_V = prob_V.index_fill(0, order_V[outside_V], 0.0)
    return int(torch.multinomial(prob_V, 1, generator=generator))
