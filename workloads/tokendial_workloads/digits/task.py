"""The task of the digits workload: warm the tower at naming the digit of each cell, grade one question at a time.

Shapes: B mosaics, Q questions of a mosaic, N = 12 x 12 patches, C tower width, 16 cells of 3 x 3 patches each.
"""

from typing import Any

import torch
import torch.nn.functional as F
from tokendial.contracts import Batch, Grade, RunConfig
from torch import Tensor, nn

from tokendial_workloads.digits.data import text_tensors
from tokendial_workloads.digits.mosaic import GRID
from tokendial_workloads.digits.tokenizer import digits_tokenizer
from tokendial_workloads.vlm.build import vision_config
from tokendial_workloads.vlm.model import TokendialForConditionalGeneration
from tokendial_workloads.vlm.task import ImageTextTask


class CellHead(nn.Module):
    """Names the digit of each cell from the mean of the features over it: [B, N, C] to logits [B, 16, 10]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, 10)

    def forward(self, features_BNC: Tensor) -> Tensor:
        side = int(features_BNC.shape[1] ** 0.5)
        map_BCHW = features_BNC.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return self.classify(F.adaptive_avg_pool2d(map_BCHW, GRID).flatten(2).transpose(1, 2))


class DigitsTask(ImageTextTask):
    """Quality is the share of questions answered right; a mosaic is asked one question of each type."""

    def __init__(self) -> None:
        super().__init__(digits_tokenizer(), metric="accuracy")

    def warmup_head(self, config: RunConfig[Any]) -> nn.Module:
        return CellHead(vision_config(config.model.vision).hidden_size)

    def warmup_loss(self, head: nn.Module, features: Tensor, batch: Batch) -> tuple[Tensor, int]:
        cells_T = batch["cells"].flatten()
        return F.cross_entropy(head(features).flatten(0, 1).float(), cells_T, reduction="sum"), cells_T.numel()

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
