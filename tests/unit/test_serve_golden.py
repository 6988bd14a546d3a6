"""A version takes traffic only where it answers as its run recorded and stands by its curve."""

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from serve_simulation import COSTS, QUALITY, governor, scaled
from served_model import export_model, offline_answers, picture, question
from tokendial.model_folder import Rung
from tokendial.results import ExampleAnswers
from tokendial.serve.backend import Whole
from tokendial.serve.batching import Batcher, Full, Ticket
from tokendial.serve.golden import AT_ONCE, Finding, examine
from tokendial.serve.ladder import Ladder
from tokendial.serve.replica import EngineReplica
from tokendial.serve.request import BadRequest, Busy, Done, FinishReason, ServeRequest
from tokendial.serve.settings import EngineSettings
from tokendial.serve.source import Source
from tokendial.serve.terms import terms_of

EXAMPLES = [
    ExampleAnswers(bytes([number]), f"q{number}", "t", {4: f"a{number}", 16: f"b{number}"}, {4: 0.5, 16: 1.0})
    for number in range(20)
]
RUNGS = [Rung(count=k, quality=q, quality_ci=(0, 1), cost_flops=k) for k, q in ((4, 0.5), (16, 0.95), (64, 0.99))]


NEW_TOKENS = 24


def whole(text: str, ended: FinishReason = "stop") -> Whole:
    return Whole(text, Done(ended, 1, 1, (4,), (4,), None, "asked"))


def findings(says: Callable[[ServeRequest], str], ended: FinishReason = "stop") -> list[Finding]:
    async def answer(request: ServeRequest) -> Whole:
        return whole(says(request), ended)

    return asyncio.run(examine(answer, EXAMPLES, RUNGS, NEW_TOKENS))


def recorded(request: ServeRequest) -> str:
    count = request.asks[0].count
    assert count is not None
    return EXAMPLES[request.images[0][0]].answers[count] + " "


def test_the_recorded_answers_pass_at_the_smallest_and_largest_recorded_rung() -> None:
    found = findings(recorded)
    assert [(each.count, each.agreement, each.passed) for each in found] == [(4, 1.0, True), (16, 1.0, True)]


def test_nonsense_does_not_pass() -> None:
    assert not any(each.passed for each in findings(lambda _: "nonsense"))


def test_a_version_that_is_right_at_one_count_only_does_not_pass_at_the_other() -> None:
    small, large = findings(lambda request: recorded(request) if request.asks[0].count == 4 else "nonsense")
    assert small.passed
    assert not large.passed


def test_one_answer_in_twenty_may_differ() -> None:
    assert all(each.passed for each in findings(lambda r: "odd" if r.images[0][0] == 7 else recorded(r)))


def test_answers_as_recorded_do_not_pass_where_they_belie_the_ladder() -> None:
    assert not Finding(4, 32, agreement=1.0, quality=0.5, recorded=0.95).passed
    assert Finding(4, 32, agreement=1.0, quality=0.9, recorded=0.95).passed


def test_one_odd_answer_of_a_model_that_never_was_wrong_is_not_too_many() -> None:
    assert Finding(4, 32, agreement=31 / 32, quality=31 / 32, recorded=1.0).passed
    assert not Finding(4, 32, agreement=28 / 32, quality=28 / 32, recorded=1.0).passed


def test_without_examples_there_is_nothing_to_find() -> None:
    async def answer(request: ServeRequest) -> Whole:
        raise AssertionError(request)

    assert asyncio.run(examine(answer, [], RUNGS, NEW_TOKENS)) == []


def test_as_many_tokens_are_asked_for_as_were_recorded_under() -> None:
    asked: list[int] = []

    def says(request: ServeRequest) -> str:
        asked.append(request.sampling.max_new_tokens)
        return recorded(request)

    findings(says)
    assert set(asked) == {NEW_TOKENS}


def test_an_answer_that_the_engine_cut_is_held_against_the_beginning_of_the_recorded_one() -> None:
    def cut(request: ServeRequest) -> str:
        return recorded(request)[:1]

    assert all(each.passed for each in findings(cut, "length"))
    assert not any(each.passed for each in findings(cut, "stop"))
    assert not any(each.passed for each in findings(lambda _: "nonsense", "length"))
    assert not any(each.passed for each in findings(lambda _: "", "length"))


