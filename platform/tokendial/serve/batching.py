"""Who starts next: the bounded queue of one replica, and which of it is read in one batch.

Plain Python on clock readings, so that tests can drive it with a simulated clock. Requests whose images get the same
counts start together; the largest such group goes first, unless somebody has waited longer than `patience_s`, so none
starves.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf

from tokendial.serve.governor import Choice, Governor, Terms

_STALL = 0.25
# Requests of a crowd follow one another closer than this; what a pass costs for one more is far less than a pass.
_GAP_S = 0.002


@dataclass(frozen=True)
class Ticket:
    """A request as the queue sees it. `length` is its positions at full count; times are readings of one clock."""

    id: int
    terms: Terms
    arrived: float
    max_new_tokens: int
    length: int = 0
    expires: float = inf
    priority: int = 0

    @property
    def text(self) -> int:
        """Positions that are not an image's."""
        return self.length - sum(self.terms.wanted)


@dataclass(frozen=True)
class Start:
    """Tickets to be read together, each with its counts and the reason for them."""

    choices: Mapping[int, Choice]


class Full(Exception):
    """No room for anybody, or no hope of an answer in time; `retry_after_s` is when there may be."""

    def __init__(self, message: str, retry_after_s: float, for_all: bool) -> None:
        super().__init__(message)
        self.retry_after_s, self.for_all = retry_after_s, for_all


@dataclass
class _Entry:
    """Ready since `joined`."""

    ticket: Ticket
    joined: float
    work_s: tuple[float, ...]
    due: float


@dataclass(frozen=True)
class _Reserved:
    terms: Terms
    work_s: tuple[float, ...]


@dataclass
class _Running:
    """`left_s` of work are to come; `decode_s` of it after the first token, `token_s` for each further one."""

    ticket: Ticket
    left_s: float
    decode_s: float
    token_s: float


