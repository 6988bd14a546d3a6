"""The model's own thread: starts what the batcher chooses, writes one token a turn for every running answer.

Nothing outside this thread touches the model; what a turn brought is handed over at once, at its end.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from math import inf
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from tokendial.contracts.serving import Row, Serving
from tokendial.failures import WorkFailed
from tokendial.serve.batching import Batcher, Full, Start
from tokendial.serve.governor import Choice, Terms
from tokendial.serve.job import Counters, Item, Job
from tokendial.serve.pulse import Pulse
from tokendial.serve.replay import Agreement
from tokendial.serve.request import Busy, FinishReason
from tokendial.serve.sampling import generator_of, next_ids
from tokendial.serve.vision import Vision
from tokendial.serve.writing import Writing

T = TypeVar("T")
Deliver = Callable[[list[tuple[Job, Item]]], None]
_KEPT_REPLAYS = 16


class Loop:
    """Slots and counters of one loaded model, and the thread that turns."""

    def __init__(
        self,
        serving: Serving,
        vision: Vision,
        batcher: Batcher,
        agreement: Agreement,
        deliver: Deliver,
        num_slots: int,
        threads: int,
        replay_share: float,
    ) -> None:
        """`deliver` is called from the model's thread."""
        self.batcher, self.agreement = batcher, agreement
        self.counters = Counters()
        self.pulse = Pulse()
        # Guards batcher, agreement, counters and the collections below; the model runs without it.
        self.lock = threading.Condition()
        self._serving, self._vision, self._deliver = serving, vision, deliver
        self._num_slots, self._threads, self._replay_share = num_slots, threads, replay_share
        self._jobs: dict[int, Job] = {}
        self._running: list[Job] = []
        self._out: list[tuple[Job, Item]] = []
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._replays: deque[Job] = deque(maxlen=_KEPT_REPLAYS)
        self._random = random.Random(0)
        self._closing = False
        self._thread = threading.Thread(target=self._turn_until_closed, name="tokendial-engine", daemon=True)
        self._thread.start()

    def reserve(self, number: int, terms: Terms, max_new_tokens: int) -> None:
        """Keep a place for a job to come; batching.Full where there is none."""
        with self.lock:
            try:
                self.batcher.reserve(number, terms, max_new_tokens, time.monotonic())
            except Full:
                self.counters.refused += 1
                raise

    def give_up(self, number: int) -> None:
        """Let a place go that was kept."""
        with self.lock:
            self.batcher.withdraw(number)
            self.lock.notify()

    def submit(self, job: Job) -> None:
        """Queue a job in its place; WorkFailed where the thread has ended meanwhile."""
        with self.lock:
            if self._closing:
                raise WorkFailed("the engine is closed")
            self.batcher.join(job.ticket, time.monotonic())
            self.counters.accepted += 1
            self._jobs[job.ticket.id] = job
            self.lock.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up, wherever it is; one that is done is left alone."""
        with self.lock:
            if self._jobs.get(job.ticket.id) is not job:
                return
            job.abandoned = True
            self.counters.cancelled += 1
            if self.batcher.withdraw(job.ticket.id):
                del self._jobs[job.ticket.id]
            self.lock.notify()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Have a function run on the model's thread, between turns; WorkFailed where that ends before."""
        future: Future[T] = Future()
        with self.lock:
            if self._closing:
                raise WorkFailed("the engine is closed")
            self._calls.append((future, function))
            self.lock.notify()
        return future

    def close(self) -> None:
        """End the thread; what is unfinished fails."""
        with self.lock:
            self._closing = True
            self.lock.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def _turn_until_closed(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            while self._wait_for_work():
                with self.pulse.turning():
                    self._run_calls()
                    self._turn(self._prepare_turn())
                self._flush()
        finally:
            # Also where a fault of our own ends the thread: nobody may wait for ever.
            with self.lock:
                self._closing = True
                self._out += [(job, WorkFailed("the engine was closed")) for job in self._jobs.values()]
            self._flush()
            for future, _ in self._calls:
                if future.set_running_or_notify_cancel():
                    future.set_exception(WorkFailed("the engine was closed"))

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False where the thread is to end."""
        with self.lock:
            while not (self._closing or self._running or self._replays or self._calls):
                delay_s = self.batcher.gathering_s(time.monotonic(), self._num_slots)
                if not delay_s:
                    break
                self.lock.wait(None if delay_s == inf else delay_s)
            return not self._closing

    def _run_calls(self) -> None:
        """Those that wait by now; what one raises is its caller's to see, and the thread goes on."""
        for _ in range(len(self._calls)):
            future, function = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def _prepare_turn(self) -> Start | None:
        now = time.monotonic()
        with self.lock:
            for ticket in self.batcher.expired(now):
                self.counters.expired += 1
                busy = Busy("the request was not started in time", self.batcher.retry_after_s(), cause="expired")
                self._out.append((self._jobs.pop(ticket.id), busy))
            if gone := [slot for slot, job in enumerate(self._running) if job.abandoned]:
                for slot in gone:
                    self._leave(self._running[slot], None)
                self._release(gone)
            if self.batcher.governor.bar(self.agreement.barred(now)):
                self.batcher.reprice()
            return self.batcher.start(now, self._num_slots - len(self._running), self._num_slots)

    def _turn(self, start: Start | None) -> None:
        if start is not None:
            jobs = [self._jobs[ticket_id] for ticket_id in start.choices]
            for job in jobs:
                job.choice = start.choices[job.ticket.id]
                job.expected_quality = self.batcher.governor.expected(job.counts)
            self._read(jobs)
        elif self._replays and not self._running:
            self._read([self._replays.popleft()])
        if self._running:
            self._write()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out:
            self._deliver(out)

    def _read(self, jobs: list[Job]) -> None:
        """Encode images, read prompts, write the first token of each."""
        governor, text = self.batcher.governor, max(job.text_tokens for job in jobs)
        forecast_s = governor.costs.read_s(jobs[0].counts, len(jobs), text)
        self.pulse.expect(governor.scale * forecast_s)
        began = time.monotonic()
        try:
            visual, encoded = self._vision.tokens(jobs)
            logits = self._serving.prefill([Row(job.prompt, held) for job, held in zip(jobs, visual, strict=True)])
        # Whatever the model raises ends the requests it was about, not the server.
        except Exception as error:
            self._passed("read", jobs, jobs)
            self._fail(jobs, error)
            return
        self._running += jobs
        for job in jobs:
            job.generator = generator_of(job.sampling)
        broken = self._append(jobs, logits)
        self._passed("read", jobs, broken)
        ended = time.monotonic()
        for job in jobs:
            job.times.began, job.times.encoded, job.times.read = began, encoded(), ended
        with self.lock:
            governor.corrected(forecast_s, ended - began, text)
        self._note_read(jobs)
        self._end(jobs, broken)

    def _passed(self, kind: Literal["read", "write"], jobs: Sequence[Job], broken: Collection[Job]) -> None:
        """A pass is over that gave the broken ones of its jobs no token."""
        if len(broken) < len(jobs):
            self.pulse.passed(kind)
        else:
            self.pulse.failed(kind, (job.asked for job in jobs))

    def _note_read(self, jobs: list[Job]) -> None:
        counted = [job for job in jobs if job.replay_of is None]
        with self.lock:
            self.batcher.read(job.ticket.id for job in counted)
            self.counters.batches += 1
            self.counters.batched += len(jobs)
            for job in counted:
                assert job.choice is not None
                self.counters.bent += job.counts != job.ticket.terms.wanted
                self.counters.shadow_bent += job.choice.reason == "shadow"
                for count in job.counts:
                    self.counters.images[count] = self.counters.images.get(count, 0) + 1

    def _write(self) -> None:
        """One more token for every running answer."""
        running = list(self._running)
        governor, text = self.batcher.governor, max(job.text_tokens for job in running)
        total = sum(sum(job.counts) for job in running) // len(running)
        forecast_s = governor.costs.decode_s(total, len(running), text)
        self.pulse.expect(governor.scale * forecast_s)
        began = time.monotonic()
        try:
            logits = self._serving.decode([job.written[-1] for job in running])
        # As above; a step has all running answers in it.
        except Exception as error:
            self._passed("write", running, running)
            self._serving.release(range(len(running)))
            self._running = []
            self._fail(running, error)
            return
        broken = self._append(running, logits)
        self._passed("write", running, broken)
        took_s = time.monotonic() - began
        with self.lock:
            self.batcher.stepped()
            governor.corrected(forecast_s, took_s, text)
        self._end(running, broken)

    def _append(self, jobs: list[Job], logits: Tensor) -> set[Job]:
        """Write each job's next token; those that the model gave none."""
        broken: set[Job] = set()
        ids = next_ids(logits, [job.sampling for job in jobs], [job.generator for job in jobs])
        for job, index in zip(jobs, ids, strict=True):
            if index is None:
                broken.add(job)
                continue
            job.written.append(index)
            if index not in self._serving.stop_ids and (text := job.writing.push(index)):
                self._send(job, job.chunk(text))
        return broken

    def _end(self, jobs: Sequence[Job], broken: set[Job]) -> None:
        """End what is complete and what the model broke; all others go on."""
        if broken:
            self._fail(list(broken), ArithmeticError("logits that are not numbers"))
            self._release([slot for slot, job in enumerate(self._running) if job in broken])
        self._end_complete([job for job in jobs if job not in broken])

    def _end_complete(self, jobs: Sequence[Job]) -> None:
        """End the answers that are complete, and free their slots."""
        reasons: dict[Job, FinishReason] = {
            job: reason for job in jobs if (reason := self._finish_reason(job)) is not None
        }
        if not reasons:
            return
        for job in reasons:
            if rest := job.writing.finish():
                self._send(job, job.chunk(rest))
        now = time.monotonic()
        with self.lock:
            for job, reason in reasons.items():
                if job.replay_of is not None:
                    self._compare(job, job.replay_of, now)
                    continue
                self._leave(job, len(job.written))
                self._offer_replay(job)
                self._send(job, job.done(reason, now))
        self._release([slot for slot, job in enumerate(self._running) if job in reasons])

    def _finish_reason(self, job: Job) -> FinishReason | None:
        if job.writing.stopped or job.written[-1] in self._serving.stop_ids:
            return "stop"
        return "length" if len(job.written) >= job.sampling.max_new_tokens else None

    def _leave(self, job: Job, new_tokens: int | None) -> None:
        """A started job is over; `new_tokens` where it came to its end."""
        if self._jobs.pop(job.ticket.id, None) is None:
            return
        self.batcher.leave(job.ticket.id, new_tokens)
        if new_tokens is not None:
            self.counters.finished += 1
            self.counters.new_tokens += new_tokens
            self.counters.prompt_tokens += job.prompt_tokens

    def _release(self, slots: Sequence[int]) -> None:
        if slots:
            self._running = [self._running[slot] for slot in self._serving.release(slots)]

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        failure = WorkFailed(f"the model failed: {type(error).__name__}: {error}")
        with self.lock:
            for job in jobs:
                self.counters.failed += job.replay_of is None
                self._leave(job, None)
                self._send(job, failure)

    def _send(self, job: Job, item: Item) -> None:
        if job.replay_of is None and not job.abandoned:
            self._out.append((job, item))

    def _offer_replay(self, job: Job) -> None:
        """Keep a sample of bent greedy answers, to be written again when nothing else is to be done."""
        wanted = job.ticket.terms.wanted
        if job.counts == wanted or job.sampling.temperature or self._random.random() >= self._replay_share:
            return
        writing = Writing(self._serving.text, job.sampling.stop)
        full = Choice(wanted, "largest", wanted)
        self._replays.append(
            Job(job.ticket, job.prompt, job.digests, job.pixels, job.sampling, writing, choice=full, replay_of=job)
        )

    def _compare(self, full: Job, bent: Job, now: float) -> None:
        self.counters.replayed += 1
        for count, wanted in zip(bent.counts, full.counts, strict=True):
            if count != wanted:
                self.agreement.add(count, full.written == bent.written, now)
