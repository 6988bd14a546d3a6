"""Write a model as a Hugging Face folder whose code travels with it, and read such a folder through our own classes."""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from tokendial_kernels.pool import reference as pool_module
from tokendial_kernels.projector import reference as projector_module
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .adapters import merged
from .card import Card, card_text
from .model import TokendialForConditionalGeneration
from .processor import CHAT_TEMPLATE, TokendialImageProcessor, TokendialProcessor

CODE = ("configuration", "counts", "letterbox", "positions", "towers", "reducers", "projectors", "model", "processor")
_OPS = '''"""The tensor ops the model runs on, in plain PyTorch."""

from .pool_reference import pool_reference as pool
from .projector_reference import projector_reference as projector

__all__ = ["pool", "projector"]
'''
# One entry file for every class: transformers keeps local code by a digest of the entry file and what it imports, so
# two entry files would bring two copies of each configuration class, which would not know each other's models.
_ENTRY = '''"""Everything that loads from this folder."""

from .configuration import StemConfig, TokendialConfig
from .model import TokendialForConditionalGeneration, TokendialModel
from .processor import TokendialImageProcessor, TokendialProcessor
from .towers import StemTower

__all__ = [
    "StemConfig",
    "StemTower",
    "TokendialConfig",
    "TokendialForConditionalGeneration",
    "TokendialImageProcessor",
    "TokendialModel",
    "TokendialProcessor",
]
'''
_MODEL_MAP = {
    "AutoConfig": "entry.TokendialConfig",
    "AutoModel": "entry.TokendialModel",
    "AutoModelForImageTextToText": "entry.TokendialForConditionalGeneration",
}
_PROCESSOR_MAP = {"AutoProcessor": "entry.TokendialProcessor"}
_IMAGE_MAP = {"AutoImageProcessor": "entry.TokendialImageProcessor"}


def build_processor(
    model: TokendialForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
    image_token: str = "<image>",
) -> TokendialProcessor:
    """The processor that fits a model; its default count is the largest trained one."""
    config: Any = model.config
    patch = config.vision_config.patch_size
    height, width = (side * (patch if isinstance(patch, int) else patch[0]) for side in config.grid)
    template = tokenizer.chat_template
    return TokendialProcessor(
        TokendialImageProcessor(size={"height": height, "width": width}, image_mean=list(mean), image_std=list(std)),
        tokenizer,
        chat_template=template if isinstance(template, str) else CHAT_TEMPLATE,
        image_token=image_token,
        projector=config.projector,
        grid=list(config.grid),
        max_queries=config.max_queries,
        visual_tokens=(tuple(config.counts) or config.admissible_counts)[-1],
    )


def export(
    model: TokendialForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    card: Card | None = None,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
    image_token: str = "<image>",
) -> None:
    """Write weights (safetensors), processor, code and card; adapters are folded in.

    The folder loads with transformers and torch alone, by `AutoModelForImageTextToText` and `AutoProcessor` with
    `trust_remote_code=True`.
    """
    target = Path(folder)
    plain = merged(model)
    plain.config.auto_map = dict(_MODEL_MAP)
    plain.config.architectures = [type(plain).__name__]
    plain.save_pretrained(target)
    _write_processor(build_processor(plain, tokenizer, mean, std, image_token), target)
    _write_code(target)
    config: Any = plain.config
    told = card or Card("tokendial model", projector=config.projector, trained_counts=tuple(config.counts))
    (target / "README.md").write_text(card_text(told), encoding="utf-8")


def load(folder: str | Path) -> TokendialForConditionalGeneration:
    """An exported model in evaluation mode, through our own classes, from safetensors only, never by remote code."""
    model = TokendialForConditionalGeneration.from_pretrained(
        str(folder), use_safetensors=True, dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def load_processor(folder: str | Path) -> TokendialProcessor:
    """An exported processor through our own classes, never by remote code."""
    fields = json.loads((Path(folder) / "processor_config.json").read_text(encoding="utf-8"))
    image = {name: value for name, value in fields.pop("image_processor").items() if name not in _NOT_ARGUMENTS}
    arguments = {name: value for name, value in fields.items() if name not in _NOT_ARGUMENTS}
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    template = (Path(folder) / "chat_template.jinja").read_text(encoding="utf-8")
    return TokendialProcessor(TokendialImageProcessor(**image), tokenizer, chat_template=template, **arguments)


_NOT_ARGUMENTS = ("auto_map", "processor_class", "image_processor_type", "_valid_kwargs_names")


def _write_processor(processor: TokendialProcessor, target: Path) -> None:
    processor.save_pretrained(target)
    path = target / "processor_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["auto_map"] = dict(_PROCESSOR_MAP)
    fields["image_processor"]["auto_map"] = dict(_IMAGE_MAP)
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_code(target: Path) -> None:
    here = Path(__file__).parent
    for name in CODE:
        (target / f"{name}.py").write_text((here / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    (target / "ops.py").write_text(_OPS, encoding="utf-8")
    (target / "entry.py").write_text(_ENTRY, encoding="utf-8")
    for name, module in (("pool_reference", pool_module), ("projector_reference", projector_module)):
        (target / f"{name}.py").write_text(inspect.getsource(module), encoding="utf-8")
