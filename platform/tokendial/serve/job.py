"""A request on its way through the engine, and what is counted of all of them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokendial.serve.batching import Ticket
from tokendial.serve.governor import Choice
from tokendial.serve.request import Chunk, Done, FinishReason, Sampling
from tokendial.serve.writing import Writing

Item = Chunk | Done | Exception


@dataclass(frozen=True, eq=False)
class Mailbox:
    """Where the pieces of an answer are waited for."""

    loop: asyncio.AbstractEventLoop
    items: asyncio.Queue[Item] = field(default_factory=asyncio.Queue)


@dataclass
class Times:
    """Readings of the clock as a job went: started, images encoded, prompt read."""

    began: float = 0.0
    encoded: float = 0.0
    read: float = 0.0


@dataclass(eq=False)
class Job:
    """A prepared request; `digests` and `pixels` are its images'. A replay compares itself with the job it repeats."""

    ticket: Ticket
    prompt: Sequence[int]
    digests: Sequence[str]
    pixels: Sequence[Tensor]
    sampling: Sampling
    writing: Writing
    image_ms: float = 0.0
    choice: Choice | None = None
    expected_quality: float | None = None
    generator: torch.Generator | None = None
    written: list[int] = field(default_factory=list)
    times: Times = field(default_factory=Times)
    mailbox: Mailbox | None = None
    abandoned: bool = False
    replay_of: "Job | None" = None

    @property
    def counts(self) -> tuple[int, ...]:
        """What the governor chose, once started."""
        assert self.choice is not None
        return self.choice.counts

    @property
    def asked(self) -> int:
        """The same number for all jobs of one prompt and the same images."""
        return hash((tuple(self.prompt), tuple(self.digests)))

    @property
    def prompt_tokens(self) -> int:
        """Positions of the prompt, visual tokens included."""
        return len(self.prompt) - len(self.digests) + sum(self.counts)

    @property
    def text_tokens(self) -> int:
        """Positions that are not an image's, those written included."""
        return len(self.prompt) - len(self.digests) + len(self.written)

    def chunk(self, text: str) -> Chunk:
        """A piece of the answer."""
        assert self.choice is not None
        return Chunk(text, self.counts, self.expected_quality, self.choice.reason)

    def done(self, finish_reason: FinishReason, now: float) -> Done:
        """What is told at the end of the answer."""
        assert self.choice is not None
        arrived, times = self.ticket.arrived, self.times
        return Done(
            finish_reason=finish_reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=len(self.written),
            visual_tokens=self.counts,
            wanted_tokens=self.ticket.terms.wanted,
            expected_quality=self.expected_quality,
            reason=self.choice.reason,
            latency_ms={
                "queue": 1e3 * (times.began - arrived) - self.image_ms,
                "image": self.image_ms,
                "encode": 1e3 * (times.encoded - times.began),
                "prefill": 1e3 * (times.read - times.encoded),
                "decode": 1e3 * (now - times.read),
                "total": 1e3 * (now - arrived),
            },
        )


@dataclass
class Counters:
    """Since the engine started. `images` is by the tokens they got; `batched` were read in `batches` passes."""

    accepted: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0
    finished: int = 0
    failed: int = 0
    bent: int = 0
    shadow_bent: int = 0
    replayed: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    batches: int = 0
    batched: int = 0
    images: dict[int, int] = field(default_factory=dict)
