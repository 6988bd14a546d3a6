"""A conversation as token ids: the chat template's own special tokens count, those inside people's text never do.

A conversation without such text gets the ids that the processor gives it. Safe to call from several threads.
"""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from tokendial.contracts.serving import Message
from tokenizers import Tokenizer

# Unicode noncharacters: never part of interchanged text, so they can mark where people's text begins and ends.
_BEGIN, _END = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{_BEGIN}(.*?){_END}", re.DOTALL)


class PromptWriter:
    """Writes conversations with one processor's chat template and tokenizer."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        tokenizer = processor.tokenizer
        self._tokenizer = _plain(tokenizer)
        self._literal = _plain(tokenizer)
        self._literal.encode_special_tokens = True
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        # An unknown word is no special token, though its id is listed as one.
        self._special = (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
        self._image_id = processor.image_token_id
        self._strips = False
        probe = f"{_BEGIN} a {_END}"
        self._strips = probe not in self._render([{"role": "user", "content": [{"type": "text", "text": " a "}]}])

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids with one placeholder an image; ValueError where the conversation cannot be written."""
        told = [{"role": message.role, "content": [_part(part) for part in message.parts]} for message in messages]
        text, spans = _unmarked(self._render(told))
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = list(encoding.ids)
        if any(
            start < end_of and end > start_of
            for index, (start, end) in zip(ids, encoding.offsets, strict=True)
            if index in self._special
            for start_of, end_of in spans
        ):
            ids = self._apart(text, spans)
        wanted = sum(isinstance(part, int) for message in messages for part in message.parts)
        if ids.count(self._image_id) != wanted:
            raise ValueError(f"the model's chat template writes {ids.count(self._image_id)} of {wanted} images")
        return ids

    def _render(self, told: list[dict[str, Any]]) -> str:
        marked = [{**turn, "content": [self._marked(part) for part in turn["content"]]} for turn in told]
        try:
            return self._processor.apply_chat_template(marked, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses this conversation: {error}") from error

    def _marked(self, part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "text":
            return part
        if _BEGIN in part["text"] or _END in part["text"]:
            raise ValueError("the text holds U+FDD0 or U+FDD1, which are not characters")
        text = part["text"].strip() if self._strips else part["text"]
        return {"type": "text", "text": f"{_BEGIN}{text}{_END}"}

    def _apart(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Encode people's text and the template's piece by piece, the former without its special tokens."""
        ids: list[int] = []
        at = 0
        for start, end in [*spans, (len(text), len(text))]:
            ids += self._tokenizer.encode(text[at:start], add_special_tokens=False).ids if start > at else []
            said = self._literal.encode(text[start:end], add_special_tokens=False).ids if end > start else []
            if found := self._special.intersection(said):
                names = ", ".join(repr(self._literal.id_to_token(index)) for index in sorted(found))
                raise ValueError(f"the text holds {names}, which this model cannot read as text")
            ids += said
            at = end
        return ids


def _plain(tokenizer: Any) -> Tokenizer:
    """A copy of a tokenizer's own pipeline that nobody else changes, without padding or truncation."""
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def _part(part: str | int) -> dict[str, Any]:
    return {"type": "image"} if isinstance(part, int) else {"type": "text", "text": part}


def _unmarked(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and where people's text lies in it; neighbouring pieces are one."""
    pieces = _MARKED.split(marked)
    text, spans = "", []
    for number, piece in enumerate(pieces):
        if number % 2 and piece:
            if spans and spans[-1][1] == len(text):
                spans[-1] = (spans[-1][0], len(text) + len(piece))
            else:
                spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, spans
