"""The task of the captions workload: warm the tower at naming words of the caption, grade by token F1.

Shapes: B pictures, N patches, C tower width, V vocabulary, T caption tokens.
"""

import unicodedata
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from tokendial.contracts import Batch, Grade, RunConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokendial_workloads.captions.attribution import ATTRIBUTION, LICENCE
from tokendial_workloads.vlm.build import vision_config
from tokendial_workloads.vlm.card import OWN_DATA
from tokendial_workloads.vlm.task import ImageTextTask
from tokendial_workloads.vlm.text import IGNORED


class WordHead(nn.Module):
    """Which tokens a caption holds, from the mean feature: [B, N, C] to logits [B, V] (Joulin et al. 2016)."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, vocabulary)

    def forward(self, features_BNC: Tensor) -> Tensor:
        return self.classify(features_BNC.mean(1))


class CaptionsTask(ImageTextTask):
    """Quality is token F1 between the generated and the real caption; exact match is recorded beside it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, own_data: bool = False) -> None:
        terms = OWN_DATA if own_data else {"licence": LICENCE, "attribution": ATTRIBUTION}
        super().__init__(tokenizer, "token_f1", **terms)

    def warmup_head(self, config: RunConfig[Any]) -> nn.Module:
        width = vision_config(config.model.vision, config.model.init_from).hidden_size
        return WordHead(width, self.ids.vocab_size)

    def warmup_loss(self, head: nn.Module, features: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy of each caption token against one softmax per picture."""
        wanted_BL = batch["labels"] != IGNORED
        row_T = wanted_BL.nonzero()[:, 0]
        logits_TV = head(features)[row_T].float()
        return F.cross_entropy(logits_TV, batch["labels"][wanted_BL], reduction="sum"), len(row_T)

    @torch.no_grad()
    def grade(self, model: nn.Module, features: Tensor, batch: Batch, k: int, max_new_tokens: int) -> list[Grade]:
        answers = self.answers(model, features, batch, k, max_new_tokens)
        rows = zip(answers, batch["text"], batch["group"], batch["source"], strict=True)
        return [
            Grade(
                token_f1(answer, text),
                group,
                source,
                answer,
                text,
                {"exact_match": float(words(answer) == words(text))},
                row=row,
            )
            for row, (answer, text, group, source) in enumerate(rows)
        ]


def words(text: str) -> list[str]:
    """Runs of letters and digits with their marks (vowel signs, accents), composed and in lower case."""
    composed = unicodedata.normalize("NFC", text.lower())
    runs = "".join(part if unicodedata.category(part)[0] in "LNM" else " " for part in composed).split()
    return [run for run in runs if any(map(str.isalnum, run))]


def token_f1(answer: str, text: str) -> float:
    """SQuAD's F1 (Rajpurkar et al. 2016) over words, each counted as often as both have it: "red cat", "cat" → 2/3."""
    given, wanted = words(answer), words(text)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted)) if common else float(given == wanted)
