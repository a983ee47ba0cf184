"""Attention within the documents of packed rows, one after another, without a mask.

The stock implementation masks whole rows: of T x T scores, only those inside documents count, and
on a CPU a mask also stops the kernel from skipping the future. Here the stock function runs on each
document alone, so that the time grows with the sum of squared document lengths. Flash attention
does the same in one kernel, but `transformers` passes documents to it only in a batch of one row.

Shapes: B rows, T tokens in a row, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.generic import is_flash_attention_requested

DOCUMENT_ATTENTION = "anchored_documents"
_COARSE = 0.3  # of the logits' spread: more than rounding in half precision, less than a leak
_SHORT = 256  # tokens in a document


def attend_within_documents(model: PreTrainedModel) -> None:
    """Make `model` attend document by document, if possible.

    A model stays as it is if it is configured for another implementation than SDPA, if one of its
    layers is not full causal attention, or if it does not pass `position_ids` to its attention.
    """
    config: Any = model.config
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    full = layers == {"full_attention"} and not getattr(config, "sliding_window", None)
    if full and config._attn_implementation == "sdpa":
        model.set_attn_implementation(DOCUMENT_ATTENTION)
        if not keeps_documents_apart(model):
            model.set_attn_implementation("sdpa")


@torch.no_grad()
def keeps_documents_apart(model: PreTrainedModel) -> bool:
    """Return True if a document's logits do not depend on the documents before and after it.

    No configuration says this, so the model is run on a few tokens. At the same position, the
    logits must agree up to rounding: experts share their products with other tokens, the rest is
    exact. The result is also True if the model cannot be run, because it has no weights yet, its
    weights are not finite, or its kernels belong to another device.
    """
    flash, device = is_flash_attention_requested(model.config), model.device.type
    if any(weight.is_meta for weight in model.parameters()) or (flash and device == "cpu"):
        return True
    exact = device == "cpu" and model.dtype is torch.float32
    entries: int = model.config.vocab_size
    first, other, last = torch.arange(12, device=model.device).view(3, 4) % entries
    training = model.training
    model.eval()
    try:
        with torch.autocast(device, torch.bfloat16, enabled=flash):
            behind, behind_other = (_logits(model, x, last)[4:] for x in (first, other))
            in_front = _logits(model, last, first)[:4]
    finally:
        model.train(training)
    if not behind.isfinite().all():
        return True
    spread = behind.std()
    same = (behind - behind_other).abs().max() <= spread * (1e-5 if exact else _COARSE)
    return bool(same and (behind - in_front).abs().max() <= spread * _COARSE)


def _logits(model: Any, *documents: torch.Tensor) -> torch.Tensor:
    """Return the logits (T, V) of a row that consists of `documents`."""
    positions = torch.cat([torch.arange(len(ids), device=ids.device) for ids in documents])
    row = torch.cat(documents)[None]
    return model(input_ids=row, position_ids=positions[None], use_cache=False).logits[0].float()


def takes_flat_rows(model: PreTrainedModel) -> bool:
    """Return True if a batch costs no more with all its rows in one (`DataCollator.flat`).

    Under flash attention this form is required: with two or more rows, the documents in a row would
    see each other.
    """
    config: Any = model.config
    by_document = config._attn_implementation == DOCUMENT_ATTENTION
    return by_document or is_flash_attention_requested(config)


@torch.compiler.disable
def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention (B, T, H, D) of `query`, `key`, `value` (B, H, T, D) by document.

    A document starts wherever `position_ids` (B, T) is 0. With a mask, or with one document per
    row, this is the stock function. It is not compiled, because each list of lengths would need a
    new compilation.
    """
    lengths = None if attention_mask is not None else _lengths(position_ids)
    if lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    return attention_by_lengths(module, query, key, value, lengths, **settings)


def attention_by_lengths(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Compute `document_attention` from the `lengths` of all documents, row after row."""
    if _is_faster_in_float32(query, len(lengths)):
        with torch.autocast("cpu", enabled=False):
            output, _ = attention_by_lengths(
                module, query.float(), key.float(), value.float(), lengths, **settings
            )
        return output.to(query.dtype), None
    # Split instead of sliced: the gradient of a slice is as long as all documents together.
    parts = (_flat(x).split(lengths, dim=2) for x in (query, key, value))
    outputs = [
        sdpa_attention_forward(module, q, k, v, None, **settings)[0]
        for q, k, v in zip(*parts, strict=True)
    ]
    rows, width = query.shape[0], query.shape[2]
    return torch.cat(outputs, dim=1).view(rows, width, *outputs[0].shape[2:]), None


def _is_faster_in_float32(query: torch.Tensor, documents: int) -> bool:
    """Return True for short documents in bfloat16 on a CPU, whose kernel has a slow backward."""
    if query.device.type != "cpu":
        return False
    in_half = torch.is_autocast_enabled("cpu") or query.dtype is torch.bfloat16
    return in_half and query.shape[0] * query.shape[2] < _SHORT * documents


def _lengths(position_ids: torch.Tensor | None) -> list[int] | None:
    """Return the lengths of all documents, row after row; None if each row has only one."""
    if position_ids is None:
        return None
    starts = (position_ids == 0).flatten().nonzero().flatten()  # each row starts with a document
    if len(starts) <= len(position_ids):
        return None
    return starts.diff(append=starts.new_tensor([position_ids.numel()])).tolist()


def _flat(x: torch.Tensor) -> torch.Tensor:
    """Join rows (B, H, T, D) into one (1, H, B * T, D)."""
    return x.transpose(1, 2).flatten(0, 1).transpose(0, 1).unsqueeze(0)


def _mask(*arguments: Any, **settings: Any) -> torch.Tensor | None:
    """Return the stock mask for batches that have a mask of their own, else None."""
    if settings.get("attention_mask") is None:
        return None
    return sdpa_mask(*arguments, **settings)


AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
AttentionMaskInterface.register(DOCUMENT_ATTENTION, _mask)
