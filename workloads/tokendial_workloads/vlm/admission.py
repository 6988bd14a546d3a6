"""Whether a model can be built and run as a configuration asks, found out before torch is imported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokendial.contracts import ModelConfig, RunConfig
from tokendial.contracts.config import PROJECTOR_SETTINGS

from .counts import check_count
from .fields import check_fields
from .rotary import check_rope
from .shapes import TowerShape, language_shape, language_values, tower_shape, tower_values

# What the weights of a source are shaped for, or are read by.
_SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "image_size",
    "patch_size", "stem_width", "attention_bias", "mlp_bias",
)  # fmt: skip


def check_model(config: RunConfig[Any], vocab_size: int) -> None:
    """Raise ValueError where the model cannot be built, or cannot run the counts; `vocab_size` is the tokenizer's."""
    model = config.model
    _check_sources(model)
    _check_tower(model)
    _check_language(model, vocab_size)
    _check_source_sizes(model)
    tower = tower_shape(model)
    _check_projector(model, tower)
    if not -tower.num_layers - 1 <= model.feature_layer <= tower.num_layers:
        raise ValueError(
            f"model.feature_layer {model.feature_layer} is not a layer of a tower of {tower.num_layers}; "
            f"admissible: {-tower.num_layers - 1} to {tower.num_layers}"
        )
    check_counts(config)


def check_counts(config: RunConfig[Any]) -> None:
    """Raise ValueError where a scheduled or evaluated count is not admissible, or a mix needs prefixes."""
    model, grid = config.model, tower_shape(config.model).grid
    for field, counts in (("schedule.counts", config.schedule.counts), ("evaluation.counts", config.evaluation.counts)):
        for k in counts:
            try:
                check_count(model.projector, grid, model.max_queries, k)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from error
    if config.schedule.mix == "sample" and model.projector != "query":
        raise ValueError(
            f"schedule.mix 'sample' gives each example a prefix of its own, which projector {model.projector!r} lacks; "
            "choose model.projector=query, or mix one, all, smallest, sandwich or stratified"
        )


def check_folder(config: RunConfig[Any]) -> None:
    """Raise ValueError where `data.path` is not a folder of this machine."""
    path = config.data.path
    if path is None:
        return
    if "://" in path:
        raise ValueError(f"data.path {path!r} is a URI; workload {config.workload} reads local folders only")
    if not Path(path).is_dir():
        said = "is not a folder" if Path(path).exists() else "does not exist"
        raise ValueError(f"data.path {path!r} {said}; give a folder, or omit it for embedded data")


def _check_sources(model: ModelConfig) -> None:
    """Whatever can only be a path, not a hub id of the form `owner/name`, must be there."""
    sources = {
        "model.init_from": model.init_from,
        "model.vision.source": model.vision.source,
        "model.language.source": model.language.source,
        "model.language.tokenizer": model.language.tokenizer,
    }
    for field, source in sources.items():
        if source is None or Path(source).is_dir():
            continue
        if not source or source[0] in "/.~\\" or source.count("/") > 1 or source.endswith("/"):
            raise ValueError(f"{field} {source!r} does not exist; give a local folder or a hub id (owner/name)")


def _check_tower(model: ModelConfig) -> None:
    kind, values = tower_values(model)
    section = "model.vision.config"
    check_fields(section, kind, model.vision.config)
    _check_heads(section, values)
    if tower_shape(model).num_patches == 0:
        raise ValueError(
            f"{section}.image_size {values['image_size']} is less than one patch of {values['patch_size']} pixels"
        )
    if kind != "tokendial_stem":
        return
    if values["patch_size"] != 4 or values["image_size"] % 4:
        raise ValueError(
            f"{section}: a tokendial_stem patch is 4 pixels wide and image_size a multiple of it, got patch_size "
            f"{values['patch_size']} and image_size {values['image_size']}"
        )
    if values["hidden_size"] % 4:
        raise ValueError(f"{section}.hidden_size {values['hidden_size']} of a tokendial_stem must be a multiple of 4")


def _check_language(model: ModelConfig, vocab_size: int) -> None:
    kind, values = language_values(model)
    section = "model.language.config"
    check_fields(section, kind, model.language.config)
    if kind == "llama" or not values.get("head_dim"):
        _check_heads(section, values)
    shape = language_shape(model, vocab_size)
    if shape.num_heads % shape.num_kv_heads:
        raise ValueError(
            f"{section}.num_attention_heads {shape.num_heads} is not a multiple of num_key_value_heads "
            f"{shape.num_kv_heads}"
        )
    if shape.head_width % 2:
        raise ValueError(f"{section}: heads are {shape.head_width} wide; rotary positions need an even width")
    if "rope_parameters" in model.language.config:
        over_source = (model.language.source or model.init_from) is not None
        check_rope(section, model.language.config["rope_parameters"], shape.head_width, over_source)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = model.language.config.get(name)
        if value is not None and value >= shape.vocab_size:
            raise ValueError(f"{section}.{name} {value} is not an id of the {shape.vocab_size} in vocab_size")


def _check_source_sizes(model: ModelConfig) -> None:
    """A size changed over a source would leave a part of its weights random, or read them by other heads."""
    for section, values_of in (("vision", tower_values), ("language", language_values)):
        part = getattr(model, section)
        source = part.source or model.init_from
        if source is None:
            continue
        plain = model.model_copy(update={section: part.model_copy(update={"config": {}})})
        (kind, here), (_, there) = values_of(model), values_of(plain)
        for name in part.config:
            now, before = _explicit(here, name), _explicit(there, name)
            if not _fits(kind, name, now, before):
                raise ValueError(
                    f"model.{section}.config.{name} {now} does not fit the weights of {source}, made for {before}; "
                    "leave it as it is there"
                )


def _explicit(values: Mapping[str, Any], name: str) -> Any:
    """A field's value; where it is null or not there, what the model type takes for it."""
    heads = values["num_attention_heads"]
    meant = {"num_key_value_heads": heads, "head_dim": values["hidden_size"] // heads}
    return values.get(name) or meant.get(name, False)


def _fits(kind: str, name: str, now: Any, before: Any) -> bool:
    if name == "num_hidden_layers":
        # Its first layers are a model too.
        return now <= before
    if name == "vocab_size":
        return now >= before
    if name == "tie_word_embeddings":
        return before or not now
    # A stem computes its positions, for any number of patches.
    return name not in _SIZES or now == before or (kind == "tokendial_stem" and name == "image_size")


def _check_heads(section: str, values: Mapping[str, Any]) -> None:
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise ValueError(f"{section}.hidden_size {width} is not a multiple of num_attention_heads {heads}")


def _check_projector(model: ModelConfig, tower: TowerShape) -> None:
    for owner, names in PROJECTOR_SETTINGS.items():
        for name in names:
            value = getattr(model, name)
            if model.projector != owner and value != ModelConfig.model_fields[name].default:
                raise ValueError(
                    f"model.{name} {value} has no effect with projector {model.projector!r}; only {owner!r} has it"
                )
    if model.projector == "pool" and round(model.hidden_factor * tower.width) < 1:
        raise ValueError(
            f"model.hidden_factor {model.hidden_factor} leaves no hidden width: the tower is {tower.width} wide"
        )
    if model.projector == "query" and (tower.width % max(1, tower.width // 64) or tower.width % 4):
        raise ValueError(
            f"model.projector 'query' has a head for every 64 of the tower's width and positions in fours, which "
            f"hidden_size {tower.width} does not divide into"
        )
