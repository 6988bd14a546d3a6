"""The paper's configuration: shapes, parameters and FLOPs on the meta device, its code path at a tenth of the width."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokendial.contracts import RunConfig
from tokendial_workloads.vlm.build import TextIds, build_model, model_config, part_modules
from tokendial_workloads.vlm.cost import ModelCost
from tokendial_workloads.vlm.model import TokendialForConditionalGeneration
from tokendial_workloads.vlm.paper import COUNTS, paper_3b, paper_7b, paper_tenth
from tokendial_workloads.vlm.text import expand_placeholders
from torch.utils.flop_counter import FlopCounterMode

IDS = TextIds(image=15001, pad=15002, eos=15003, bos=None, vocab_size=15004)


@pytest.mark.parametrize(
    ("paper", "projector_parameters", "width"),
    [(paper_3b, 15_051_776, 2048), (paper_7b, 20_361_728, 3584)],
    ids=["3b", "7b"],
)
def test_the_papers_sizes_and_flops(paper: Callable[[], RunConfig[Any]], projector_parameters: int, width: int) -> None:
    config = paper()
    vocabulary = config.model.language.config["vocab_size"]
    cost = ModelCost(config.model, config.data.text_tokens + 1, vocabulary, config.activation_checkpointing)
    with torch.device("meta"):
        model = TokendialForConditionalGeneration(model_config(config.model, IDS, COUNTS))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in part_modules(model).items()}
    assert parts == cost.num_parameters
    assert parts["projector"] == projector_parameters
    assert 412e6 < parts["tower"] < 414e6
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = model.encode(torch.empty(1, 3, 448, 448, device="meta"))
    assert features.shape == (1, 1024, 1152)
    assert cost.tower_flops(trained=False) == pytest.approx(counter.get_total_flops(), rel=0.02)
    columns = config.data.text_tokens + 1
    for k in COUNTS:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tokens = model.project(features, k)
            embeddings = torch.empty(1, k + columns - 1, width, device="meta")
            hidden = model.model.language_model(inputs_embeds=embeddings).last_hidden_state
            model.lm_head(hidden[:, -columns:])
        assert tokens.shape == (1, k, width)
        assert cost.language_flops(k, frozenset(), backward=False) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_law_is_two_to_three_to_five_and_saves_28_per_cent_of_visual_tokens() -> None:
    schedule = paper_3b().schedule
    mean = sum(k * w for k, w in zip(schedule.counts, schedule.weights, strict=True)) / sum(schedule.weights)
    assert mean == 184.0
    assert 1 - mean / 256 == pytest.approx(0.28125)


def test_the_code_path_runs_at_a_tenth_of_the_width() -> None:
    config = paper_tenth()
    model = build_model(config.model, ids=IDS, counts=COUNTS, activation_checkpointing=True).train()
    assert len(model.model.vision_tower.encoder.layers) == 27
    assert len(model.model.language_model.layers) == 36
    ids = torch.randint(5, 900, (1, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 1] = IDS.image
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    features = model.encode(torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(1)))
    total = torch.zeros(())
    for k in COUNTS:
        batch = expand_placeholders(text, k, IDS.image)
        total = total + model(input_ids=batch["input_ids"], image_features=features, labels=batch["labels"]).loss
    total.backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert untouched == []
    assert torch.isfinite(total)
