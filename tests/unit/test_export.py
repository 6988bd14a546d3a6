"""Exported folders: the same greedy ids through our loader and in a process that has transformers and torch alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokendial.contracts import LoraConfig
from tokendial_workloads.vlm.card import Card, card_text
from tokendial_workloads.vlm.decode import greedy
from tokendial_workloads.vlm.export import build_processor, load, load_processor
from tokendial_workloads.vlm.model import TokendialForConditionalGeneration
from tokendial_workloads.vlm.processor import TokendialProcessor
from transformers import AutoModelForImageTextToText
from vlm_tiny import CLIP, COUNTS, QWEN2, tiny_run, tiny_task

TASK = tiny_task()
PROMPT = "<s> <image> w1 w2 w3"

STRANGER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tokendial", "tokendial_workloads", "tokendial_kernels"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

folder, image, counts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
answers = {}
for k in counts:
    inputs = processor(images=Image.open(image), text="<s> <image> w1 w2 w3", visual_tokens=k)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    answers[str(k)] = ids[0, inputs["input_ids"].shape[1]:].tolist()
chat = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w1"}]}])
print(json.dumps({"answers": answers, "chat": chat, "class": type(model).__module__}))
"""


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 30, 3), dtype=np.uint8))


def answers(
    model: TokendialForConditionalGeneration, processor: TokendialProcessor, counts: tuple[int, ...]
) -> dict[str, list[int]]:
    """What evaluation's greedy decoding gives for one prompt at each count."""
    pixel_values = processor(images=picture(), text=PROMPT, visual_tokens=counts[0])["pixel_values"]
    ids = torch.tensor([TASK.tokenizer.encode(PROMPT)])
    features = model.encode(pixel_values)
    stops = (TASK.ids.eos,)
    return {
        str(k): greedy(model, features, ids, torch.ones_like(ids), k, 6, stop_ids=stops)[0].tolist() for k in counts
    }


