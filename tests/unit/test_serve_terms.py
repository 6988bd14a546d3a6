"""What is asked for against the ladder: exact counts, floors and targets, or a refusal by field."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokendial.experiments import ConfigError
from tokendial.model_folder import Rung
from tokendial.serve.ladder import Ladder, read_ladder
from tokendial.serve.request import Ask, BadRequest, Sampling, ServeRequest, Turn
from tokendial.serve.terms import terms_of

QUALITY = {1: 0.2, 4: 0.36, 16: 0.966, 36: 0.94, 64: 0.969, 144: 0.964}
ROWS = {
    count: Rung(count=count, quality=quality, quality_ci=(quality, quality), cost_flops=1e6 * count)
    for count, quality in QUALITY.items()
}
LADDER = Ladder((1, 4, 9, 16, 25, 36, 64, 100, 144), ROWS)
OPEN = Ask()


def alone_s(counts: Sequence[int]) -> float:
    """A millisecond a visual token."""
    return 1e-3 * sum(counts)


def request(*asks: Ask, **fields: Any) -> ServeRequest:
    shown = tuple(range(len(asks)))
    return ServeRequest("r", (Turn("user", shown),), (b"",) * len(asks), asks, Sampling(4), **fields)


@pytest.mark.parametrize(
    ("asks", "fields", "wanted", "reason"),
    [
        ([OPEN], {}, (144,), "largest"),
        ([OPEN, OPEN], {}, (144, 144), "largest"),
        ([Ask(25)], {}, (25,), "asked"),
        ([Ask(4), OPEN], {}, (4, 144), "asked"),
        ([OPEN], {"min_quality": 0.9}, (144,), "largest"),
        ([OPEN], {"min_quality": 0.9665}, (64,), "target"),
        ([OPEN], {"latency_ms": 1000}, (144,), "largest"),
        ([OPEN], {"latency_ms": 70}, (64,), "target"),
        ([OPEN], {"latency_ms": 2}, (1,), "target"),
        ([OPEN], {"latency_ms": 2, "min_quality": 0.95}, (16,), "target"),
        ([OPEN, OPEN], {"latency_ms": 100}, (16, 16), "target"),
        ([Ask(64), OPEN], {"latency_ms": 100}, (64, 16), "target"),
        ([Ask(64)], {"latency_ms": 1}, (64,), "asked"),
    ],
    ids=str,
)
def test_each_image_gets_what_was_asked_for_or_what_meets_the_target(
    asks: list[Ask], fields: dict[str, float], wanted: tuple[int, ...], reason: str
) -> None:
    terms = terms_of(request(*asks, **fields), LADDER, alone_s)
    assert terms.wanted == wanted
    assert terms.reason == reason
    assert terms.exact == tuple(ask.count is not None for ask in asks)


def test_consent_floor_and_target_travel_with_the_terms() -> None:
    terms = terms_of(request(OPEN, may_bend=True, min_quality=0.3, latency_ms=500), LADDER, alone_s)
    assert (terms.may_bend, terms.min_quality, terms.target_s) == (True, 0.3, 0.5)
    assert terms_of(request(OPEN), LADDER, alone_s).target_s == float("inf")


@pytest.mark.parametrize(
    ("asks", "fields", "field", "message"),
    [
        ([Ask(5)], {}, "visual_tokens", "5 visual tokens are not admissible; admissible: 1, 4, 9, 16, 25, 36, 64"),
        ([OPEN], {"min_quality": 0.97}, "slo.min_quality", "not reached up to 144 visual tokens; .* best is 0.969"),
        ([Ask(1)], {"min_quality": 0.5}, "slo.min_quality", "above the 0.200 of 1 visual tokens"),
        ([Ask(9)], {"min_quality": 0.1}, "slo.min_quality", "above the unknown quality of 9 visual tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_with_what_can(
    asks: list[Ask], fields: dict[str, float], field: str, message: str
) -> None:
    with pytest.raises(BadRequest, match=message) as refused:
        terms_of(request(*asks, **fields), LADDER, alone_s)
    assert refused.value.field == field


def test_asks_and_images_must_be_as_many() -> None:
    asked = ServeRequest("r", (Turn("user", (0,)),), (b"",), (), Sampling(4))
    with pytest.raises(BadRequest, match="0 counts are asked for 1 images"):
        terms_of(asked, LADDER, alone_s)


def test_a_range_of_counts_is_told_as_a_range() -> None:
    prefixes = Ladder(tuple(range(1, 257)), ROWS)
    with pytest.raises(BadRequest, match="admissible: 1 to 256"):
        terms_of(request(Ask(300)), prefixes, alone_s)


def test_a_ladder_is_read_from_its_folder_and_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "ladder.json"
    with pytest.raises(ConfigError, match=r"has no ladder\.json"):
        read_ladder(tmp_path, LADDER.admissible)
    rows = [rung.model_dump() for rung in reversed(ROWS.values())]
    path.write_text(json.dumps({"version": 1, "rows": rows}))
    assert list(read_ladder(tmp_path, LADDER.admissible).rungs) == sorted(QUALITY)
    with pytest.raises(ConfigError, match="the model serves"):
        read_ladder(tmp_path, (1, 4))
    for broken in ("{", "[]", '{"rows": [{"count": 1}]}', '{"rows": []}'):
        path.write_text(broken)
        with pytest.raises(ConfigError, match=r"broken|has rows"):
            read_ladder(tmp_path, LADDER.admissible)