class SlowReplica:
    """The engine's own queue and governor before a model that takes as long as `COSTS`, many times over."""

    def __init__(self, slower: float, max_queue: int) -> None:
        self.batcher = Batcher(governor("on", scaled(slower)), max_queue)
        rungs = {k: Rung(count=k, quality=q, quality_ci=(0, 1), cost_flops=k) for k, q in QUALITY.items()}
        self._ladder, self._numbers = Ladder(tuple(QUALITY), rungs), itertools.count()
        self.most, self.turned_away = 0, 0

    async def answer(self, request: ServeRequest) -> Whole:
        number = next(self._numbers)
        terms = terms_of(request, self._ladder, lambda counts: self.batcher.governor.costs.alone_s(counts, 4))
        assert not terms.may_bend
        try:
            self.batcher.admit(Ticket(number, terms, 0.0, request.sampling.max_new_tokens), 0.0)
        except Full as full:
            self.turned_away += 1
            raise Busy(str(full), 0.001, full.for_all) from full
        self.most = max(self.most, self.batcher.num_waiting)
        await asyncio.sleep(0.001)
        self.batcher.withdraw(number)
        return whole("yes")


YES = [ExampleAnswers(b"", f"q{number}", "yes", {16: "yes"}, {16: 1.0}) for number in range(20)]
YES_RUNGS = [Rung(count=16, quality=1.0, quality_ci=(1, 1), cost_flops=1)]


def test_a_model_slower_than_the_governors_target_may_prove_itself() -> None:
    replica = SlowReplica(100, max_queue=128)
    assert 100 * COSTS.alone_s((16,), 4) > replica.batcher.governor.target_s
    [found] = asyncio.run(examine(replica.answer, YES, YES_RUNGS, NEW_TOKENS))
    assert found.passed
    assert (replica.most, replica.turned_away) == (AT_ONCE, 0)


def test_an_example_that_finds_a_full_queue_is_asked_again() -> None:
    replica = SlowReplica(1, max_queue=3)
    [found] = asyncio.run(examine(replica.answer, YES, YES_RUNGS, NEW_TOKENS))
    assert found.passed
    assert replica.most == 3
    assert replica.turned_away > 0


def test_an_example_that_is_refused_for_what_it_is_is_not_asked_again() -> None:
    async def answer(request: ServeRequest) -> Whole:
        raise BadRequest("messages", "the image cannot be read")

    with pytest.raises(BadRequest, match="cannot be read"):
        asyncio.run(examine(answer, YES, YES_RUNGS, NEW_TOKENS))


@pytest.mark.parametrize("most", [1024, 2], ids=["as-recorded", "cut-shorter"])
def test_a_model_whose_recorded_answers_were_all_cut_proves_itself(tmp_path: Path, most: int) -> None:
    """An exported model that chatters: its evaluation ended every answer after four tokens."""
    folder = export_model(tmp_path / "model")
    says = offline_answers(folder)
    texts = [says(question("what is b3", 16, image, new_tokens=4)) for image in range(6)]
    examples = [
        ExampleAnswers(picture(image), "what is b3", "3", {16: text}, {16: 1.0}) for image, text in enumerate(texts)
    ]

    async def proved() -> list[Finding]:
        replica = EngineReplica.__new__(EngineReplica)
        settings = EngineSettings(threads=1, slots=4, max_new_tokens=most)
        began = time.monotonic()
        await replica.__init__(Source("m", "1", folder=str(folder)), settings)
        assert sum(replica._start_s.values()) <= time.monotonic() - began, "this process is older than the replica"
        assert replica.served().answer_tokens == min(4, most)

        async def answer(request: ServeRequest) -> Whole:
            [[(_, told)]] = [outcomes async for outcomes in replica.answers([request])]
            assert isinstance(told, Whole), told
            assert told.done.finish_reason == "length"
            return told

        try:
            return await examine(answer, examples, replica.served().rungs, replica.served().answer_tokens)
        finally:
            await replica._engine.close()

    [found] = asyncio.run(proved())
    assert found.agreement == 1