def stranger(folder: Path, counts: tuple[int, ...]) -> dict[str, object]:
    """The folder loaded where no package of ours can be imported."""
    image = folder.parent / "picture.png"
    picture().save(image)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder), str(image), json.dumps(counts)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder.parent,
        env={**os.environ, "HF_HOME": str(folder.parent / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("projector", ["pool", "query", "pool_after", "mlp"])
def test_our_loader_gives_back_the_greedy_ids(projector: str, tmp_path: Path) -> None:
    config = tiny_run(projector)
    model = TASK.build_model(config).eval()
    TASK.export(model, config, str(tmp_path / "model"))
    again, processor = TASK.load(str(tmp_path / "model")), load_processor(tmp_path / "model")
    assert not again.training
    expected = answers(model, build_processor(model, TASK.tokenizer), COUNTS[projector])
    assert answers(again, processor, COUNTS[projector]) == expected


def test_the_folder_answers_alike_with_transformers_and_torch_alone(tmp_path: Path) -> None:
    config = tiny_run("pool", pooling="resize_then_avg")
    model = TASK.build_model(config).eval()
    TASK.export(model, config, str(tmp_path / "model"))
    found = stranger(tmp_path / "model", (1, 4, 16, 25))
    assert found["answers"] == answers(model, build_processor(model, TASK.tokenizer), (1, 4, 16, 25))
    assert str(found["class"]).startswith("transformers_modules.")
    assert found["chat"] == "<s> <image> w1 "


@pytest.mark.slow
@pytest.mark.parametrize("projector", ["query", "pool_after"])
def test_the_other_projectors_travel_too(projector: str, tmp_path: Path) -> None:
    config = tiny_run(projector, vision=CLIP, language=QWEN2)
    model = TASK.build_model(config).eval()
    TASK.export(model, config, str(tmp_path / "model"))
    found = stranger(tmp_path / "model", COUNTS[projector])
    assert found["answers"] == answers(model, build_processor(model, TASK.tokenizer), COUNTS[projector])


def test_adapters_are_folded_into_the_exported_weights(tmp_path: Path) -> None:
    config = tiny_run("pool", lora=LoraConfig(rank=2))
    model = TASK.build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    TASK.export(model, config, str(tmp_path / "model"))
    again = load(tmp_path / "model")
    assert not any("lora" in name for name in again.state_dict())
    processor = load_processor(tmp_path / "model")
    assert answers(again, processor, (1, 16)) == answers(model, processor, (1, 16))


def test_the_folder_holds_safetensors_code_and_card_and_names_no_package_of_ours(tmp_path: Path) -> None:
    config = tiny_run()
    TASK.export(TASK.build_model(config), config, str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "config.json", "processor_config.json", "chat_template.jinja", "README.md"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    for path in tmp_path.glob("*.py"):
        lines = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not any("tokendial" in line for line in lines), path.name
    card = (tmp_path / "README.md").read_text()
    assert "CC0-1.0" in card
    assert "Trained at 1, 4, 16, 25; it serves 1, 4, 9, 16, 25, 36." in card


def test_loading_never_runs_the_folders_code(tmp_path: Path) -> None:
    config = tiny_run()
    TASK.export(TASK.build_model(config), config, str(tmp_path))
    for path in tmp_path.glob("*.py"):
        path.write_text("raise SystemExit('the code of the folder ran')")
    assert load(tmp_path).config.counts == [1, 4, 16, 25]
    assert load_processor(tmp_path).visual_tokens == 25
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is TokendialForConditionalGeneration


def test_weights_other_than_safetensors_are_refused(tmp_path: Path) -> None:
    config = tiny_run()
    model = TASK.build_model(config)
    TASK.export(model, config, str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load(tmp_path)


def test_the_processor_expands_placeholders_and_refuses_bad_calls() -> None:
    processor = build_processor(TASK.build_model(tiny_run()), TASK.tokenizer)
    inputs = processor(images=picture(), text=PROMPT, visual_tokens=9)
    assert (inputs["input_ids"] == 3).sum() == 9
    assert inputs["pixel_values"].shape == (1, 3, 24, 24)
    assert (processor(images=picture(), text=PROMPT)["input_ids"] == 3).sum() == 25
    two = processor(images=[picture(), picture()], text=[PROMPT, f"{PROMPT} w4"], visual_tokens=1)
    assert two["attention_mask"].sum(1).tolist() == [5, 6]
    with pytest.raises(ValueError, match="5 visual tokens are not admissible"):
        processor(images=picture(), text=PROMPT, visual_tokens=5)
    with pytest.raises(ValueError, match="has 1 <image> placeholders for 2 images"):
        processor(images=[picture(), picture()], text=PROMPT)


@pytest.mark.parametrize("projector", ["pool", "query"])
def test_prompts_of_different_lengths_are_answered_together_as_alone(projector: str) -> None:
    model: Any = TASK.build_model(tiny_run(projector)).eval()
    processor = build_processor(model, TASK.tokenizer)
    images, texts = [picture(), picture(seed=1)], ["<s> <image> w1", "<s> <image> w1 w2 w3 w4 w5 w6"]
    for k in COUNTS[projector]:

        def new_ids(images: list[Image.Image], texts: list[str], k: int = k) -> list[list[int]]:
            inputs = processor(images=images, text=texts, visual_tokens=k, padding=True)
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=-1)
            return ids[:, inputs["input_ids"].shape[1] :].tolist()

        alone = [new_ids([image], [text])[0] for image, text in zip(images, texts, strict=True)]
        assert new_ids(images, texts) == alone


def test_pixels_of_the_right_size_are_scaled_to_minus_one_and_one_bit_for_bit() -> None:
    processor = build_processor(TASK.build_model(tiny_run()), TASK.tokenizer)
    raw = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    pixel_values = processor(images=Image.fromarray(raw), text=PROMPT)["pixel_values"]
    expected = (raw.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert np.array_equal(pixel_values[0].numpy(), expected.transpose(2, 0, 1))


def test_the_card_shows_curve_cost_digests_and_commit() -> None:
    text = card_text(
        Card("demo", metric="accuracy", curve={4: 0.35, 16: 0.96}, cost_flops={4: 1.5e9}, digests={"test": "ab"})
    )
    assert "| 4 | 0.350 | 1.5e+09 |" in text
    assert "| 16 | 0.960 |  |" in text
    assert "- test: `ab`" in text
