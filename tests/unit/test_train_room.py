"""What a cluster has room for: what is up or may come, which device a run takes of it, and when it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from tokendial import runs
from tokendial.contracts import RunConfig
from tokendial.experiments import ConfigError
from tokendial.resolve import from_document, resolve
from tokendial.train import ray_trainer
from tokendial.train.room import Room, check_room, room, slots, takes_gpus

HEAD = {"node:__internal_head__": 1.0, "memory": 8e9}
AWS, KUBERAY = "CPU=112,GPU=8", "CPU=144,GPU=8"


def configured(*overrides: str) -> RunConfig[Any]:
    return resolve("digits.tiny", overrides, machine_cpus=None)


def test_a_cluster_that_grows_has_room_for_what_may_come() -> None:
    assert room(HEAD) == Room(0, 0)
    assert room(HEAD, AWS) == Room(112, 8, grows=True)
    assert room({"CPU": 8.0}, KUBERAY) == Room(144, 8, grows=True)
    assert room({"CPU": 16.0, "GPU": 2.0}, "CPU=8") == Room(16, 2, grows=True)
    for broken in ("112", "CPU=-1", "CPU=1,TPU=4", "CPU=1 GPU=1"):
        with pytest.raises(ConfigError, match=r"TOKENDIAL_GROWS_TO='.*' is not of the form CPU=112,GPU=8"):
            room(HEAD, broken)


@pytest.mark.parametrize(
    ("device", "up", "grows_to", "gpus", "at_once"),
    [
        ("auto", {"CPU": 8}, None, False, 2),
        ("auto", {"CPU": 8, "GPU": 3}, None, False, 2),
        ("auto", {"CPU": 8, "GPU": 4}, None, True, 1),
        ("auto", {"CPU": 8}, KUBERAY, True, 2),
        ("auto", HEAD, AWS, True, 2),
        ("cpu", {"CPU": 8, "GPU": 8}, None, False, 2),
        ("cpu", {"CPU": 8}, KUBERAY, False, 36),
        ("gpu", {"CPU": 8}, None, True, 1),
        ("gpu", HEAD, AWS, True, 2),
    ],
)
def test_four_workers_take_the_device_that_there_is_room_for(
    device: str, up: dict[str, float], grows_to: str | None, gpus: bool, at_once: int
) -> None:
    config, cluster = configured("workers=4", f"device={device}"), room(up, grows_to)
    check_room(config, cluster)
    assert (takes_gpus(config, cluster), slots(config, cluster)) == (gpus, at_once)


@pytest.mark.parametrize(
    ("device", "up", "grows_to", "words"),
    [
        ("auto", HEAD, None, "workers 16 is more than the 0 CPUs of the Ray cluster"),
        ("cpu", {"CPU": 8, "GPU": 16}, None, "workers 16 is more than the 8 CPUs of the Ray cluster"),
        ("gpu", HEAD, AWS, "workers 16 is more than the 8 GPUs of the Ray cluster"),
    ],
)
def test_workers_that_would_wait_for_ever_are_refused(
    device: str, up: dict[str, float], grows_to: str | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_room(configured("workers=16", "global_batch=32", f"device={device}"), room(up, grows_to))


def test_the_device_is_no_part_of_what_a_run_is() -> None:
    config, other = configured(), configured("device=gpu")
    assert runs.run_name(other) == runs.run_name(config)
    document = config.model_dump(mode="json")
    # A configuration that was written down before there was the field.
    del document["device"]
    assert from_document(document) == config


def test_gpus_that_this_machine_lacks_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="device 'gpu' needs a GPU for each of the 2 workers and this machine has 0"):
        resolve("digits.tiny", ("device=gpu", "workers=2"), machine_cpus=8)
    with pytest.raises(ConfigError, match="precision 'bf16' needs GPUs, and device is 'cpu'"):
        configured("device=cpu", "precision=bf16")


@pytest.mark.parametrize(("named", "joined"), [(None, "local"), ("10.0.0.1:6379", "10.0.0.1:6379")])
def test_only_a_cluster_that_is_named_is_joined(
    named: str | None, joined: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ray_trainer.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_trainer.ray, "init", lambda address, **_: asked.append(address))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named is not None:
        monkeypatch.setenv("RAY_ADDRESS", named)
    ray_trainer.connect()
    assert asked == [joined]
