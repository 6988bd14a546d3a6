"""The task of the digits workload: warm the tower at naming the digit of each cell, grade one question at a time.

Shapes: B mosaics, N patches, C tower width, T questions asked.
"""

from typing import Any

import torch
from tokendial.contracts import Batch, Grade, RunConfig
from torch import Tensor, nn

from tokendial_workloads.digits.attribution import ATTRIBUTION, LICENCE
from tokendial_workloads.digits.data import text_tensors
from tokendial_workloads.digits.tokenizer import digits_tokenizer
from tokendial_workloads.digits.warmup import CellHead
from tokendial_workloads.vlm.build import vision_config
from tokendial_workloads.vlm.card import OWN_DATA
from tokendial_workloads.vlm.model import TokendialForConditionalGeneration
from tokendial_workloads.vlm.task import ImageTextTask


class DigitsTask(ImageTextTask):
    """Quality is the share of questions answered right; a mosaic is asked one question of each type."""

    def __init__(self, own_data: bool = False) -> None:
        terms = OWN_DATA if own_data else {"licence": LICENCE, "attribution": ATTRIBUTION}
        super().__init__(digits_tokenizer(), "accuracy", question="what is b3", **terms)

    def warmup_head(self, config: RunConfig[Any]) -> nn.Module:
        return CellHead(vision_config(config.model.vision, config.model.init_from).hidden_size)

    def warmup_loss(self, head: nn.Module, features: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """A cell is a target; its loss is the sum of the head's readings."""
        num_cells = batch["cells"].numel()
        return head(features, batch["cells"]) * num_cells, num_cells

    @torch.no_grad()
    def grade(self, model: nn.Module, features: Tensor, batch: Batch, k: int, max_new_tokens: int) -> list[Grade]:
        """One grade per question; no question sees another or its answer."""
        assert isinstance(model, TokendialForConditionalGeneration)
        asked = [
            (source, turn) for source, turns in zip(batch["source"], batch["turns"], strict=True) for turn in turns
        ]
        row_T = torch.tensor([row for row, turns in enumerate(batch["turns"]) for _ in turns], device=features.device)
        rows = text_tensors([[turn] for _, turn in asked], batch["input_ids"].shape[1], features.device)
        answers = self.answers(model, features[row_T], rows, k, max_new_tokens)
        return [
            Grade(
                float(answer == turn.answer), turn.group, source, answer, turn.answer, row=row, question=turn.question
            )
            for answer, row, (source, turn) in zip(answers, row_T.tolist(), asked, strict=True)
        ]
