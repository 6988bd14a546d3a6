"""The analytic cost against torch's own counter, for each projector, several counts and sets of trained parts."""

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tokendial.contracts import LanguageConfig, LoraConfig, ModelConfig, StageConfig, TowerConfig
from tokendial.schedule import ScheduleConfig, TokenSchedule
from tokendial.train.horizon import step_cost
from tokendial.train.step import StepModule, select, works
from tokendial_workloads.vlm import shapes
from tokendial_workloads.vlm.build import build_model
from tokendial_workloads.vlm.cost import ModelCost
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig
from vlm_tiny import CLIP, LLAMA, QWEN2, SIGLIP, STEM, WORDS, tiny_batch, tiny_model_config, tiny_run, tiny_task

TASK = tiny_task()
ROWS = 16


def _shape(tensor: Any) -> torch.Size:
    return torch.Size(tensor)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _fused_linear(rows: Any, other: Any, third: Any, *_: Any, **__: Any) -> int:
    """oneDNN's linear with an activation (weight second) or with a product (the other factor second)."""
    weight = other if len(_shape(other)) == 2 else third
    return 2 * _shape(rows).numel() * _shape(weight)[0]


# The counter knows the GPU's kernels; these are the CPU's.
CPU_KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.mkldnn._linear_pointwise: _fused_linear,
}
CASES = {
    "pool": {},
    "pool-siglip-qwen2": {"vision": SIGLIP, "language": QWEN2},
    "query": {"projector": "query", "vision": SIGLIP},
    "query-feature-keys": {"projector": "query", "query_keys": "features", "language": QWEN2},
    "pool_after-clip": {"projector": "pool_after", "vision": CLIP, "feature_layer": -2},
    "mlp": {"projector": "mlp"},
    "lora": {"lora": LoraConfig(rank=2)},
}
TRAINED = (
    {"tower", "projector", "language"},
    {"projector"},
    {"projector", "language"},
    {"language"},
    {"tower"},
)


def counted(config: ModelConfig, k: int, trained: set[str], checkpointed: bool) -> tuple[int, int]:
    """FLOPs the counter sees for a batch: forward, and forward with backward."""
    model = build_model(config, ids=TASK.ids, activation_checkpointing=checkpointed).train()
    for name, part in TASK.parts(model).items():
        part.requires_grad_(name in trained)
    batch = tiny_batch(ROWS)
    with FlopCounterMode(display=False, custom_mapping=CPU_KERNELS) as counter:
        features = TASK.encode(model, batch)
        expanded = TASK.expand(batch, k)
        loss = TASK.loss(TASK.logits(model, features, expanded, k), expanded)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("trained", TRAINED, ids=lambda names: "+".join(sorted(names)))
@pytest.mark.parametrize("name", CASES)
def test_flops_are_within_two_per_cent_of_torchs_counter(name: str, trained: set[str]) -> None:
    config = tiny_model_config(**CASES[name])
    cost = ModelCost(config, 10, len(WORDS))
    counts = {"pool": (1, 36), "query": (1, 16), "pool_after": (1, 36), "mlp": (36,)}[config.projector]
    for k in counts:
        forward, both = counted(config, k, trained, checkpointed=False)
        names = frozenset(trained)
        inference = cost.tower_flops(False) + cost.language_flops(k, names, backward=False)
        assert ROWS * inference == pytest.approx(forward, rel=0.02)
        training = cost.tower_flops("tower" in trained) + cost.language_flops(k, names)
        assert ROWS * training == pytest.approx(both, rel=0.02)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["whole", "lora"])
def test_recomputed_activations_are_counted(lora: LoraConfig | None) -> None:
    config = tiny_model_config(language=QWEN2, lora=lora)
    trained = frozenset({"tower", "projector", "language"})
    _, both = counted(config, 25, set(trained), checkpointed=True)
    cost = ModelCost(config, 10, len(WORDS), activation_checkpointing=True)
    assert ROWS * (cost.tower_flops(True) + cost.language_flops(25, trained)) == pytest.approx(both, rel=0.02)


DISTILLED = {
    "no pass but the teacher's own": {"mix": "one"},
    "teacher and other examples": {"mix": "stratified", "weights": (1, 1, 2), "stratum": 4},
    "two that share a teacher": {"mix": "smallest"},
    "a teacher that runs anyway": {"mix": "all"},
    "a teacher in the middle": {"mix": "all", "distil": {"teacher": 16}},
}


