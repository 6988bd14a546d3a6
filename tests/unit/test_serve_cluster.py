"""Which Ray cluster an endpoint is opened on, and what it ends there."""

from typing import Any

import pytest
import ray
from tokendial.serve import application


@pytest.mark.parametrize(
    ("address", "joined", "ours"),
    [(None, "local", True), ("", "local", True), ("10.0.0.1:6379", "10.0.0.1:6379", False)],
    ids=["unset", "empty", "given"],
)
def test_only_a_cluster_that_is_named_is_joined_and_what_is_started_is_its_own(
    address: str | None, joined: str, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def init(address: str | None, **_: Any) -> None:
        asked.append(address)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    for name in application.CLUSTER_ENVIRONMENT:
        # `connect` sets them where they are not set; here they are taken back.
        monkeypatch.setenv(name, "kept")
    if address is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert application.connect() is ours
    assert asked == [joined]
