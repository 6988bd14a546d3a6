"""Who starts next: groups of equal counts, ageing, priorities, bounds; and replays of bent answers."""

from dataclasses import replace
from math import inf

import pytest
from serve_simulation import BENDS, CAPACITY, COSTS, RATIO, STAYS, governor, poisson, scaled, simulate
from tokendial.serve.batching import Batcher, Full, Ticket
from tokendial.serve.costs import Text
from tokendial.serve.governor import Governor, Terms
from tokendial.serve.replay import Agreement

FREE = scaled(0.0)  # before calibration nothing is known to cost anything


def exact(*counts: int) -> Terms:
    return Terms(counts, (True,) * len(counts))


def ticket(number: int, terms: Terms = BENDS, arrived: float = 0.0, **fields: float) -> Ticket:
    return Ticket(number, terms, arrived, **{"max_new_tokens": 4, **fields})  # type: ignore[arg-type]


def batcher(*tickets: Ticket, mode: str = "off", **settings: float) -> Batcher:
    made = Batcher(governor(mode, COSTS if mode == "on" else FREE), **settings)  # type: ignore[arg-type]
    for one in tickets:
        made.admit(one, one.arrived)
    return made


def started(of: Batcher, now: float = 0.0, free: int = 32) -> list[int]:
    start = of.start(now, free, 32)
    return [] if start is None else list(start.choices)


def test_requests_with_the_same_counts_start_together_the_largest_group_first() -> None:
    queue = batcher(*(ticket(number, exact(16 if number % 3 else 256)) for number in range(9)))
    assert started(queue) == [1, 2, 4, 5, 7, 8]
    assert started(queue) == [0, 3, 6]
    assert started(queue) == []
    assert (queue.num_waiting, queue.num_running) == (0, 9)


def test_images_of_one_request_count_together() -> None:
    queue = batcher(ticket(0, exact(16, 64)), ticket(1, exact(64, 16)), ticket(2, exact(16, 64)))
    assert started(queue) == [0, 2]


def test_bent_requests_join_those_who_asked_for_what_they_are_bent_to() -> None:
    queue = batcher(*(ticket(number, BENDS) for number in range(8)), ticket(8, exact(16)), mode="on")
    queue.governor.level = 3
    queue.governor.update = lambda now, ahead_s, running: 3  # type: ignore[method-assign]
    assert started(queue) == list(range(9))


def test_a_lone_request_waits_no_longer_than_patience_for_larger_groups() -> None:
    queue = batcher(ticket(0, exact(256)), patience_s=0.1)
    for wave in range(10):
        now = 0.03 * wave
        for number in range(8):
            queue.admit(ticket(1 + 8 * wave + number, exact(16), arrived=now), now)
        begun = started(queue, now, free=8)
        if 0 in begun:
            assert begun == [0]
            assert now == pytest.approx(0.12)
            return
    pytest.fail("the lone request starved")


def test_nobody_starves_under_a_flood_of_others() -> None:
    """A hundredth of the requests want a count of their own, at more than the replica can serve."""
    terms = [exact(16)] * 99 + [exact(64)]
    outcome = simulate(poisson(2 * RATIO * CAPACITY, 10, terms, 0), governor("off"), max_queue=64)
    lone = [one.latency_s for one in outcome.accepted if one.terms.wanted == (64,)]
    assert len(lone) > 5
    others = [one.latency_s for one in outcome.accepted if one.terms.wanted == (16,)]
    assert max(lone) < max(others) + 0.2


def test_higher_priority_starts_first_among_requests_of_one_age_but_age_wins_in_the_end() -> None:
    queue = batcher(ticket(0), ticket(1, priority=1), patience_s=0.1)
    assert started(queue, free=1) == [1]
    aged = batcher(ticket(0, arrived=0.0), ticket(1, arrived=0.5, priority=3), patience_s=0.1)
    assert started(aged, now=0.6, free=1) == [0]


def test_a_pass_reads_no_more_positions_than_it_may_but_always_one_request() -> None:
    queue = batcher(*(ticket(number, length=300) for number in range(5)), prefill_tokens=700)
    assert [len(started(queue)) for _ in range(3)] == [2, 2, 1]
    assert started(batcher(ticket(0, length=5000), prefill_tokens=700)) == [0]


