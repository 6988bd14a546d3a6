"""The model card of an exported folder, written from the data given."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Of a model that was trained on a folder of its owner's instead of the workload's embedded data.
OWN_DATA = {"licence": "That of its owner's data, which it was trained on.", "attribution": ""}


@dataclass(frozen=True)
class Card:
    """What a card tells; `curve` and `cost_flops` are by token count, `digests` by split; `question` is an example."""

    title: str
    licence: str = "unknown"
    attribution: str = ""
    metric: str = "quality"
    projector: str = "pool"
    trained_counts: tuple[int, ...] = ()
    admissible_counts: tuple[int, ...] = ()
    curve: Mapping[int, float] = field(default_factory=dict)
    cost_flops: Mapping[int, float] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    question: str = ""


_SNIPPET = """\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".", trust_remote_code=True)
processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)
messages = [{"role": "user", "content": [{"type": "image"}QUESTION]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=Image.open("image.png"), text=prompt, visual_tokens=COUNT, add_special_tokens=False)
ids = model.generate(**inputs, max_new_tokens=16)
print(processor.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""


def card_text(card: Card) -> str:
    """Markdown of the card."""
    count = (card.trained_counts or card.admissible_counts or (16,))[-1]
    sections = [
        f"---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags: [tokendial, {card.projector}]\n---",
        f"# {card.title}",
        f"A vision-language model whose number of visual tokens per image is a dial (`{card.projector}` projector). "
        f"Trained at {_counts(card.trained_counts)}; it serves {_counts(card.admissible_counts)}.",
        _SNIPPET.replace("COUNT", str(count)).replace("QUESTION", _asked(card.question)),
    ]
    if card.curve or card.cost_flops:
        sections.append("## Quality and cost by token count\n\n" + _table(card))
    if card.digests:
        rows = "\n".join(f"- {split}: `{digest}`" for split, digest in card.digests.items())
        sections.append(f"## Data\n\nSHA-256 of what each split is made from:\n\n{rows}")
    sections.append(f"## Licence\n\n{card.licence}" + (f"\n\n{card.attribution}" if card.attribution else ""))
    if card.commit:
        sections.append(f"Trained from commit `{card.commit}`.")
    return "\n\n".join(sections) + "\n"


def _asked(question: str) -> str:
    """The question as a further part of the message; a workload may need none."""
    return f', {{"type": "text", "text": "{question}"}}' if question else ""


def _table(card: Card) -> str:
    rows = [f"| tokens | {card.metric} | FLOPs |", "|---|---|---|"]
    for k in sorted({*card.curve, *card.cost_flops}):
        quality = f"{card.curve[k]:.3f}" if k in card.curve else ""
        cost = f"{card.cost_flops[k]:.3g}" if k in card.cost_flops else ""
        rows.append(f"| {k} | {quality} | {cost} |")
    return "\n".join(rows)


def _counts(counts: tuple[int, ...]) -> str:
    if len(counts) > 16:
        return f"{len(counts)} counts from {counts[0]} to {counts[-1]}"
    return ", ".join(map(str, counts)) or "no recorded counts"
