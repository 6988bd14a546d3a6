"""One replica's engine: a loaded model, asked from asyncio, answering many requests at once."""

import asyncio
import base64
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Self, TypeVar

import torch

from tokendial import machine
from tokendial.contracts.serving import Serving
from tokendial.experiments import ConfigError, workload
from tokendial.failures import WorkFailed
from tokendial.model_folder import Rung, check_digests, read_card
from tokendial.serve.batching import Batcher, Full, Ticket
from tokendial.serve.cache import TensorCache
from tokendial.serve.calibration import calibrate
from tokendial.serve.costs import Costs, Line
from tokendial.serve.governor import Governor, Terms
from tokendial.serve.job import Counters, Item, Job, Mailbox
from tokendial.serve.ladder import Ladder, read_ladder
from tokendial.serve.loop import Loop
from tokendial.serve.replay import Agreement
from tokendial.serve.request import BadRequest, Busy, Chunk, Done, ServeRequest
from tokendial.serve.settings import EngineSettings
from tokendial.serve.terms import terms_of
from tokendial.serve.vision import Vision
from tokendial.serve.writing import Writing

T = TypeVar("T")
_ASSUMED_NEW_TOKENS = 8  # of the whole answer that a ladder's latency is told for
# Characters a token, four times what text has: a megabyte takes seconds to write as ids, only to be found too long.
_LONGEST_TOKEN = 16
_FREE_SHARE = 0.5  # of the GPU's memory, for what slots hold; the rest is for passes and for storage that is grown
_LEAST_TEXT = 64  # positions of a short question and its answer


@dataclass(frozen=True)
class EngineLoad:
    """A look at one replica. `cap` is the count that consenting requests are held to, None at level 0.

    A share `lift` of them is served one level up; `barred` counts are not bent to because their answers disagreed.
    `demand_share` is the share of the replica's time that arrivals, refused ones included, want at full count;
    `crowded` tells whether they met, so that another replica would help them.
    """

    queued: int
    running: int
    wanted_tokens: int
    demand_share: float
    crowded: bool
    level: int
    cap: int | None
    lift: float
    barred: tuple[int, ...]
    retry_after_s: float
    cost_scale: float
    agreement: Mapping[int, float]
    cached_bytes: int
    cache_hits: int
    cache_misses: int
    alive: bool
    counters: Counters