class Batcher:
    """The queue and its governor. Every method takes the clock's reading; nothing here waits."""

    def __init__(
        self, governor: Governor, max_queue: int = 128, patience_s: float = 0.1, prefill_tokens: int = 16384
    ) -> None:
        self.governor = governor
        self._max_queue, self._patience_s, self._prefill_tokens = max_queue, patience_s, prefill_tokens
        self._waiting: dict[int, _Entry] = {}
        self._reserved: dict[int, _Reserved] = {}
        self._running: dict[int, _Running] = {}
        self._waiting_s = [0.0] * governor.num_levels
        self._running_s = 0.0
        self._last_rows = 0
        self.new_tokens = 8.0

    @property
    def num_waiting(self) -> int:
        """Requests that have not started, those still being prepared included."""
        return len(self._waiting) + len(self._reserved)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def wanted_tokens(self) -> int:
        """Visual tokens that all requests here would have at full quality."""
        started = [entry.ticket.terms for entry in (*self._waiting.values(), *self._running.values())]
        return sum(sum(terms.wanted) for terms in (*started, *(kept.terms for kept in self._reserved.values())))

    def ahead_s(self) -> list[float]:
        """Calibrated seconds of work that is waiting or running, at each level."""
        return [max(0.0, seconds) + self._running_s for seconds in self._waiting_s]

    def retry_after_s(self) -> float:
        """When the queue will have drained by half, as things stand."""
        return max(0.1, 0.5 * self.governor.scale * self.ahead_s()[-1])

    def reserve(self, ticket_id: int, terms: Terms, max_new_tokens: int, now: float) -> None:
        """Keep a place for a request that is still being prepared; its work counts from now on.

        Full where there is no place, or where its target cannot be met.
        """
        expected = min(self.new_tokens, max_new_tokens)
        work_s = self.governor.work_s(terms, expected)
        self.governor.arrived(now, work_s, met=self.ahead_s()[0] > 0)
        if self.num_waiting >= self._max_queue:
            raise Full(f"{self._max_queue} requests are waiting", self.retry_after_s(), for_all=True)
        if not self.governor.admits(terms, self.ahead_s(), expected):
            told = "the work ahead leaves no time to answer within the target"
            raise Full(told, self.retry_after_s(), for_all=False)
        self._reserved[ticket_id] = _Reserved(terms, work_s)
        self._add(work_s, 1)

    def join(self, ticket: Ticket, now: float) -> None:
        """Take the place that was kept; how much text there is to read is known from now on."""
        reserved = self._reserved.pop(ticket.id)
        work_s = self._work_s(ticket)
        patience_s = min(self._patience_s, ticket.terms.target_s / 4)
        due = ticket.arrived + patience_s * (1 - ticket.priority)
        self._waiting[ticket.id] = _Entry(ticket, now, work_s, due)
        self._add(tuple(known - kept for known, kept in zip(work_s, reserved.work_s, strict=True)), 1)

    def admit(self, ticket: Ticket, now: float) -> None:
        """Reserve and join at once."""
        self.reserve(ticket.id, ticket.terms, ticket.max_new_tokens, now)
        self.join(ticket, now)

    def withdraw(self, ticket_id: int) -> bool:
        """Forget a request that has not started; False where it has."""
        held = self._waiting.pop(ticket_id, None) or self._reserved.pop(ticket_id, None)
        if held is not None:
            self._add(held.work_s, -1)
        return held is not None

    def expired(self, now: float) -> list[Ticket]:
        """Tickets whose time to start has passed; they are gone from the queue."""
        late = [entry.ticket for entry in self._waiting.values() if entry.ticket.expires <= now]
        for ticket in late:
            self.withdraw(ticket.id)
        return late

    def update(self, now: float) -> int:
        """Let the governor look at what the last in line waits for; the level from here on."""
        if not self._waiting:
            return self.governor.update(now, [0.0] * self.governor.num_levels, bool(self._running))
        own_s = next(reversed(self._waiting.values())).work_s
        ahead_s = [total - own for total, own in zip(self.ahead_s(), own_s, strict=True)]
        return self.governor.update(now, ahead_s, bool(self._running))

    def gathering_s(self, now: float, slots: int) -> float:
        """For how long an idle engine should let more requests come before it reads; infinite where none waits.

        Only where the last pass had several: whoever is alone after a crowd waits once, and then never. At most as long
        as the pass will take at full counts, and that long while a request is still being prepared.
        """
        if not self._waiting:
            return inf
        if self._last_rows < 2 or len(self._waiting) >= slots:
            return 0.0
        first, last = next(iter(self._waiting.values())), next(reversed(self._waiting.values()))
        pass_s = self.governor.scale * self.governor.costs.read_s(first.ticket.terms.wanted, len(self._waiting))
        gap_s = inf if self._reserved else _GAP_S
        return max(0.0, min(last.joined + gap_s, first.joined + pass_s) - now)

    def start(self, now: float, free: int, of: int) -> Start | None:
        """The next tickets to read, at most `free` of the `of` slots; None where none should start now."""
        self.update(now)
        if not free or not self._waiting:
            return None
        waiting = sorted(self._waiting.values(), key=lambda entry: (entry.due, entry.ticket.id))
        patient = waiting[0].due > now
        # While others are being written, a few free slots are worth waiting for more: a pass costs much the same.
        if patient and self._running and free < min(len(waiting), of // 4):
            return None
        choices: dict[int, Choice] = {}
        groups: defaultdict[tuple[int, ...], list[_Entry]] = defaultdict(list)
        for entry in waiting:
            ticket = entry.ticket
            choice = self.governor.choose(ticket.terms, now - ticket.arrived, self._expected(ticket), ticket.id)
            choices[ticket.id] = choice
            groups[choice.counts].append(entry)
        first = choices[waiting[0].ticket.id].counts
        chosen = max(groups.values(), key=len) if patient else groups[first]
        started = list(self._fitting(chosen[:free], choices))
        self._last_rows = len(started)
        for entry in started:
            self.withdraw(entry.ticket.id)
            self._run(entry, choices[entry.ticket.id])
        return Start({entry.ticket.id: choices[entry.ticket.id] for entry in started})

    def _fitting(self, group: list[_Entry], choices: Mapping[int, Choice]) -> Iterator[_Entry]:
        """The first of a group that one pass may read, padding counted; always at least one.

        Answers being written stand still meanwhile, once for each of their tokens: a pass is kept so short that this
        costs them no more than `_STALL` of the target in all.
        """
        governor, longest, text = self.governor, 0, 0
        target_s = governor.feasible_s(inf, choices[group[0].ticket.id].counts, self.new_tokens)
        limit_s = _STALL * target_s / max(1.0, self.new_tokens - 1) if self._running else inf
        for rows, entry in enumerate(group, 1):
            longest, text = max(longest, entry.ticket.length), max(text, entry.ticket.text)
            pass_s = governor.scale * governor.costs.read_s(choices[entry.ticket.id].counts, rows, text)
            if rows > 1 and (longest * rows > self._prefill_tokens or pass_s > limit_s):
                return
            yield entry

    def _run(self, entry: _Entry, choice: Choice) -> None:
        expected = self._expected(entry.ticket)
        costs, text = self.governor.costs, entry.ticket.text
        token_s = costs.token_s(choice.counts) + costs.text.step_s(text)
        left_s = costs.share_s(choice.counts, expected) + costs.text.share_s(text, expected)
        self._running[entry.ticket.id] = _Running(entry.ticket, left_s, (expected - 1) * token_s, token_s)
        self._running_s += left_s

    def read(self, ticket_ids: Iterable[int]) -> None:
        """Started tickets have their first token."""
        for ticket_id in ticket_ids:
            running = self._running[ticket_id]
            running.left_s = max(running.token_s, running.decode_s)
        self._sum_running()

    def stepped(self) -> None:
        """Every started ticket has one more token; one that outlives expectation is expected to end next."""
        for running in self._running.values():
            running.left_s = max(running.token_s, running.left_s - running.token_s)
        self._sum_running()

    def leave(self, ticket_id: int, new_tokens: int | None = None) -> None:
        """A started ticket is done, or given up; `new_tokens` of a whole answer are learned from."""
        del self._running[ticket_id]
        self._sum_running()
        if new_tokens is not None:
            self.new_tokens += 0.05 * (new_tokens - self.new_tokens)

    def reprice(self) -> None:
        """What waits anew, after the governor's rules changed."""
        for entry in self._waiting.values():
            entry.work_s = self._work_s(entry.ticket)
        self._waiting_s = [0.0] * self.governor.num_levels
        for held in (*self._waiting.values(), *self._reserved.values()):
            self._add(held.work_s, 1)

    def _sum_running(self) -> None:
        self._running_s = sum(running.left_s for running in self._running.values())

    def _work_s(self, ticket: Ticket) -> tuple[float, ...]:
        return self.governor.work_s(ticket.terms, self._expected(ticket), ticket.text)

    def _expected(self, ticket: Ticket) -> float:
        return min(self.new_tokens, ticket.max_new_tokens)

    def _add(self, work_s: tuple[float, ...], sign: int) -> None:
        if not self.num_waiting:
            # Sums of many floats drift; an empty queue is exactly nothing.
            self._waiting_s = [0.0] * self.governor.num_levels
            return
        self._waiting_s = [held + sign * own for held, own in zip(self._waiting_s, work_s, strict=True)]