def test_a_pass_beside_running_answers_is_kept_short() -> None:
    """Four tokens, a second in all: each of three steps may be held up by a twelfth of it, three rows of 28 ms."""
    queue = batcher(ticket(100), mode="on")
    queue.new_tokens = 4
    assert started(queue) == [100]
    for number in range(12):
        queue.admit(ticket(number, exact(256)), 0.0)
    assert started(queue) == [0, 1]
    for number in (100, 0, 1):
        queue.leave(number)
    assert started(queue) == list(range(2, 12))


def test_a_few_free_slots_wait_for_more_while_others_are_written() -> None:
    queue = batcher(ticket(100))
    assert started(queue) == [100]
    for number in range(20):
        queue.admit(ticket(number), 0.0)
    assert started(queue, now=0.01, free=2) == []
    assert len(started(queue, now=0.2, free=2)) == 2
    assert len(started(queue, now=0.02, free=8)) == 8


def test_the_queue_is_bounded_and_what_is_being_prepared_counts() -> None:
    queue = batcher(*(ticket(number) for number in range(3)), max_queue=3)
    with pytest.raises(Full) as full:
        queue.admit(ticket(3), 0.0)
    assert full.value.retry_after_s > 0
    assert queue.withdraw(0)
    queue.reserve(4, BENDS, 4, now=0.0)
    with pytest.raises(Full):
        queue.reserve(5, BENDS, 4, now=0.0)
    assert queue.num_waiting == 3
    assert started(queue) == [1, 2]
    queue.join(ticket(4), 0.0)
    assert started(queue) == [4]


def test_what_cannot_be_in_time_is_refused_where_the_governor_is_on_and_queued_where_it_is_off() -> None:
    bending = batcher(mode="on")
    refused = 0
    for number in range(100):
        try:
            bending.admit(ticket(number, STAYS), 0.0)
        except Full:
            refused += 1
    assert refused > 60
    assert bending.num_waiting > 10
    hurried = Terms((256,), (False,), target_s=0.2)
    with pytest.raises(Full, match="within the target"):
        bending.admit(ticket(2000, hurried), 0.0)
    bending.admit(ticket(3000, Terms((256,), (False,), target_s=60.0)), 0.0)
    assert batcher(*(ticket(number, STAYS) for number in range(100))).num_waiting == 100


def test_an_idle_replica_takes_even_a_request_whose_target_cannot_be_met() -> None:
    queue = batcher(ticket(0, Terms((256,), (False,), target_s=1e-6)), mode="on")
    assert started(queue) == [0]


def test_expired_tickets_leave_and_their_work_with_them() -> None:
    queue = batcher(ticket(0, expires=1.0), ticket(1, expires=inf), mode="on")
    before = queue.ahead_s()
    assert [one.id for one in queue.expired(1.0)] == [0]
    assert queue.ahead_s() == pytest.approx([seconds / 2 for seconds in before])
    assert queue.withdraw(1)
    assert queue.ahead_s() == [0.0] * 4
    assert not queue.withdraw(1)


def test_work_ahead_shrinks_as_answers_are_written_and_ends_at_nothing() -> None:
    queue = batcher(*(ticket(number) for number in range(4)), mode="on")
    waiting = queue.ahead_s()[0]
    start = queue.start(0.0, 32, 32)
    assert start is not None
    seen = [queue.ahead_s()[0]]
    queue.read(start.choices)
    seen.append(queue.ahead_s()[0])
    for _ in range(6):
        queue.stepped()
        seen.append(queue.ahead_s()[0])
    assert seen[0] == pytest.approx(waiting)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] > 0, "an answer that outlives expectation still has a token to come"
    for number in start.choices:
        queue.leave(number, 9)
    assert queue.ahead_s() == [0.0] * 4
    assert queue.new_tokens > 8


def test_wanted_tokens_are_those_of_full_quality_however_far_requests_are_bent() -> None:
    queue = batcher(*(ticket(number) for number in range(40)), mode="on")
    assert queue.wanted_tokens == 40 * 256
    begun = queue.start(0.0, 8, 8)
    assert begun is not None
    assert {choice.counts for choice in begun.choices.values()} != {(256,)}
    assert queue.wanted_tokens == 40 * 256


def test_new_rules_reprice_what_waits() -> None:
    queue = batcher(*(ticket(number) for number in range(4)), mode="on")
    before = queue.ahead_s()
    queue.governor.bar({16})
    queue.reprice()
    assert queue.ahead_s()[:3] == before[:3]
    assert queue.ahead_s()[3] == before[2] > before[3]


