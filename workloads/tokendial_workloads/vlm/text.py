"""One image placeholder per row becomes k: pure tensor functions over input ids, masks and labels.

Shapes: B rows, L text tokens (one of them the placeholder), k visual tokens, M = k + L - 1 expanded positions.
"""

from typing import Any

import torch
from torch import Tensor

IGNORED = -100


def image_slot(input_ids_BL: Tensor, attention_mask_BL: Tensor, image_token_id: int) -> Tensor:
    """Column of each row's placeholder [B]; ValueError unless every row has exactly one and is padded on the right."""
    is_image_BL = input_ids_BL == image_token_id
    if bool((is_image_BL.sum(1) != 1).any()):
        raise ValueError(f"each row needs exactly one image placeholder, got {is_image_BL.sum(1).tolist()}")
    if bool((attention_mask_BL[:, 1:] > attention_mask_BL[:, :-1]).any()):
        raise ValueError("rows must be padded on the right, got an attention mask that rises along a row")
    return is_image_BL.int().argmax(1)


def expand_placeholders(batch: dict[str, Any], k: int, image_token_id: int) -> dict[str, Any]:
    """The batch with k placeholders in each image slot, and `text_positions`: where its L columns went, [B, L].

    `input_ids`, `attention_mask` and, where present, `labels` grow from L to M columns; all else is passed on. The
    placeholder's column maps to the last visual token, which predicts the text that follows.
    """
    if k < 1:
        raise ValueError(f"an image needs at least 1 visual token, got {k}")
    input_ids_BL = batch["input_ids"]
    slot_B1 = image_slot(input_ids_BL, batch["attention_mask"], image_token_id)[:, None]
    column_M = torch.arange(input_ids_BL.shape[1] + k - 1, device=input_ids_BL.device)
    source_BM = torch.where(column_M < slot_B1, column_M, (column_M - (k - 1)).maximum(slot_B1))
    column_L = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device)
    grown = {
        name: batch[name].gather(1, source_BM) for name in ("input_ids", "attention_mask", "labels") if name in batch
    }
    return {**batch, **grown, "text_positions": column_L + (k - 1) * (column_L >= slot_B1)}


def text_labels(batch: dict[str, Any]) -> Tensor:
    """Labels at the L text columns [B, L], of an expanded batch or of one that was not expanded."""
    if "text_positions" in batch:
        return batch["labels"].gather(1, batch["text_positions"])
    return batch["labels"]


def prompts(batch: dict[str, Any], pad_token_id: int) -> dict[str, Any]:
    """What comes before each row's first answer token, padded on the right to the longest prompt."""
    answered_BL = batch["labels"] != IGNORED
    if not bool(answered_BL.any(1).all()):
        raise ValueError("every row needs at least one answer token (a label other than -100)")
    length_B1 = answered_BL.int().argmax(1, keepdim=True)
    columns_L = torch.arange(answered_BL.shape[1], device=answered_BL.device)
    kept_BL = (columns_L < length_B1)[:, : int(length_B1.max())]
    input_ids_BP = batch["input_ids"][:, : kept_BL.shape[1]]
    return {
        "input_ids": input_ids_BP.masked_fill(~kept_BL, pad_token_id),
        "attention_mask": kept_BL.to(batch["attention_mask"].dtype),
    }
