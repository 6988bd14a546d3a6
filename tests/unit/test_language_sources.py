"""A causal LM from a local folder comes with its own tokenizer: built, trained, graded, exported and read back."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import language_folders
import pytest
import torch
from tokendial.contracts import ModelConfig, RunConfig
from tokendial.evaluate import evaluate
from tokendial.experiments import ConfigError, workload
from tokendial.model_folder import ModelCard
from tokendial.promote import latency
from tokendial.resolve import resolve
from tokendial_workloads.captions.tokenizer import captions_tokenizer, tokenizer_of
from tokendial_workloads.captions.vocabulary import VOCABULARY
from tokendial_workloads.captions.workload import vocabulary_size
from tokendial_workloads.vlm.decode import greedy
from tokendial_workloads.vlm.export import load_processor
from tokendial_workloads.vlm.text import prompts
from tokendial_workloads.vlm.vocabulary import tokenizer_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

LANGUAGES = [language_folders.qwen2, language_folders.llama]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_folders.pictures(tmp_path_factory.mktemp("data") / "pictures")


def configured(pictures: Path, *overrides: str) -> RunConfig[Any]:
    return resolve("captions.tiny", (f"data.path={pictures}", "data.repeats=1", *overrides))


def from_folders(root: Path, pictures: Path, language: Callable[[Path], Path]) -> RunConfig[Any]:
    sources = (
        f"model.language.source={language(root / 'lm')}",
        f"model.vision.source={language_folders.siglip(root / 'tower')}",
    )
    return configured(pictures, *sources)


def prepare(overrides: list[str]) -> None:
    """What a run does before its workers start."""
    config = resolve("captions.tiny", overrides)
    data, _ = workload(config.workload).load(config)
    data.digests(config)


def answers(task: Any, model: Any, data: Any, config: RunConfig[Any]) -> list[list[int]]:
    """Greedy ids of two test pictures at counts 4 and 16."""
    items, ids = data.datasets(config)["test"], task.ids
    batch = data.collate([items[0], items[1]])
    with torch.no_grad():
        features = task.encode(model, batch)
    prompt = prompts(batch, ids.pad)
    asked = features, prompt["input_ids"], prompt["attention_mask"]
    return [row for k in (4, 16) for row in greedy(model, *asked, k, 8, (ids.eos,), ids.pad).tolist()]


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda make: make.__name__)
def test_a_language_model_and_a_tower_from_folders_train_and_travel(
    language: Callable[[Path], Path], pictures: Path, tmp_path: Path
) -> None:
    config = from_folders(tmp_path, pictures, language)
    chosen = workload(config.workload)
    data, task = chosen.load(config)
    model: Any = task.build_model(config)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in task.parts(model).items()}
    assert dict(chosen.cost(config).num_parameters) == sizes
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "lm").get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[: len(theirs)], theirs)

    items = data.datasets(config)["train"]
    batch = data.collate([items[0], items[1]])
    expanded = task.expand(batch, 4)
    loss = task.loss(task.logits(model, task.encode(model, batch), expanded, 4), expanded)
    loss.backward()
    assert loss.isfinite()
    assert all(any(p.grad is not None for p in part.parameters()) for part in task.parts(model).values())
    head = task.warmup_head(config)
    assert head is not None
    task.warmup_loss(head, task.encode(model, batch), batch)[0].backward()

    before = answers(task, model.eval(), data, config)
    folder = tmp_path / "model"
    task.export(model, config, str(folder))
    assert answers(task, task.load(str(folder)), data, config) == before
    assert len(before[0]) == 8
    own, again = tokenizer_of(config.model), AutoTokenizer.from_pretrained(folder)
    assert again.get_vocab() == own.get_vocab()
    assert (again.eos_token_id, again.pad_token_id) == (own.eos_token_id, own.pad_token_id)


def test_a_promoted_models_latency_is_measured_without_what_it_was_made_from(pictures: Path, tmp_path: Path) -> None:
    config = from_folders(tmp_path, pictures, language_folders.llama)
    _, task = workload(config.workload).load(config)
    task.export(task.build_model(config), config, str(tmp_path / "model"))
    shutil.rmtree(tmp_path / "lm")
    assert set(latency(tmp_path / "model", config, [4]).ms) == {4}


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda make: make.__name__)
def test_serving_writes_the_conversation_as_training_does(
    language: Callable[[Path], Path], pictures: Path, tmp_path: Path
) -> None:
    config = from_folders(tmp_path, pictures, language)
    data, task = workload(config.workload).load(config)
    task.export(task.build_model(config), config, str(tmp_path / "model"))
    example = data.datasets(config)["test"][0]
    processor = load_processor(tmp_path / "model")
    answer = {"role": "assistant", "content": example["text"]}
    chat = [{"role": "user", "content": [{"type": "image"}]}, answer]
    ids = processor.tokenizer.encode(str(processor.apply_chat_template(chat)), add_special_tokens=False)
    assert ids == example["input_ids"][example["attention_mask"] == 1].tolist()
    assert ids[-1] == processor.tokenizer.eos_token_id
    targets = example["labels"][example["labels"] != -100].tolist()
    assert processor.tokenizer.decode(targets, skip_special_tokens=True) == example["text"]


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda make: make.__name__)
def test_the_vocabulary_is_known_without_loading_the_tokenizer(
    language: Callable[[Path], Path], tmp_path: Path
) -> None:
    model = ModelConfig.model_validate({"language": {"tokenizer": str(language(tmp_path))}})
    assert vocabulary_size(model) == len(tokenizer_of(model))


def test_a_tokenizer_serves_a_model_with_random_weights(pictures: Path, tmp_path: Path) -> None:
    config = configured(pictures, f"model.language.tokenizer={language_folders.llama(tmp_path / 'lm')}")
    _, task = workload(config.workload).load(config)
    model: Any = task.build_model(config)
    assert len(model.get_input_embeddings().weight) == vocabulary_size(config.model) < VOCABULARY


def test_weights_without_a_tokenizer_use_that_of_the_workload(pictures: Path, tmp_path: Path) -> None:
    folder = language_folders.qwen2(tmp_path / "lm")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    config = configured(pictures, f"model.language.source={folder}")
    assert tokenizer_folder(config.model) is None
    assert tokenizer_of(config.model) is captions_tokenizer()
    assert vocabulary_size(config.model) == VOCABULARY


@pytest.mark.parametrize("projector", ["pool", "pool_after"])
def test_a_run_starts_from_a_llava_folder_with_its_tokenizer(projector: str, pictures: Path, tmp_path: Path) -> None:
    folder = language_folders.llava(tmp_path / "llava")
    config = configured(pictures, f"model.init_from={folder}", f"model={projector}")
    chosen = workload(config.workload)
    data, task = chosen.load(config)
    model: Any = task.build_model(config).eval()
    assert model.config.image_token_id == 3
    assert vocabulary_size(config.model) == len(AutoTokenizer.from_pretrained(folder))
    assert task.warmup_head(config) is not None
    before = answers(task, model, data, config)
    task.export(model, config, str(tmp_path / "model"))
    assert answers(task, task.load(str(tmp_path / "model")), data, config) == before


def test_an_exported_folder_is_scored_where_its_sources_are_gone(pictures: Path, tmp_path: Path) -> None:
    config = from_folders(tmp_path, pictures, language_folders.qwen2)
    data, task = workload(config.workload).load(config)
    model: Any = task.build_model(config).eval()
    folder = tmp_path / "model"
    task.export(model, config, str(folder))
    card = ModelCard(
        workload=config.workload,
        run="run",
        metric="token_f1",
        split="test",
        trained_counts=config.schedule.counts,
        evaluated_counts=(4, 16),
        projector="pool",
        schedule={},
        commit="",
        autc=0.0,
        data_digests={},
        config=config.model_dump(mode="json"),
        versions={},
    )
    (folder / "tokendial.json").write_text(card.model_dump_json())
    shutil.rmtree(tmp_path / "lm")
    shutil.rmtree(tmp_path / "tower")
    result = evaluate(str(folder), (4, 16), "test", 2, lambda _: None)
    assert result.data == data.digests(config)["test"]
    items = data.datasets(config)["test"]
    batch = data.collate([items[0], items[1]])
    with torch.no_grad():
        features = task.encode(model, batch)
    for k in (4, 16):
        grades = task.grade(model, features, batch, k, config.evaluation.max_new_tokens)
        assert result.curve[k].quality == pytest.approx(sum(grade.quality for grade in grades) / 2)
    for number in (0, len(items) + 1):
        with pytest.raises(ConfigError, match=f"--examples {number} is not in 1 to {len(items)}, the size of "):
            evaluate(str(folder), (4, 16), "test", number, lambda _: None)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.path=PICTURES", "data.text_tokens=4"], ["data.text_tokens 4", "thing number", "needs"]),
        (["model.language.tokenizer=EMPTY"], ["model.language.tokenizer", "tokenizer.json"]),
        (["model.language.tokenizer=nobody/nothing"], ["hf download nobody/nothing"]),
        (["model.language.source=nobody/nothing"], ["hf download nobody/nothing"]),
        (["model.language.tokenizer=BROKEN"], ["tokenizer.json is not JSON"]),
        (["model.language.config.vocab_size=100"], ["model.language.config.vocab_size 100", str(VOCABULARY)]),
        (["data.image_size=64"], ["data.image_size 64", "data.image_size=48"]),
    ],
    ids=["caption too long", "no tokenizer", "no such tokenizer", "no such model", "broken", "few rows", "image size"],
)
def test_what_does_not_fit_is_refused(overrides: list[str], words: list[str], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    places = {"PICTURES": pictures, "EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken"}
    for name, place in places.items():
        overrides = [override.replace(name, str(place)) for override in overrides]
    with pytest.raises(ValueError, match=re.escape(words[0])) as refused:
        prepare(overrides)
    assert all(word in str(refused.value) for word in words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("vision", {"image_size": 96}, "image_size 96 does not fit the weights of .*, made for 48"),
        ("vision", {"num_attention_heads": 4}, "num_attention_heads 4 does not fit .* for 2"),
        ("language", {"num_key_value_heads": 4}, "num_key_value_heads 4 does not fit .* for 2"),
        ("language", {"num_key_value_heads": None}, "num_key_value_heads 4 does not fit .* for 2"),
        ("language", {"attention_bias": True}, "attention_bias True does not fit .* for False"),
        ("language", {"tie_word_embeddings": True}, "tie_word_embeddings True does not fit .* for False"),
        ("language", {"num_hidden_layers": 3}, "num_hidden_layers 3 does not fit .* for 2"),
        ("language", {"num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 4, "vocab_size": 999}, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_sizes_of_a_source_are_those_of_its_weights(
    section: str, change: dict[str, Any], words: str | None, pictures: Path, tmp_path: Path
) -> None:
    folder = language_folders.llava(tmp_path / "llava")
    size = change.get("image_size", 48)
    overrides = (
        f"model.init_from={folder}", f"model.{section}.config={json.dumps(change)}", f"data.image_size={size}"
    )  # fmt: skip
    if words is None:
        config = configured(pictures, *overrides)
        workload(config.workload).load(config)[1].build_model(config)
        return
    with pytest.raises(ConfigError, match=f"model.{section}.config.{words}"):
        configured(pictures, *overrides)