def test_agreement_that_falls_short_of_the_ladders_promise_bars_a_count_for_a_while() -> None:
    agreement = Agreement({16: 0.8, 64: 0.9}, bar_s=100)

    def replay(times: int, now: float) -> None:
        for number in range(times):
            agreement.add(16, number % 5 != 4, now)
            agreement.add(64, number % 5 != 4, now)

    replay(25, now=1.0)
    assert agreement.shares() == {16: 0.8, 64: 0.8}
    assert agreement.barred(1.0) == frozenset(), "0.8 of 25 may still be 0.9"
    replay(100, now=2.0)
    assert agreement.barred(2.0) == {64}
    assert agreement.barred(150.0) == frozenset()


def test_a_few_bad_replays_are_no_evidence() -> None:
    agreement = Agreement({16: 1.0})
    for _ in range(19):
        agreement.add(16, False, now=0.0)
    assert agreement.barred(0.0) == frozenset()
    agreement.add(16, False, now=0.0)
    assert agreement.barred(0.0) == {16}


def test_the_governor_of_a_model_with_one_count_has_nowhere_to_bend() -> None:
    alone = Governor((256,), {256: 0.95}, governor().costs)
    outcome = simulate(poisson(3 * CAPACITY, 10, [BENDS], 0), alone)
    assert {one.choice.counts for one in outcome.accepted if one.choice} == {(256,)}
    assert outcome.late_share(1.0) < 0.01


def test_a_crowd_is_let_come_together_and_who_is_alone_is_read_at_once() -> None:
    queue = batcher(mode="on")
    assert queue.gathering_s(0.0, 32) == inf
    queue.admit(ticket(0, STAYS), 0.0)
    assert queue.gathering_s(0.0, 32) == 0, "nobody was read before"
    queue.admit(ticket(1, STAYS), 0.0)
    assert started(queue) == [0, 1]
    for number in (0, 1):
        queue.leave(number)

    queue.admit(ticket(2, STAYS, arrived=1.0), 1.0)
    assert queue.gathering_s(1.0, 32) == pytest.approx(0.002), "the last pass had two"
    queue.admit(ticket(3, STAYS, arrived=1.0015), 1.0015)
    assert queue.gathering_s(1.002, 32) == pytest.approx(0.0015)
    assert queue.gathering_s(1.0036, 32) == 0
    assert queue.gathering_s(1.002, 2) == 0, "no slot is left for another"
    queue.reserve(9, STAYS, 4, now=1.0036)
    whole_pass_s = COSTS.read_s(STAYS.wanted, 2)
    assert queue.gathering_s(1.0036, 32) == pytest.approx(whole_pass_s - 0.0036), "somebody is being prepared"
    queue.withdraw(9)
    late = 1.0 + whole_pass_s
    queue.admit(ticket(4, STAYS, arrived=late), late)
    assert 0 < queue.gathering_s(late, 32) < whole_pass_s, "longer than a pass takes is never waited"
    assert started(queue, late) == [2, 3, 4]
    for number in (2, 3, 4):
        queue.leave(number)

    queue.admit(ticket(5, STAYS, arrived=5.0), 5.0)
    assert queue.gathering_s(5.0, 32) == pytest.approx(0.002), "he may be the first of another crowd"
    assert started(queue, 5.002) == [5]
    queue.leave(5)
    queue.admit(ticket(6, STAYS, arrived=6.0), 6.0)
    assert queue.gathering_s(6.0, 32) == 0, "the last pass had one"


def test_a_long_text_is_in_the_work_ahead_until_it_is_read() -> None:
    costs = replace(COSTS, text=Text(few=20, read_token_s=1e-3))
    queue = Batcher(governor(costs=costs))
    queue.reserve(0, BENDS, 4, 0.0)
    unknown_s = queue.ahead_s()
    queue.join(ticket(0, length=256 + 1020), 0.0)
    assert queue.ahead_s() == pytest.approx([seconds + 1.0 for seconds in unknown_s])
    assert started(queue) == [0]
    assert queue.ahead_s()[0] > 1.0
    queue.read([0])
    assert queue.ahead_s()[0] < 0.1
    queue.leave(0)
    assert queue.ahead_s() == [0.0] * 4
