"""Models, mixes, budgets and recipes that could only fail in a worker are refused before one starts."""

import importlib
from pathlib import Path

import pytest
import torch
from tokendial.experiments import ConfigError, experiment
from tokendial.resolve import resolve
from tokendial.train.driver import with_horizon
from tokendial_workloads.vlm.fields import ACTIVATIONS, FIELDS
from tokendial_workloads.vlm.rotary import NEEDED, check_rope
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

VISION, LANGUAGE = "model.vision.config.", "model.language.config."
ROPE = f"{LANGUAGE}rope_parameters."
SIGLIP = (
    "model.vision.kind=siglip_vision_model",
    'model.vision.config={"hidden_size": 16, "num_attention_heads": 4, "image_size": 48, "patch_size": 8}',
)

# id: (experiment, overrides, words the sentence must hold).
BAD = {
    "momentum of one": ("digits", ["optimizer.betas=[0.9,1.0]"], ["optimizer.betas.1", "1.0"]),
    "layer that is not there": ("digits", ["model.feature_layer=99"], ["model.feature_layer 99", "-2 to 1"]),
    "layer below the first": ("digits", ["model.feature_layer=-3"], ["model.feature_layer -3", "-2 to 1"]),
    "no hidden width": ("digits", ["model.hidden_factor=0.001"], ["model.hidden_factor 0.001", "64"]),
    "negative layers": ("digits", [f"{LANGUAGE}num_hidden_layers=-1"], ["num_hidden_layers", "-1"]),
    "no heads": ("digits", [f"{LANGUAGE}num_attention_heads=0"], ["num_attention_heads", "0"]),
    "heads that share no keys": ("digits", [f"{LANGUAGE}num_attention_heads=5"], ["num_attention_heads 5", "4"]),
    "width the heads do not divide": (
        "captions.openmoji",
        [f"{LANGUAGE}num_attention_heads=5"],
        [f"{LANGUAGE}hidden_size 96", "num_attention_heads 5"],
    ),
    "odd heads": ("digits", [f"{LANGUAGE}head_dim=15"], ["15 wide", "even"]),
    "negative initial weights": ("digits", [f"{LANGUAGE}initializer_range=-1"], ["initializer_range", "-1"]),
    "too small a vocabulary": ("digits", [f"{LANGUAGE}vocab_size=3"], ["vocab_size 3", "tokenizer"]),
    "language field unknown": ("digits", [f"{LANGUAGE}bogus=1"], [f"{LANGUAGE}bogus", "qwen3"]),
    "language field misspelt": ("digits", [f"{LANGUAGE}hiden_size=8"], ["hiden_size", "near it: hidden_size"]),
    "activation unknown": ("digits", [f"{LANGUAGE}hidden_act=sine"], ["hidden_act", "silu", "sine"]),
    "rotations of no kind": ("digits", [f"{LANGUAGE}rope_parameters=7"], ["rope_parameters", "7"]),
    "rotations of an unknown type": ("digits", [f"{ROPE}rope_type=spiral"], [f"{ROPE}rope_type 'spiral'", "longrope"]),
    "rotations without their factor": (
        "digits",
        [f"{ROPE}rope_type=linear"],
        ["lacks factor (a number from 1)", "linear"],
    ),
    "rotations of no factor": (
        "digits",
        [f"{ROPE}rope_type=linear", f"{ROPE}factor=0"],
        [f"{ROPE}factor must be a number from 1, got 0"],
    ),
    "rotations without their bands": (
        "digits",
        [f"{ROPE}rope_type=llama3", f"{ROPE}factor=2"],
        ["lacks low_freq_factor", "llama3"],
    ),
    "rotations for other heads": (
        "digits",
        [f'{LANGUAGE}rope_parameters={{"rope_type":"longrope","short_factor":[1],"long_factor":[1]}}'],
        [f"{ROPE}short_factor has 1 numbers", "heads of 16 need 8"],
    ),
    "rotations with a key of another type": (
        "digits",
        [f"{ROPE}factor=2"],
        [f"{ROPE}factor", "'default'", "rope_theta"],
    ),
    "padding beyond the vocabulary": ("digits", [f"{LANGUAGE}pad_token_id=9999"], ["pad_token_id 9999", "vocab_size"]),
    "end beyond the vocabulary": ("digits", [f"{LANGUAGE}eos_token_id=9999"], ["eos_token_id 9999", "vocab_size"]),
    "model type unknown": ("digits", ["model.language.kind=gpt9"], ["gpt9", "llama"]),
    "tower without heads": ("digits", [f"{VISION}num_attention_heads=0"], [f"{VISION}num_attention_heads", "0"]),
    "tower of half a layer": ("digits", [f"{VISION}num_hidden_layers=1.5"], [f"{VISION}num_hidden_layers", "1.5"]),
    "tower width as text": ("digits", [f"{VISION}hidden_size=abc"], [f"{VISION}hidden_size", "abc"]),
    "tower field unknown": ("digits", [f"{VISION}depth=2"], [f"{VISION}depth", "tokendial_stem"]),
    "patches of no size": ("digits", [f"{VISION}patch_size=0"], [f"{VISION}patch_size", "0"]),
    "patches the stem lacks": ("digits", [f"{VISION}patch_size=8"], ["tokendial_stem", "patch_size 8"]),
    "grey images": ("digits", [f"{VISION}num_channels=1"], [f"{VISION}num_channels", "3", "1"]),
    "images digits does not draw": ("digits", [f"{VISION}image_size=64"], [f"{VISION}image_size 64", "48"]),
    "weights from nowhere": ("digits", ["model.init_from=/nonexistent"], ["model.init_from", "does not exist"]),
    "tower from nowhere": ("digits", ["model.vision.source=./no/tower"], ["model.vision.source", "does not exist"]),
    "data at a URI": ("digits", ["data.path=s3://x/y"], ["data.path", "s3://x/y", "local folders"]),
    "captions at a URI": ("captions.openmoji", ["data.path=s3://x/y"], ["data.path", "s3://x/y"]),
    "data in a file": ("digits", [f"data.path={__file__}"], ["data.path", "not a folder"]),
    # settings that nothing would read
    "patches across cells": (
        "digits",
        [*SIGLIP, "schedule.counts=[1,4,9]", "evaluation.counts=[1,4]"],
        [f"{VISION}patch_size 8", "6 x 6 patches", "multiple of 4"],
    ),
    "pictures moved away": ("captions.tiny", ["data.shift=48"], ["data.shift 48", "data.image_size 48"]),
    "importance where all counts run": ("digits", ["schedule=m3", "schedule.importance=true"], ["importance", "all"]),
    "importance in a sandwich": (
        "digits",
        ["schedule=sandwich", "schedule.importance=true"],
        ["schedule.importance", "sandwich"],
    ),
    "random counts without a sandwich": (
        "digits",
        ["schedule.random_counts=2"],
        ["schedule.random_counts 2", "smallest"],
    ),
    "strata without stratification": ("digits", ["schedule.stratum=4"], ["schedule.stratum 4", "stratified"]),
    "queries of a pooling projector": ("digits", ["model.max_queries=200"], ["model.max_queries 200", "query"]),
    "query keys of a pooling projector": ("digits", ["model.query_keys=features"], ["model.query_keys", "query"]),
    "pooling of a query projector": (
        "digits",
        ["model=query", "model.pooling=resize_then_avg"],
        ["model.pooling resize_then_avg", "pool"],
    ),
    "hidden width of a query projector": ("digits", ["model=query", "model.hidden_factor=2"], ["model.hidden_factor"]),
    "counts the experiment's law does not weigh": (
        "digits",
        ["schedule.counts=[1,4,9,16]"],
        ["schedule.counts", "4 entries", "schedule.weights", "schedule=tokenflex"],
    ),
    # budget and stages
    "horizon beside steps": ("digits", ["budget.steps=10", "budget.horizon=20"], ["budget.horizon 20", "seconds"]),
    "horizon alone": ("digits", ["budget.horizon=20"], ["budget.horizon 20", "seconds"]),
    "horizon in a section": ("digits", ['budget={"flops":1e13,"horizon":20}'], ["budget.horizon 20", "seconds"]),
    "warm-up of what is frozen": (
        "digits",
        ['stages=[{"name":"w","share":1,"objective":"tower","train":["language"]},{"name":"a","share":1}]'],
        ["stages", "'w'", "tower", "language"],
    ),
    "nothing but warm-up": (
        "digits",
        ['stages=[{"name":"w","share":1,"objective":"tower","train":["tower"]}]'],
        ["stages", "language"],
    ),
}


