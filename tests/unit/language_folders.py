"""Tiny folders in the Hugging Face layout: language models with tokenizers, a tower, a LLaVA; captioned pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

PADDED_VOCABULARY = 320
_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
_TOWER: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def qwen2(folder: Path) -> Path:
    """Tied, its vocabulary padded past the tokenizer's; neither a beginning token nor the image placeholder."""
    tokenizer = _bpe(["<|endoftext|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"
    return _save(Qwen2Config(vocab_size=PADDED_VOCABULARY, tie_word_embeddings=True, **_SIZES), tokenizer, folder)


def llama(folder: Path) -> Path:
    """No row to spare for the placeholder, no padding token, and a beginning token written before every text."""
    tokenizer = _bpe(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    return _save(LlamaConfig(vocab_size=len(tokenizer), **_SIZES), tokenizer, folder)


def siglip(folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        SiglipVisionModel(SiglipVisionConfig(**_TOWER)).save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    """A whole model whose tokenizer has a placeholder of its own."""
    tokenizer = _bpe(["<s>", "</s>", "<pad>", "<image>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**_TOWER, vision_use_head=False),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_SIZES),
        image_token_index=3,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pictures(folder: Path, number: int = 60) -> Path:
    """Random pictures captioned `thing number N`."""
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = ["file_name,text"]
    for index in range(number):
        Image.fromarray(random.integers(0, 256, (48, 48, 3), np.uint8)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,thing number {index}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def _save(config: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _bpe(specials: list[str], **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE as Qwen and Llama 3 have it: no space is put before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["thing number one", "another thing"], trainer)
    if "bos_token" in named:
        first = named["bos_token"]
        ids = [(first, tokenizer.token_to_id(first))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