@pytest.mark.parametrize("law", DISTILLED.values(), ids=DISTILLED)
def test_a_distilled_step_executes_what_it_is_priced_at(law: dict[str, Any]) -> None:
    schedule = ScheduleConfig.model_validate({"counts": (4, 16, 36), "weights": (1, 1, 1), "distil": {}, **law})
    config = tiny_run().model_copy(update={"schedule": schedule, "global_batch": ROWS, "micro_batch": 4})
    drawn = (TokenSchedule(schedule).draw(0, step, ROWS, 100) for step in range(100))
    plan = next(plan for plan in drawn if 16 in plan.counts)
    model = build_model(config.model, ids=TASK.ids).train()
    module = StepModule(cast(Any, TASK), model, None, schedule.distil)
    batch = tiny_batch(ROWS)
    with FlopCounterMode(display=False, custom_mapping=CPU_KERNELS) as counter:
        for first in range(0, ROWS, config.rows):
            micro = select(batch, range(first, first + config.rows))
            module(micro, works(plan, first, config.rows, masked=False), True)[0].backward()
    priced = step_cost(config, ModelCost(config.model, 10, len(WORDS)), StageConfig(name="all", share=1), plan)
    assert priced.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_warm_up_is_tower_and_head_forward_and_backward() -> None:
    cost = ModelCost(tiny_model_config(), 10, len(WORDS), warmup_head_flops=1000.0)
    assert cost.warmup_flops() == cost.tower_flops(trained=True) + 3000
    assert cost.num_patches == 36


def test_cost_rises_with_the_count_and_refuses_what_the_model_refuses() -> None:
    cost = ModelCost(tiny_model_config(), 10, len(WORDS))
    trained = frozenset({"language"})
    costs = [cost.language_flops(k, trained) for k in (1, 4, 9, 16, 25, 36)]
    assert costs == sorted(costs)
    with pytest.raises(ValueError, match="5 visual tokens are not admissible"):
        cost.language_flops(5, trained)


def test_sizes_that_cannot_be_known_are_refused() -> None:
    with pytest.raises(ValueError, match="give a local folder"):
        ModelCost(tiny_model_config(vision=TowerConfig(source="google/siglip-so400m-patch14-384")), 10, 35)
    with pytest.raises(ValueError, match="model type 'gpt2' is not known; known: llama"):
        ModelCost(tiny_model_config(language=LanguageConfig(kind="gpt2")), 10, 35)


@pytest.mark.parametrize("kind", [*shapes.TOWERS, *shapes.LANGUAGES])
def test_the_sizes_filled_in_are_those_transformers_fills_in(kind: str) -> None:
    stated = AutoConfig.for_model(kind)
    for name, value in {**shapes.TOWERS, **shapes.LANGUAGES}[kind].items():
        assert getattr(stated, name) == value, name


def test_a_local_folder_tells_its_sizes(tmp_path: Path) -> None:
    model = build_model(tiny_model_config(vision=SIGLIP, language=QWEN2), ids=TASK.ids)
    model.save_pretrained(tmp_path)
    whole = ModelCost(ModelConfig(init_from=str(tmp_path)), 10, len(WORDS))
    direct = ModelCost(tiny_model_config(vision=SIGLIP, language=QWEN2), 10, len(WORDS))
    assert whole.num_parameters == direct.num_parameters
    assert whole.tower_flops(True) == direct.tower_flops(True)


def test_a_hub_id_in_the_cache_tells_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hub" / "models--someone--model"
    build_model(tiny_model_config(language=QWEN2), ids=TASK.ids).save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    cached = ModelCost(ModelConfig(init_from="someone/model"), 10, len(WORDS))
    assert cached.num_parameters == ModelCost(tiny_model_config(language=QWEN2), 10, len(WORDS)).num_parameters


def test_adapters_are_counted_apart_from_what_they_sit_on() -> None:
    config = tiny_model_config(lora=LoraConfig(rank=2))
    parts = TASK.parts(build_model(config, ids=TASK.ids))
    found = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert ModelCost(config, 10, len(WORDS)).num_parameters == found


def test_the_stems_convolutions_and_parameters_are_counted() -> None:
    model = build_model(tiny_model_config(vision=STEM, language=LLAMA), ids=TASK.ids)
    tower = sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    assert ModelCost(tiny_model_config(), 10, len(WORDS)).num_parameters["tower"] == tower


def test_cost_and_paper_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; import tokendial_workloads.vlm.cost, tokendial_workloads.vlm.paper;"
        "print([name for name in ('torch', 'transformers', 'ray', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