def refusal(*arguments: object, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(*arguments, **options)  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert 10 < len(sentence) < 500, sentence
    return sentence


@pytest.mark.parametrize("name", BAD)
def test_what_could_only_fail_later_is_refused_in_one_sentence(name: str) -> None:
    chosen, overrides, words = BAD[name]
    sentence = refusal(chosen, overrides, machine_cpus=8)
    assert [word for word in words if word not in sentence] == [], sentence


@pytest.mark.parametrize("kind", FIELDS)
def test_the_fields_of_a_model_type_are_those_of_transformers(kind: str) -> None:
    importlib.import_module("tokendial_workloads.vlm.configuration")
    own = set(type(AutoConfig.for_model(kind)).__annotations__)
    # A pooling head is never built, whatever the configuration says.
    assert set(FIELDS[kind]) == {name for name in own - {"vision_use_head"} if not name.isupper()}
    assert set(ACTIVATIONS) <= set(ACT2FN)


TINY = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 20}
ROPE_VALUES = {
    "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "low_freq_factor": 1.0, "high_freq_factor": 4.0
}  # fmt: skip


@pytest.mark.parametrize("kind", NEEDED)
def test_the_keys_of_rotary_positions_are_those_that_transformers_needs(kind: str) -> None:
    assert set(NEEDED) == {"default", *ROPE_INIT_FUNCTIONS} - {"proportional"}
    rope = {"rope_type": kind, **{key: ROPE_VALUES[key] for key in NEEDED[kind]}}
    check_rope("language", rope, head_width=8, over_source=False)
    published = {**{key: value for key, value in rope.items() if key != "rope_type"}, "type": kind}
    check_rope("language", published, head_width=8, over_source=False)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY, rope_parameters=dict(rope)))
    assert model(torch.arange(6)[None]).logits.isfinite().all()
    for key in NEEDED[kind]:
        lacking = {name: value for name, value in rope.items() if name != key}
        with pytest.raises(KeyError, match=key):
            AutoConfig.for_model("llama", **TINY, rope_parameters=lacking)
        with pytest.raises(ValueError, match=f"lacks {key}"):
            check_rope("language", lacking, head_width=8, over_source=False)
    with pytest.raises(ValueError, match="lacks rope_theta"):
        check_rope("language", rope, head_width=8, over_source=True)


