"""Generated requests, schemathesis against the OpenAPI document included: every answer is a 200 or a 4xx, none a fault.

Seeds are fixed, so a failure comes again.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from endpoint_lab import ScriptedBackend, chat, image, post, running
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from tokendial.serve.ingress import Options, create_app
from tokendial.serve.request import BadRequest
from tokendial.serve.schema import parse

CASES = 1000
SETTINGS = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(create_app(ScriptedBackend(), Options())) as address:
        yield address


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=8).map(repr),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of a document."""
    yield at
    children = (
        document.items() if isinstance(document, dict) else enumerate(document if isinstance(document, list) else [])
    )
    for step, value in children:
        yield from places(value, (*at, step))


WHOLE = chat(
    image("low"), image(), stream=False, max_tokens=3, temperature=0.5, top_p=0.5, stop=["x"], seed=1, n=1,
    may_bend=True, visual_tokens=[4, 16],
)  # fmt: skip


@seed(0)
@SETTINGS
@given(st.sampled_from(list(places(WHOLE))), values)
def test_any_value_in_any_place_is_understood_or_refused_by_name(place: tuple[Any, ...], value: Any) -> None:
    document = json.loads(json.dumps(WHOLE))
    if place:
        parent = document
        for step in place[:-1]:
            parent = parent[step]
        parent[place[-1]] = value
    else:
        document = value
    refusal = None
    try:
        parse(json.dumps(document).encode())
    except BadRequest as error:
        refusal = error
    assert refusal is None or (refusal.field and len(str(refusal).encode()) < 1000)


def mutations(number: int) -> Iterator[bytes]:
    """Bodies with bytes dropped, doubled and changed."""
    draws = random.Random(0)
    whole = json.dumps(WHOLE).encode()
    for _ in range(number):
        body = bytearray(whole)
        for _ in range(draws.randint(1, 6)):
            at = draws.randrange(len(body))
            match draws.randrange(4):
                case 0:
                    body[at] = draws.randrange(256)
                case 1:
                    del body[at : at + draws.randint(1, 40)]
                case 2:
                    body[at:at] = body[at : at + draws.randint(1, 40)]
                case _:
                    body[at:at] = draws.randbytes(draws.randint(1, 8))
        yield bytes(body)


def test_mangled_bodies_are_answered_or_refused_and_never_a_fault(url: str) -> None:
    seen: Counter[int] = Counter()
    for body in mutations(300):
        status, answer, _ = post(url, body)
        seen[status] += 1
        if status != 200:
            assert answer["error"]["param"], answer
    assert set(seen) <= {200, 400, 404}
    assert seen[400] > 100


schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(ScriptedBackend(), Options()))


@schema.parametrize()
@settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_the_openapi_document_is_kept(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=[not_a_server_error, status_code_conformance, response_schema_conformance])
