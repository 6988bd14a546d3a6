"""Greedy decoding for evaluation: encode once, keep a KV cache, rows of different lengths in one batch.

Shapes: B rows, N patches, C tower width, P prompt tokens, k visual tokens, T new tokens.
"""

from collections.abc import Collection

import torch
from torch import Tensor
from transformers import DynamicCache

from .model import TokendialForConditionalGeneration
from .text import expand_placeholders


@torch.no_grad()
def greedy(
    model: TokendialForConditionalGeneration,
    features_BNC: Tensor,
    input_ids_BP: Tensor,
    attention_mask_BP: Tensor,
    k: int,
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_token_id: int = 0,
) -> Tensor:
    """New token ids [B, T], T ≤ max_new_tokens; after its first stop id a row holds `pad_token_id`.

    Prompts are padded on the right and hold one image placeholder each. A row gets the ids that `generate` gives it
    alone. ValueError where k is not admissible.
    """
    batch = {"input_ids": input_ids_BP, "attention_mask": attention_mask_BP}
    batch = expand_placeholders(batch, k, model.config.image_token_id)
    mask_BM = batch["attention_mask"]
    length_B1 = mask_BM.sum(1, keepdim=True)
    # Prompts of one length need no mask, and attention without one is quicker.
    padded = not bool(mask_BM.all())
    cache = DynamicCache(config=model.config.text_config)
    hidden_BMD = model.model(
        input_ids=batch["input_ids"],
        image_features=features_BNC,
        num_visual_tokens=k,
        attention_mask=mask_BM if padded else None,
        position_ids=mask_positions(mask_BM),
        cache=cache,
        use_cache=True,
    ).last_hidden_state
    hidden_B1D = hidden_BMD.take_along_dim(length_B1[..., None] - 1, dim=1)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=mask_BM.device)
    suppressed = torch.tensor([model.config.image_token_id], device=mask_BM.device)
    done_B1 = torch.zeros_like(length_B1, dtype=torch.bool)
    new_ids: list[Tensor] = []
    for step in range(max_new_tokens):
        logits_B1V = model.lm_head(hidden_B1D).index_fill(-1, suppressed, -torch.inf)
        next_B1 = logits_B1V.argmax(-1).masked_fill(done_B1, pad_token_id)
        new_ids.append(next_B1)
        done_B1 = done_B1 | torch.isin(next_B1, stops)
        if step + 1 == max_new_tokens or bool(done_B1.all()):
            break
        mask_BM = torch.cat([mask_BM, torch.ones_like(mask_BM[:, :1])], dim=1)
        hidden_B1D = model.model(
            input_ids=next_B1,
            attention_mask=mask_BM if padded else None,
            position_ids=length_B1 + step,
            cache=cache,
            use_cache=True,
        ).last_hidden_state
    return torch.cat(new_ids, dim=1)


def mask_positions(attention_mask_BM: Tensor) -> Tensor:
    """Position ids that count attended tokens only, so that masked ones leave no gap."""
    return (attention_mask_BM.long().cumsum(1) - 1).clamp_min(0)
