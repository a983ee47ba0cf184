"""Attention within the documents of packed rows, one after another, with no mask.

The stock way masks whole rows: of T x T scores only those inside documents count, and on a CPU a
mask also keeps the kernel from leaving out the future. Here each document is attended to alone, by
the stock function, so that time goes with the sum of squared document lengths. Flash attention does
the same in one kernel, but `transformers` tells it of documents only in a batch of one row.

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
_SHORT = 256  # tokens of a document


def attend_within_documents(model: PreTrainedModel) -> None:
    """Sets `model` to attend document by document, where that is possible.

    Left as they are: models told to attend otherwise than by SDPA, those with a layer that is no
    full causal attention, and those that do not tell their attention of `position_ids`.
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
    """Does a document have the same logits behind any other, and in front of one.

    No configuration says it, so the model is asked for a few tokens. In one place it has to be the
    same but for rounding: experts share their products with other tokens, the rest is exact. True
    where it cannot be asked: no weights yet, weights that are no numbers, or kernels of a device
    that it does not lie on.
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
    """Of each position (T, V) of a row of `documents`."""
    positions = torch.cat([torch.arange(len(ids), device=ids.device) for ids in documents])
    row = torch.cat(documents)[None]
    return model(input_ids=row, position_ids=positions[None], use_cache=False).logits[0].float()


def takes_flat_rows(model: PreTrainedModel) -> bool:
    """Is the work of a batch the same, or less, with all of its rows in one (`DataCollator.flat`).

    Under flash attention the rows have to come so: with two or more, documents in a row would see
    each other.
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
    """Causal attention (B, T, H, D) of `query`, `key`, `value` (B, H, T, D), within documents.

    A document starts wherever `position_ids` (B, T) is 0. With a mask, or rows of one document
    each, this is the stock function. Not compiled: it would be anew for each list of lengths.
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
    """The same where the `lengths` of all documents, row after row, are known."""
    if _is_faster_in_float32(query, len(lengths)):
        with torch.autocast("cpu", enabled=False):
            output, _ = attention_by_lengths(
                module, query.float(), key.float(), value.float(), lengths, **settings
            )
        return output.to(query.dtype), None
    # Split, not sliced: the gradient of a slice is as long as all documents together.
    parts = (_flat(x).split(lengths, dim=2) for x in (query, key, value))
    outputs = [
        sdpa_attention_forward(module, q, k, v, None, **settings)[0]
        for q, k, v in zip(*parts, strict=True)
    ]
    rows, width = query.shape[0], query.shape[2]
    return torch.cat(outputs, dim=1).view(rows, width, *outputs[0].shape[2:]), None


def _is_faster_in_float32(query: torch.Tensor, documents: int) -> bool:
    """The backward pass of a CPU's kernel is slow in bfloat16 where documents are short."""
    if query.device.type != "cpu":
        return False
    in_half = torch.is_autocast_enabled("cpu") or query.dtype is torch.bfloat16
    return in_half and query.shape[0] * query.shape[2] < _SHORT * documents


def _lengths(position_ids: torch.Tensor | None) -> list[int] | None:
    """Lengths of all documents, row after row; None if there is but one in each row."""
    if position_ids is None:
        return None
    starts = (position_ids == 0).flatten().nonzero().flatten()  # each row starts with a document
    if len(starts) <= len(position_ids):
        return None
    return starts.diff(append=starts.new_tensor([position_ids.numel()])).tolist()


def _flat(x: torch.Tensor) -> torch.Tensor:
    """Rows (B, H, T, D) as one (1, H, B * T, D)."""
    return x.transpose(1, 2).flatten(0, 1).transpose(0, 1).unsqueeze(0)


def _mask(*arguments: Any, **settings: Any) -> torch.Tensor | None:
    """The stock mask for batches that bring one of their own; none otherwise."""
    if settings.get("attention_mask") is None:
        return None
    return sdpa_mask(*arguments, **settings)


AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
AttentionMaskInterface.register(DOCUMENT_ATTENTION, _mask)
