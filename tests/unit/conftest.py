"""The endpoint over a scripted backend that several modules ask."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def backend() -> Any:
    from endpoint_lab import ScriptedBackend

    return ScriptedBackend()


@pytest.fixture(scope="module")
def url(backend: Any) -> Iterator[str]:
    from endpoint_lab import running
    from tokendial.serve.ingress import Options, create_app

    with running(create_app(backend, Options())) as address:
        yield address
