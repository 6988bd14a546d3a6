"""Golden prompts: what training's evaluation answered, asked of a loaded version before it takes traffic.

A version passes where it still gives the recorded answers and so stands by its recorded curve; one that was damaged on
its way, was exported wrongly or runs wrongly on this device does not.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from tokendial.model_folder import Rung
from tokendial.results import ExampleAnswers
from tokendial.serve.backend import Whole
from tokendial.serve.request import Ask, Busy, Sampling, ServeRequest, Turn

LEAST_AGREEMENT = 0.9
MOST_EXAMPLES = 32
AT_ONCE = 8
LATENCY_MS = 3_600_000.0
LONGEST_PAUSE_S = 1.0
_Z = 2.58

Answer = Callable[[ServeRequest], Awaitable[Whole]]


@dataclass(frozen=True)
class Finding:
    """At one count: examples asked, share answered as recorded, quality at least shown, and what the ladder says."""

    count: int
    asked: int
    agreement: float
    quality: float
    recorded: float

    @property
    def passed(self) -> bool:
        """Agreement is high, and the quality shown is not surely (99 %) below the ladder's.

        The few answers that may be odd are not held against the quality once more.
        """
        spread = _Z * sqrt(max(self.recorded * (1 - self.recorded), 1e-4) / self.asked)
        odd = 1 - self.agreement
        return self.agreement >= LEAST_AGREEMENT and self.quality + odd >= self.recorded - spread

    def __str__(self) -> str:
        return (
            f"at {self.count} visual tokens {self.agreement:.0%} of {self.asked} golden answers are as recorded, "
            f"quality {self.quality:.3f} where the ladder says {self.recorded:.3f}"
        )


async def examine(
    answer: Answer, examples: Sequence[ExampleAnswers], rungs: Sequence[Rung], new_tokens: int
) -> list[Finding]:
    """Ask every example at the smallest and the largest rung that it was answered at, for at most `new_tokens`.

    Where there is no room for an example it is asked again, without end: the caller bounds the time.
    """
    recorded = set(examples[0].answers) if examples else set()
    known = sorted((rung for rung in rungs if rung.count in recorded), key=lambda rung: rung.count)
    gate = asyncio.Semaphore(AT_ONCE)

    async def agrees(example: ExampleAnswers, count: int, number: int) -> bool:
        async with gate:
            whole = await _admitted(answer, golden_request(example, count, f"golden-{count}-{number}", new_tokens))
        return _agrees(whole, example.answers[count].strip())

    findings = []
    for rung in dict.fromkeys((known[0], known[-1]) if known else ()):
        chosen = list(examples[:MOST_EXAMPLES])
        same = await asyncio.gather(*(agrees(each, rung.count, number) for number, each in enumerate(chosen)))
        shown = sum(each.quality[rung.count] for each, equal in zip(chosen, same, strict=True) if equal)
        findings.append(Finding(rung.count, len(chosen), sum(same) / len(same), shown / len(same), rung.quality))
    return findings


def golden_request(example: ExampleAnswers, count: int, id: str, new_tokens: int) -> ServeRequest:
    """An example as a client would ask it, greedily, at one count, in no hurry: how fast it is does not matter here."""
    return ServeRequest(
        id=id,
        turns=(Turn("user", (0, example.question)),),
        images=(example.image_png,),
        asks=(Ask(count=count),),
        sampling=Sampling(max_new_tokens=new_tokens),
        latency_ms=LATENCY_MS,
    )


async def _admitted(answer: Answer, request: ServeRequest) -> Whole:
    while True:
        try:
            return await answer(request)
        except Busy as busy:
            await asyncio.sleep(min(busy.retry_after_s, LONGEST_PAUSE_S))


def _agrees(whole: Whole, recorded: str) -> bool:
    """Whether an answer is the recorded one; one that was cut is so as far as it goes: an engine may allow less."""
    text = whole.text.strip()
    if whole.done.finish_reason == "length" and text:
        return recorded.startswith(text)
    return text == recorded