class Engine:
    """Requests in, pieces of answers out. Made in any thread; `generate` is called from an event loop."""

    def __init__(self, serving: Serving, ladder: Ladder, settings: EngineSettings) -> None:
        self.settings = settings
        self._serving, self._ladder = serving, ladder
        free = Line(0.0, 0.0)
        unmeasured = Costs(free, {ladder.largest: free}, {ladder.largest: free}, settings.slots)
        efficient = ladder.efficient()
        quality = {count: rung.quality for count, rung in ladder.rungs.items()}
        governor = Governor(
            efficient, quality, unmeasured, settings.governor, 1e-3 * settings.target_ms, settings.floor_quality
        )
        self._batcher = Batcher(governor, settings.max_queue, 1e-3 * settings.patience_ms, settings.prefill_tokens)
        best = quality[ladder.largest]
        promised = {count: max(settings.min_agreement, quality[count] + best - 1) for count in efficient}
        self._cache = TensorCache(settings.cache_mib * 2**20)
        self._vision = Vision(serving, self._cache)
        self._loop = Loop(
            serving,
            self._vision,
            self._batcher,
            Agreement(promised),
            _deliver,
            settings.slots,
            settings.threads or machine.cpus(),
            settings.replay_share,
        )
        self._numbers = itertools.count()
        self._preparer = ThreadPoolExecutor(settings.threads or machine.cpus(), "tokendial-prepare")

    @classmethod
    def load(cls, folder: Path, settings: EngineSettings) -> Self:
        """The engine of an exported folder, every file of it checked; never runs code of the folder.

        Raises ConfigError where the folder is not as it was exported, or is of a workload that cannot be served.
        """
        card = read_card(folder)
        check_digests(folder)
        chosen = workload(card.workload)
        if chosen.serve is None:
            raise ConfigError(f"workload {card.workload!r} of {str(folder)!r} cannot be served")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        try:
            serving = chosen.serve(str(folder), device, dtype, settings.slots)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        ladder = read_ladder(folder, serving.counts)
        _bound(serving, ladder.largest, settings, device)
        return cls(serving, ladder, settings)

    async def calibrate(self) -> None:
        """Measure what each count of the ladder costs here; until then nothing is bent. Wants an idle engine."""
        _, pixels = self._vision.pixels(_PIXEL)
        prompt, text = (self._serving.prompt([_Probe("user", parts)]) for parts in ((0, "?"), ("?",)))
        counts, slots = sorted(self._ladder.rungs), self.settings.slots
        most_text = min(self.settings.max_prompt_tokens, self._serving.context)
        costs = await self._on_thread(lambda: calibrate(self._serving, counts, slots, pixels, prompt, text, most_text))
        with self._loop.lock:
            self._batcher.governor.recost(costs)
            self._batcher.reprice()
        self._ladder = self._ladder.measured(costs, _ASSUMED_NEW_TOKENS, self._serving.device)

    async def compile(self) -> None:
        """Have the model make its faster forms, one between two turns: answers never wait for all of them."""
        _, pixels = self._vision.pixels(_PIXEL)
        for capture in self._serving.captures(pixels, sorted(self._ladder.rungs)):
            await self._on_thread(capture)

    def ladder(self) -> tuple[Rung, ...]:
        """The rungs by count, rising, with this replica's own latency once it is calibrated."""
        return tuple(self._ladder.rungs[count] for count in sorted(self._ladder.rungs))

    def check(self, request: ServeRequest) -> None:
        """Raise BadRequest where a request cannot be served as it is. Takes no place; decodes images."""
        self._prepare(request, self._terms(request), -1, time.monotonic())

    async def generate(self, request: ServeRequest) -> AsyncGenerator[Chunk | Done]:
        """Pieces of the answer, then how it went. Closing the iterator gives the request up and frees its slot.

        Raises BadRequest or Busy before the first piece; WorkFailed where the model fails.
        """
        job = await self._submitted(request)
        assert job.mailbox is not None
        try:
            while True:
                item = await job.mailbox.items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Done):
                    return
        finally:
            self._loop.cancel(job)

    def load_state(self) -> EngineLoad:
        """How busy the replica is and what it has done; safe to call from any thread."""
        batcher, cache = self._batcher, self._cache
        with self._loop.lock:
            level = batcher.update(time.monotonic())
            return EngineLoad(
                queued=batcher.num_waiting,
                running=batcher.num_running,
                wanted_tokens=batcher.wanted_tokens,
                demand_share=batcher.governor.demand_share,
                crowded=batcher.governor.crowded,
                level=level,
                cap=batcher.governor.cap(level),
                lift=batcher.governor.lift,
                barred=tuple(sorted(self._loop.agreement.barred(time.monotonic()))),
                retry_after_s=batcher.retry_after_s(),
                cost_scale=batcher.governor.scale,
                agreement=self._loop.agreement.shares(),
                cached_bytes=cache.num_bytes,
                cache_hits=cache.hits,
                cache_misses=cache.misses,
                alive=self._loop.alive,
                counters=replace(self._loop.counters, images=dict(self._loop.counters.images)),
            )

    def fault(self) -> str | None:
        """Why this engine should be replaced, None where it works; safe to call from any thread."""
        return self._loop.pulse.fault() if self._loop.alive else "the engine's thread has ended"

    async def close(self) -> None:
        """End the model's thread; unfinished requests raise WorkFailed."""
        await asyncio.get_running_loop().run_in_executor(None, self._loop.close)
        self._preparer.shutdown(wait=False)

    async def _submitted(self, request: ServeRequest) -> Job:
        if not self._loop.alive:
            raise WorkFailed("the engine is closed")
        number, now, running = next(self._numbers), time.monotonic(), asyncio.get_running_loop()
        terms = self._terms(request)
        try:
            self._loop.reserve(number, terms, request.sampling.max_new_tokens)
        except Full as full:
            cause = "busy" if full.for_all else "target"
            raise Busy(str(full), full.retry_after_s, full.for_all, cause) from full
        try:
            job = await running.run_in_executor(self._preparer, self._prepare, request, terms, number, now)
        except BaseException:
            self._loop.give_up(number)
            raise
        job.mailbox = Mailbox(running)
        self._loop.submit(job)
        return job

    def _terms(self, request: ServeRequest) -> Terms:
        """What can be judged without looking at images or text."""
        settings, sampling = self.settings, request.sampling
        if len(request.images) > settings.max_images:
            raise BadRequest("messages", f"{len(request.images)} images; at most {settings.max_images} are allowed")
        if not 1 <= sampling.max_new_tokens <= settings.max_new_tokens:
            raise BadRequest(
                "max_completion_tokens",
                f"{sampling.max_new_tokens} new tokens are asked for; 1 to {settings.max_new_tokens} are allowed",
            )
        length = sum(len(part) for turn in request.turns for part in turn.parts if isinstance(part, str))
        if length > (most := _LONGEST_TOKEN * settings.max_prompt_tokens):
            raise BadRequest("messages", f"the messages have {length} characters; at most {most} are allowed")
        shown = [part for turn in request.turns for part in turn.parts if isinstance(part, int)]
        if shown != list(range(len(request.images))):
            raise BadRequest("messages", f"the turns show images {shown} of {len(request.images)}, not each in order")
        return terms_of(request, self._ladder, self._forecast(sampling.max_new_tokens))

    def _prepare(self, request: ServeRequest, terms: Terms, number: int, now: float) -> Job:
        """Decode images and write the prompt: some milliseconds, in any thread."""
        settings, sampling = self.settings, request.sampling
        began = time.monotonic()
        digests, pixels = self._pixels(request.images)
        image_ms = 1e3 * (time.monotonic() - began)
        try:
            prompt = self._serving.prompt(request.turns)
        except ValueError as error:
            raise BadRequest("messages", str(error)) from error
        length = len(prompt) - len(digests) + sum(terms.wanted)
        room = max(0, min(settings.max_prompt_tokens, self._serving.context - sampling.max_new_tokens))
        if length > room:
            told = f"the prompt has {length} tokens, visual ones included; at most {room} fit"
            raise BadRequest("messages", f"{told} beside {sampling.max_new_tokens} new ones")
        ticket = Ticket(
            id=number,
            terms=terms,
            arrived=now,
            max_new_tokens=sampling.max_new_tokens,
            length=length,
            expires=inf if request.deadline is None else request.deadline.at,
            priority=request.priority,
        )
        return Job(ticket, prompt, digests, pixels, sampling, Writing(self._serving.text, sampling.stop), image_ms)

    def _pixels(self, images: Sequence[bytes]) -> tuple[list[str], list[torch.Tensor]]:
        digests, pixels = [], []
        for number, content in enumerate(images):
            try:
                digest, held = self._vision.pixels(content)
            except ValueError as error:
                raise BadRequest(f"images.{number}", str(error)) from error
            digests.append(digest)
            pixels.append(held)
        return digests, pixels

    def _forecast(self, max_new_tokens: int) -> Callable[[Sequence[int]], float]:
        expected = min(self._batcher.new_tokens, max_new_tokens)
        return lambda counts: self._batcher.governor.costs.alone_s(counts, expected)

    async def _on_thread(self, function: Callable[[], T]) -> T:
        """The result of a function that the model's thread runs between turns."""
        return await asyncio.wrap_future(self._loop.call(function))


