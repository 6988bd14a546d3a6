"""What overrides come to: sections given as objects, presets over changed fields, settings that would do nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokendial.contracts import RunConfig
from tokendial.dotted import keys
from tokendial.experiments import ConfigError, experiment
from tokendial.resolve import resolve
from tokendial.schedule import preset
from tokendial.train.driver import with_horizon


def test_a_section_given_as_an_object_is_its_fields() -> None:
    section, fields = ['optimizer={"lr":0.1}', "optimizer.clip=0.5"], ["optimizer.lr=0.1", "optimizer.clip=0.5"]
    assert resolve("digits", section) == resolve("digits", section[::-1]) == resolve("digits", fields)
    assert resolve("digits", section).optimizer.tower_lr_factor == 0.3
    nested = resolve("digits", ['model={"projector":"query","vision":{"config":{"image_size":48}}}'])
    assert nested.model.projector == "query"
    assert nested.model.vision.config == {"image_size": 48}
    bounded = resolve("digits", ['budget={"flops":1e12}'])
    assert (bounded.budget.flops, bounded.budget.steps) == (1e12, None)


def test_a_field_is_not_given_twice_in_two_forms() -> None:
    with pytest.raises(ConfigError, match=r"duplicate key 'optimizer\.lr'"):
        resolve("digits", ['optimizer={"lr":0.1}', "optimizer.lr=0.2"])


def test_a_schedules_preset_is_one_in_every_form() -> None:
    forms = ["schedule=curriculum", "schedule.preset=curriculum", 'schedule={"preset":"curriculum"}']
    assert [resolve("digits", [form]).schedule for form in forms] == [preset("curriculum", (4, 16, 144))] * 3


def test_a_resolved_section_is_accepted_back() -> None:
    changed = resolve("digits", ["schedule=flexivit", "schedule.temperature=3"])
    for config in (resolve("digits"), changed):
        assert resolve("digits", [f"schedule={config.schedule.model_dump_json()}"]).schedule == config.schedule


def written(config: RunConfig[Any], folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    return path


def test_other_counts_leave_what_was_changed_over_a_preset(tmp_path: Path) -> None:
    path = written(resolve("digits", ["schedule=flexivit", "schedule.distil.weight=0.5"]), tmp_path)
    again = resolve(None, ["schedule.counts=[4,16,64]"], path)
    assert again.schedule.counts == (4, 16, 64)
    assert again.schedule.distil is not None
    assert again.schedule.distil.weight == 0.5
    with pytest.raises(ConfigError, match=r"schedule.counts has 2 entries, .* weighs 3"):
        resolve(None, ["schedule.counts=[4,16]"], path)


def test_a_preset_is_derived_anew_for_other_counts(tmp_path: Path) -> None:
    path = written(resolve("digits", ["schedule=tokenflex"]), tmp_path)
    assert resolve(None, ["schedule.counts=[4,16]"], path).schedule == preset("tokenflex", (4, 16))


def test_a_floor_that_a_constant_rate_would_never_reach_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.floor 0.1 has no effect with shape 'constant'"):
        resolve("digits", ["optimizer=constant", "optimizer.floor=0.1"])


def test_a_budget_without_a_step_for_the_language_model_is_refused() -> None:
    stages = '[{"name":"warm","share":9,"train":["tower"],"objective":"tower"},{"name":"answer","share":1}]'
    with pytest.raises(ConfigError, match=r"budget of 4 steps leaves none to 'answer'"):
        with_horizon(resolve("digits", [f"stages={stages}", "budget.steps=4"]))
    stages = f'[{{"name":"read","share":0.1}},{stages[1:]}'
    with pytest.raises(ConfigError, match=r"budget of 4 steps leaves none to 'read', 'answer'"):
        with_horizon(resolve("digits", [f"stages={stages}", "budget.steps=4"]))


def test_two_bounds_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^budget"):
        resolve("digits", ["budget.steps=2", "budget.flops=1e12"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.distil.wieght=1", "unknown key 'schedule.distil.wieght'; near it: schedule.distil.weight"),
        ('schedule.distil={"wieght":1}', "unknown key 'schedule.distil.wieght'; near it: schedule.distil.weight"),
        ("model.lora.zzz=1", "unknown key 'model.lora.zzz'; the keys of model.lora are rank, alpha, dropout"),
        ('model={"lora":{"rnk":2}}', "unknown key 'model.lora.rnk'; near it: model.lora.rank"),
        ('stages=[{"name":"a","shaer":1}]', "unknown key 'stages.0.shaer'; near it: stages.0.share"),
        ("stages.lr_factor=2", "goes into stages, which is a list; give it whole, as stages=[...]"),
        ("model.lora.rank.x=2", "goes into model.lora.rank, which has no fields"),
    ],
)
def test_a_misspelt_key_of_a_nested_section_is_told_the_near_ones(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve("digits", [override])
    assert words in str(refused.value)


def test_the_keys_of_absent_sections_and_of_lists_are_listed_with_their_defaults() -> None:
    listed = keys(experiment("digits"))
    assert all(meaning for _, _, meaning in listed.values())
    assert listed["schedule.distil.weight"][:2] == ("float", 1.0)
    assert listed["model.lora.rank"][:2] == ("int", 8)
    assert listed["stages[].lr_factor"][1] == 1.0
    assert listed["schedule.phases[].until"][1] == "required"


def test_a_field_of_a_models_own_that_its_configuration_leaves_out_may_be_given() -> None:
    rope = ["rope_type=linear", "factor=2", "rope_theta=1e4"]
    config = resolve("captions.openmoji", [f"model.language.config.rope_parameters.{line}" for line in rope])
    expected = {"rope_type": "linear", "factor": 2, "rope_theta": 1e4}
    assert config.model.language.config["rope_parameters"] == expected