@pytest.mark.parametrize("projector", ["query", "pool_after", "mlp"])
@pytest.mark.parametrize("form", ["model", "model.projector"])
def test_another_projector_leaves_the_experiments_settings_of_its_own_behind(projector: str, form: str) -> None:
    counts = "1024" if projector == "mlp" else "1,16,256"
    overrides = [f"{form}={projector}", f"schedule.counts=[{counts}]", f"evaluation.counts=[{counts}]"]
    config = resolve("vlm.paper", [*overrides, "schedule=uniform"], machine_cpus=None)
    assert config.model.pooling == "adaptive_avg"


@pytest.mark.parametrize("bound", ["budget.flops=1e30", "budget.tokens=1000000000000000000"])
def test_a_bound_beyond_all_runs_is_refused_at_once(bound: str) -> None:
    with pytest.raises(ConfigError, match="allows more than 1000000 steps"):
        with_horizon(resolve("digits", [bound], machine_cpus=8))


def test_a_computed_horizon_is_accepted_back_and_computed_again(tmp_path: Path) -> None:
    first = with_horizon(resolve("digits", ["budget.flops=1e12"], machine_cpus=8))
    path = tmp_path / "config.json"
    path.write_text(first.model_dump_json())
    assert with_horizon(resolve(None, (), path, machine_cpus=8)) == first
    cheaper = with_horizon(resolve(None, ["schedule=fixed", "schedule.counts=[4]"], path, machine_cpus=8))
    assert (cheaper.budget.horizon or 0) > (first.budget.horizon or 0)


def test_bf16_needs_a_gpu_for_each_worker_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "fp32" in refusal("digits", ["precision=bf16"], machine_cpus=8)
    assert resolve("digits", ["precision=bf16", "workers=16"], machine_cpus=None).workers == 16
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    assert resolve("digits", ["precision=bf16", "workers=16"], machine_cpus=8).precision == "bf16"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1 / 0", ["ZeroDivisionError"]),
        ("def f(): raise RuntimeError('two\\nlines')", ["RuntimeError: two lines"]),
        ("def f(): return {}['key']", ["KeyError", "key"]),
        ("def f(", ["SyntaxError"]),
        (
            "from tokendial.contracts import ZeroConfig\ndef f(): return ZeroConfig(stage=7)",
            ["ValidationError", "stage"],
        ),
    ],
    ids=["import", "call", "key", "syntax", "validation"],
)
def test_a_failing_module_of_ones_own_is_one_sentence(
    body: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"mine_{len(body)}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"mine_{len(body)}:f"
    sentence = refusal(name)
    assert [word for word in (name, *words) if word not in sentence] == [], sentence
    with pytest.raises(ConfigError):
        experiment(name)
