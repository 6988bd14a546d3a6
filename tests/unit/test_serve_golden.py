"""A version takes traffic only where it answers as its run recorded and stands by its curve."""

import asyncio
from collections.abc import Callable

from tokendial.model_folder import Rung
from tokendial.results import ExampleAnswers
from tokendial.serve.backend import Whole
from tokendial.serve.golden import Finding, examine
from tokendial.serve.request import Done, ServeRequest

EXAMPLES = [
    ExampleAnswers(bytes([number]), f"q{number}", "t", {4: f"a{number}", 16: f"b{number}"}, {4: 0.5, 16: 1.0})
    for number in range(20)
]
RUNGS = [Rung(count=k, quality=q, quality_ci=(0, 1), cost_flops=k) for k, q in ((4, 0.5), (16, 0.95), (64, 0.99))]


def findings(says: Callable[[ServeRequest], str]) -> list[Finding]:
    async def answer(request: ServeRequest) -> Whole:
        return Whole(says(request), Done("stop", 1, 1, (4,), (4,), None, "asked"))

    return asyncio.run(examine(answer, EXAMPLES, RUNGS))


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


def test_without_examples_there_is_nothing_to_find() -> None:
    async def answer(request: ServeRequest) -> Whole:
        raise AssertionError(request)

    assert asyncio.run(examine(answer, [], RUNGS)) == []