@dataclass(frozen=True)
class _Probe:
    """The shortest conversation about an image."""

    role: str
    parts: tuple[str | int, ...]


# A black PNG of one pixel.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)


def _bound(serving: Serving, largest: int, settings: EngineSettings, device: torch.device) -> None:
    """Bound what the slots hold; ConfigError where that leaves no room for an image at its largest count."""
    if serving.context <= largest:
        raise ConfigError(f"the language model reads {serving.context} positions, an image takes {largest} of them")
    if settings.slots_mib is not None:
        num_bytes = settings.slots_mib * 2**20
    elif device.type == "cuda":
        num_bytes = int(_FREE_SHARE * torch.cuda.mem_get_info(device)[0])
    else:
        return
    needed = min(serving.context, largest + _LEAST_TEXT)
    serving.bound(num_bytes)
    if serving.context < needed:
        raise ConfigError(
            f"{num_bytes / 2**20:.0f} MiB (engine.slots_mib) hold {serving.context} positions in each of "
            f"{settings.slots} slots (engine.slots); an image at its largest count and a short question need {needed}"
        )


def _deliver(out: list[tuple[Job, Item]]) -> None:
    """Hand a turn's items to the event loops of those who wait for them."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Item]]] = defaultdict(list)
    for job, item in out:
        assert job.mailbox is not None
        by_loop[job.mailbox.loop].append((job.mailbox, item))
    for loop, mail in by_loop.items():
        # A loop that has ended has nobody left who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_put, mail)


def _put(mail: list[tuple[Mailbox, Item]]) -> None:
    for mailbox, item in mail:
        mailbox.items.put_nowait(item)
