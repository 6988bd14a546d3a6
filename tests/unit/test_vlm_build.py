"""Building: deterministic initialisation, any tower and language model, sources, adapters, activation checkpointing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokendial.contracts import LanguageConfig, LoraConfig, ModelConfig, TowerConfig
from tokendial_workloads.vlm.adapters import merged
from tokendial_workloads.vlm.build import TextIds, build_model, model_config, text_config, vision_config
from tokendial_workloads.vlm.cost import ModelCost
from tokendial_workloads.vlm.sources import copy_weights
from tokendial_workloads.vlm.vocabulary import tokenizer_folder
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
)
from vlm_tiny import CLIP, LLAMA, QWEN2, SIGLIP, STEM, WORDS, tiny_batch, tiny_model_config, tiny_run, tiny_task

TASK = tiny_task()
IDS = TASK.ids


def step(model: Any, k: int = 4) -> dict[str, torch.Tensor]:
    """Gradients of one batch by name."""
    batch = tiny_batch()
    expanded = TASK.expand(batch, k)
    TASK.loss(TASK.logits(model, TASK.encode(model, batch), expanded, k), expanded).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (TASK.build_model(tiny_run(seed=3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    other = TASK.build_model(tiny_run(seed=4))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("vision", [STEM, SIGLIP, CLIP], ids=lambda part: part.kind)
@pytest.mark.parametrize("language", [LLAMA, QWEN2], ids=lambda part: part.kind)
def test_any_tower_with_any_language_model_trains(vision: TowerConfig, language: LanguageConfig) -> None:
    config = tiny_model_config(vision=vision, language=language)
    model = build_model(config, ids=IDS)
    parts = TASK.parts(model)
    assert list(parts) == ["tower", "projector", "language"]
    held = [id(p) for part in parts.values() for p in part.parameters()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    cost = ModelCost(config, 10, len(WORDS))
    assert cost.num_parameters == {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    gradients = step(model)
    assert {name for name, _ in model.named_parameters()} - gradients.keys() <= {
        "model.vision_tower.post_layernorm.weight",
        "model.vision_tower.post_layernorm.bias",
    }


def test_a_class_token_is_dropped_and_other_leading_tokens_are_refused() -> None:
    assert model_config(tiny_model_config(vision=CLIP), IDS, ()).vision_feature_select_strategy == "default"
    assert model_config(tiny_model_config(vision=SIGLIP), IDS, ()).vision_feature_select_strategy == "full"
    registers = TowerConfig(
        kind="dinov2_with_registers",
        config={**CLIP.config, "num_register_tokens": 4, "mlp_ratio": 2},
    )
    with pytest.raises(ValueError, match="gives 41 tokens for a 6x6 grid; admissible: 36, or one more"):
        build_model(tiny_model_config(vision=registers), ids=IDS)


@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_the_feature_layer_selects_what_llava_would(layer: int) -> None:
    model = build_model(tiny_model_config(vision=SIGLIP, feature_layer=layer), ids=IDS).eval()
    pixel_values = tiny_batch()["pixel_values"]
    outputs = model.model.vision_tower(pixel_values, output_hidden_states=True)
    expected = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
    assert torch.equal(model.encode(pixel_values), expected)


def test_a_trained_count_that_cannot_be_served_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^49 visual tokens are not admissible for projector 'pool' on a 6x6"):
        build_model(tiny_model_config(), ids=IDS, counts=(4, 49))


def test_tower_and_language_model_come_from_local_folders(tmp_path: Path) -> None:
    vision = SiglipVisionConfig(**SIGLIP.config)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    whole = SiglipModel(SiglipConfig(vision_config=vision.to_dict(), text_config=text))
    whole.save_pretrained(tmp_path / "siglip")
    language = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=20, **LLAMA.config))
    language.save_pretrained(tmp_path / "llama")
    config = tiny_model_config(
        vision=TowerConfig(source=str(tmp_path / "siglip")), language=LanguageConfig(source=str(tmp_path / "llama"))
    )
    model = build_model(config, ids=IDS)
    for name, weight in model.model.vision_tower.named_parameters():
        assert torch.equal(weight, whole.vision_model.get_parameter(name))
    assert model.lm_head.weight.shape == (len(WORDS), 16)
    assert torch.equal(model.lm_head.weight[:20], language.lm_head.weight)
    cost = ModelCost(config, 10, len(WORDS))
    assert cost.num_parameters["language"] == sum(p.numel() for p in TASK.parts(model)["language"].parameters())
    assert cost.num_parameters["tower"] == sum(p.numel() for p in TASK.parts(model)["tower"].parameters())


@pytest.mark.parametrize("projector", ["mlp", "pool_after", "pool"])
def test_a_run_starts_from_a_llava_folder_and_keeps_its_projector_where_it_fits(projector: str, tmp_path: Path) -> None:
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=SiglipVisionConfig(**SIGLIP.config, vision_use_head=False),
            text_config=LlamaConfig(vocab_size=len(WORDS), **LLAMA.config),
            image_token_index=3,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    )
    llava.save_pretrained(tmp_path)
    model = build_model(ModelConfig.model_validate({"init_from": str(tmp_path), "projector": projector}), ids=IDS)
    assert torch.equal(model.lm_head.weight, llava.lm_head.weight)
    theirs = dict(llava.model.vision_tower.named_parameters())
    assert all(torch.equal(w, theirs[name]) for name, w in model.model.vision_tower.named_parameters())
    if projector != "pool":
        ours, stock = model.model.multi_modal_projector, llava.model.multi_modal_projector
        assert all(torch.equal(w, stock.get_parameter(name)) for name, w in ours.named_parameters())


def test_the_mlp_projector_from_a_llava_folder_gives_stock_llavas_logits(tmp_path: Path) -> None:
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=SiglipVisionConfig(**SIGLIP.config, vision_use_head=False),
            text_config=LlamaConfig(vocab_size=len(WORDS), **LLAMA.config),
            image_token_index=3,
            vision_feature_layer=-2,
            vision_feature_select_strategy="full",
        )
    ).eval()
    llava.save_pretrained(tmp_path)
    config = ModelConfig(init_from=str(tmp_path), projector="mlp", feature_layer=-2)
    model = build_model(config, ids=IDS).eval()
    batch = TASK.expand(tiny_batch(), 36)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    torch.testing.assert_close(model(**inputs).logits, llava(**inputs).logits)


@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_field_changed_over_a_llava_folder_leaves_its_sizes(part: str, tmp_path: Path) -> None:
    text = LlamaConfig(vocab_size=len(WORDS), **LLAMA.config)
    stored = LlavaConfig(vision_config=SiglipVisionConfig(**SIGLIP.config), text_config=text, image_token_index=3)
    stored.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    config = ModelConfig.model_validate({"init_from": str(tmp_path), part: {"config": {"attention_dropout": 0.25}}})
    plain = ModelCost(ModelConfig(init_from=str(tmp_path)), 10, len(WORDS))
    assert ModelCost(config, 10, len(WORDS)).num_parameters == plain.num_parameters
    made = {
        "vision": vision_config(config.vision, config.init_from),
        "language": text_config(config.language, IDS, config.init_from),
    }
    assert {name: one.attention_dropout for name, one in made.items()} == {"vision": 0.0, "language": 0.0} | {
        part: 0.25
    }
    assert {one.hidden_size for one in made.values()} == {16}
    assert tokenizer_folder(config) == tmp_path


@pytest.mark.parametrize(
    ("change", "weight"),
    [
        ({"intermediate_size": 48}, r"layers.0.mlp.gate_proj.weight' is \(40, 16\)"),
        ({"num_key_value_heads": 4}, r"layers.0.self_attn.k_proj.weight' is \(8, 16\)"),
        ({"hidden_size": 8}, r"embed_tokens.weight' is \(20, 16\)"),
        ({"vocab_size": 19}, r"embed_tokens.weight' is \(20, 16\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_source_that_does_not_fit_is_refused(change: dict[str, int], weight: str, tmp_path: Path) -> None:
    source = LlamaForCausalLM(LlamaConfig(vocab_size=20, **LLAMA.config))
    target = LlamaForCausalLM(LlamaConfig(**{"vocab_size": 20, **LLAMA.config, **change}))
    with pytest.raises(ValueError, match=f"weight '{weight} in the source"):
        copy_weights(target.model, source.model, rows_may_end="embed_tokens.weight")


def test_a_field_that_a_source_lacks_is_refused(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=20, **LLAMA.config)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no field 'hiden_size'"):
        build_model(tiny_model_config(language=LanguageConfig(source=str(tmp_path), config={"hiden_size": 1})), ids=IDS)


def test_adapters_train_alone_and_fold_into_the_weights() -> None:
    model = build_model(tiny_model_config(lora=LoraConfig(rank=2)), ids=IDS)
    parts = TASK.parts(model)
    assert list(parts) == ["tower", "projector", "language", "frozen"]
    held = [id(p) for part in parts.values() for p in part.parameters()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert not any(p.requires_grad for p in parts["frozen"].parameters())
    assert sum(p.numel() for p in parts["language"].parameters()) == 2 * 2 * (16 * 4 + 16 + 8 + 8 + 16 + 3 * (16 + 40))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    assert all("frozen" not in name for name in step(model))
    folded = merged(model.eval())
    assert not any("lora" in name or "base_layer" in name for name in folded.state_dict())
    batch = tiny_batch()
    features, expanded = TASK.encode(model, batch), TASK.expand(batch, 4)
    torch.testing.assert_close(
        TASK.logits(folded, features, expanded, 4), TASK.logits(model, features, expanded, 4), rtol=1e-4, atol=1e-4
    )
    assert merged(folded) is folded


def test_activation_checkpointing_changes_no_gradient() -> None:
    plain = step(build_model(tiny_model_config(), ids=IDS).train())
    saved = step(build_model(tiny_model_config(), ids=IDS, activation_checkpointing=True).train())
    assert plain.keys() == saved.keys()
    assert all(torch.equal(plain[name], saved[name]) for name in plain)


def test_the_model_runs_in_bfloat16() -> None:
    model = build_model(tiny_model_config(), ids=IDS).bfloat16()
    gradients = step(model)
    assert gradients["lm_head.weight"].dtype is torch.bfloat16


def test_a_tokenizer_without_what_the_model_needs_is_refused() -> None:
    with pytest.raises(ValueError, match="no '<picture>' token"):
        TextIds.of(TASK.tokenizer, "<picture>")
