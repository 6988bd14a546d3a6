"""What of a node's measures cannot be had is told where somebody would look for it."""

import logging

import pytest
from tokendial import environment
from tokendial.tracking import system


@pytest.mark.parametrize(("has_gpu", "level"), [(True, logging.WARNING), (False, logging.DEBUG)], ids=["gpu", "none"])
def test_a_gpu_that_cannot_be_watched_is_told_of(
    has_gpu: bool, level: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent() -> None:
        raise ImportError("`nvidia-ml-py` is not installed")

    monkeypatch.setattr(system, "GPUMonitor", absent)
    monkeypatch.setattr(environment, "has_gpu", lambda: has_gpu)
    caplog.set_level(logging.DEBUG)
    assert len(system._probes()) == 3
    assert [(record.levelno, "nvidia-ml-py" in record.message) for record in caplog.records] == [(level, True)]
