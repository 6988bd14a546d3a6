"""What an operator may set, and the sentence that a mistake gets."""

from pathlib import Path

import pytest
from tokendial import api
from tokendial.experiments import ConfigError
from tokendial.serve.options import ServeSettings, keys, serve_settings


def test_dotted_overrides_reach_every_part() -> None:
    settings = serve_settings(["port=0", "engine.governor=shadow", "replicas.most=3", "name=eyes", "keys=true"])
    assert (settings.port, settings.engine.governor, settings.replicas.most) == (0, "shadow", 3)
    assert (settings.name, settings.keys) == ("eyes", True)


def test_hosts_of_images_are_given_as_the_option_or_separated_by_commas() -> None:
    assert serve_settings(["image_hosts=a.example,b.example"]).image_hosts == ("a.example", "b.example")
    assert serve_settings([], image_hosts=["A.Example"]).image_hosts == ("a.example",)
    assert serve_settings(["image_hosts="]).image_hosts == ()


def test_every_setting_is_listed_with_its_meaning() -> None:
    listed = {key: (default, meaning) for key, default, meaning in keys()}
    assert listed["engine.slots"][0] == "32"
    assert listed["replicas.least"][1]
    assert len(listed) >= 20
    assert all(meaning for _, meaning in listed.values())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prot=1", "prot"), ("engine.slot=1", "engine.slot"), ("port=70000", "port"), ("port=x", "port"),
        ("x", "KEY=VALUE"),
        ("engine.slots=0", "engine.slots"), ("replicas.least=4", "replicas.most"), ("host.name=x", "host"),
        ("engine.governor=maybe", "governor"), ("name=a b", "name"), ("trace_share=2", "trace_share"),
        ("new_tokens=1025", "engine.max_new_tokens"), ("engine.max_new_tokens=8", "new_tokens"),
        ("engine.max_new_tokens=4097", "engine.max_new_tokens"), ("engine.max_images=17", "engine.max_images"),
        ("max_held_mib=31", "max_body_mib = 32"),
        ("start_timeout_s=inf", "start_timeout_s"), ("engine.patience_ms=inf", "patience_ms"), ("host=", "host"),
        ("image_hosts=https://a.example", "full domain name"), ("image_hosts=localhost", "full domain name"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_names_it(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        serve_settings([override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_loopback_goes_without_keys(home: Path) -> None:
    assert ServeSettings().on_loopback
    with pytest.raises(ConfigError, match="tokendial keys add"):
        api.serve("anything", ["host=0.0.0.0"])
    with pytest.raises(ConfigError, match="tokendial keys add"):
        api.serve("anything", ["keys=true"])


@pytest.mark.parametrize("model", ["nothing", "nothing/7", "nothing@champion"])
def test_a_model_that_is_nowhere_is_refused_before_ray_is_started(home: Path, model: str) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        api.serve(model)
