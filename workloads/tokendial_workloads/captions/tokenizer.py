"""The language model's own tokenizer, or a byte-level BPE trained on the names of the training emoji.

The latter writes any text; nothing becomes unknown.
"""

import hashlib
import os
import tempfile
from functools import lru_cache
from pathlib import Path

from tokendial.contracts import ModelConfig
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tokendial_workloads.captions.concepts import concept, split_of
from tokendial_workloads.captions.source import cache_folder, names
from tokendial_workloads.captions.vocabulary import SPECIALS, VOCABULARY
from tokendial_workloads.vlm.sources import source_tokenizer
from tokendial_workloads.vlm.vocabulary import tokenizer_folder

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}
{%- endif %}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}"""


def tokenizer_of(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer a configuration names or that lies beside its language model; else the workload's own.

    Whichever it is, a conversation is written as training writes it, not by the language model's chat template.
    """
    folder = tokenizer_folder(model)
    if folder is None:
        return captions_tokenizer()
    tokenizer = source_tokenizer(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@lru_cache(maxsize=1)
def captions_tokenizer() -> PreTrainedTokenizerFast:
    """The trained tokenizer, from the cache folder where it is there."""
    texts = training_names()
    recipe = "\n".join((str(VOCABULARY), *SPECIALS, *texts))
    file = cache_folder() / f"openmoji-bpe-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.json"
    if not file.exists():
        _keep(train_tokenizer(texts), file)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def training_names() -> list[str]:
    return [name for stem, name in names().items() if split_of(concept(stem)) == "train"]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _keep(tokenizer: Tokenizer, file: Path) -> None:
    """Write beside the place, then move there at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, written = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    os.close(handle)
    tokenizer.save(written)
    Path(written).replace(file)
