"""The model: counts read from the prompt or refused, one encoding for several counts, generation, save and load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokendial_workloads.vlm.build import build_model
from tokendial_workloads.vlm.configuration import StemConfig, TokendialConfig
from tokendial_workloads.vlm.model import TokendialForConditionalGeneration
from tokendial_workloads.vlm.text import expand_placeholders
from transformers import AutoConfig, AutoModelForImageTextToText, LlamaConfig
from vlm_tiny import COUNTS, tiny_batch, tiny_model_config, tiny_task


def tiny(projector: str = "pool") -> Any:
    return build_model(tiny_model_config(projector), ids=tiny_task().ids, counts=COUNTS[projector]).eval()


def prompt(k: int, rows: int = 1) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, *[3] * k, 7, 8, 9]]).repeat(rows, 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pixels(rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, 3, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("projector", ["pool", "query", "pool_after", "mlp"])
def test_a_saved_model_loads_from_safetensors_and_gives_the_same_logits(projector: str, tmp_path: Path) -> None:
    model, k = tiny(projector), COUNTS[projector][-1]
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(again) is TokendialForConditionalGeneration
    assert again.config.counts == list(COUNTS[projector])
    inputs = {**prompt(k), "pixel_values": pixels()}
    assert torch.equal(model(**inputs).logits, again(**inputs).logits)


def test_the_count_is_read_from_the_placeholders() -> None:
    model = tiny()
    for k in (1, 4, 36):
        tokens = model(**prompt(k), pixel_values=pixels()).image_outputs
        assert model.model.infer_count(prompt(k)["input_ids"], 1) == k
        assert tokens.last_hidden_state.shape == (1, 36, 16)


def test_two_images_in_a_row_share_one_count() -> None:
    model = tiny()
    ids = torch.tensor([[1, 3, 3, 3, 3, 7, 3, 3, 3, 3, 8]])
    logits = model(input_ids=ids, pixel_values=pixels(2)).logits
    assert logits.shape[1] == 11
    with pytest.raises(ValueError, match="5 visual tokens are not admissible"):
        model(input_ids=torch.tensor([[1, *[3] * 10]]), pixel_values=pixels(2))


@pytest.mark.parametrize("rows", [[[3, 3, 7, 7, 7], [3, 3, 3, 3, 3]], [[3, 7, 7, 7, 7], [3, 3, 3, 3, 7]]], ids=str)
def test_rows_that_disagree_on_the_count_are_refused(rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="image placeholders for 2 images; admissible: the same"):
        tiny()(input_ids=torch.tensor(rows), pixel_values=pixels(2))


def test_an_inadmissible_number_of_placeholders_is_refused() -> None:
    with pytest.raises(ValueError, match=r"5 visual tokens .* admissible: 1, 4, 9, 16, 25, 36"):
        tiny()(**prompt(5), pixel_values=pixels())


def test_the_explicit_count_must_match_the_prompt() -> None:
    model = tiny()
    logits = model(**prompt(4), pixel_values=pixels(), num_visual_tokens=4).logits
    assert torch.equal(logits, model(**prompt(4), pixel_values=pixels()).logits)
    with pytest.raises(ValueError, match="do not match"):
        model(**prompt(4), pixel_values=pixels(), num_visual_tokens=9)


def test_images_given_twice_or_not_at_the_towers_size_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="only one of pixel_values, image_features"):
        model(**prompt(4), pixel_values=pixels(), image_features=model.encode(pixels()))
    with pytest.raises(ValueError, match=r"admissible: \(images, 3, 24, 24\)"):
        model.encode(torch.zeros(1, 3, 32, 32))


def test_features_encoded_once_serve_several_counts() -> None:
    model = tiny()
    features = model.encode(pixels())
    outputs = model.get_image_features(pixels())
    for k in (1, 9, 36):
        expected = model(**prompt(k), pixel_values=pixels()).logits
        assert torch.equal(model(**prompt(k), image_features=features).logits, expected)
        assert torch.equal(model(**prompt(k), mm_encoder_outputs={"image": outputs}).logits, expected)
    projected = model.get_image_features(pixels(), num_visual_tokens=9)
    logits = model(**prompt(9), mm_encoder_outputs={"image": projected}).logits
    assert torch.equal(logits, model(**prompt(9), pixel_values=pixels()).logits)


def test_generation_with_and_without_a_cache_agrees_at_every_count() -> None:
    model = tiny()
    for k in (1, 16, 25):
        inputs = {**prompt(k), "pixel_values": pixels(), "max_new_tokens": 5, "do_sample": False}
        cached = model.generate(**inputs)
        assert cached.shape == (1, k + 9)
        assert torch.equal(cached, model.generate(**inputs, use_cache=False))


def test_beams_and_several_sequences_keep_each_rows_own_image() -> None:
    model = tiny()
    inputs = {**prompt(4, rows=2), "max_new_tokens": 3, "do_sample": False, "num_beams": 2, "num_return_sequences": 2}
    both = model.generate(**inputs, pixel_values=pixels(2))
    alone = model.generate(**{**inputs, **prompt(4)}, pixel_values=pixels(2)[1:])
    assert torch.equal(both[2:, : alone.shape[1]], alone)


def test_generation_reuses_encoder_outputs() -> None:
    model = tiny()
    outputs = model.get_image_features(pixels())
    for k in (4, 16):
        inputs = {**prompt(k), "max_new_tokens": 4, "do_sample": False}
        expected = model.generate(**inputs, pixel_values=pixels())
        assert torch.equal(model.generate(**inputs, mm_encoder_outputs={"image": outputs}), expected)


def test_evaluation_consults_no_training_law() -> None:
    model = tiny()
    torch.manual_seed(0)
    first = model(**prompt(9), pixel_values=pixels()).logits
    model.config.counts = [4]
    torch.manual_seed(1)
    assert torch.equal(model(**prompt(9), pixel_values=pixels()).logits, first)


def test_the_configuration_round_trips_with_its_parts() -> None:
    config = TokendialConfig(vision_config=StemConfig(image_size=24), text_config=LlamaConfig(), grid=[6, 6])
    again = AutoConfig.for_model(**config.to_dict())
    assert isinstance(again, TokendialConfig)
    assert isinstance(again.vision_config, StemConfig)
    assert again.image_seq_length == 36
    assert again.admissible_counts == (1, 4, 9, 16, 25, 36)
    with pytest.raises(ValueError, match="multiple of it, got patch_size 4 and image_size 30"):
        StemConfig(image_size=30)
    with pytest.raises(ValueError, match="multiple of 4 and of num_attention_heads"):
        StemConfig(hidden_size=20, num_attention_heads=3)


def test_hidden_states_of_the_stem_are_one_per_layer_and_end_in_the_output() -> None:
    tower = tiny().model.vision_tower
    outputs = tower(pixels(), output_hidden_states=True)
    assert len(outputs.hidden_states) == 2
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)


@pytest.mark.parametrize("k", [1, 4, 25])
def test_expanding_a_batch_and_expanding_by_hand_agree(k: int) -> None:
    batch = expand_placeholders(tiny_batch(), k, 3)
    for row, expanded in zip(tiny_batch()["input_ids"].tolist(), batch["input_ids"].tolist(), strict=True):
        slot = row.index(3)
        assert expanded == row[:slot] + [3] * k + row[slot + 1 :]
    assert batch["labels"].shape == batch["attention_mask"].shape == (3, 9 + k)
    assert torch.equal(batch["labels"].gather(1, batch["text_positions"]), tiny_batch()["labels"])
