"""The word-level tokenizer of the digits workload and the conversation format that training and serving share."""

from functools import lru_cache

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokendial_workloads.digits.words import SPECIALS, WORDS

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{%- if message.content is string %} {{ message.content }}
{%- else %}{% for part in message.content %} {{ '<image>' if part.type == 'image' else part.text }}{% endfor %}
{%- endif %}
{%- if message.role == 'assistant' %} {{ eos_token }}{% endif %}
{%- endfor %}"""


@lru_cache(maxsize=1)
def digits_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the questions and answers; case and punctuation are dropped, other words become <unk>."""
    vocabulary = {word: index for index, word in enumerate((*SPECIALS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[?.,!]"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        chat_template=CHAT_TEMPLATE,
    )
