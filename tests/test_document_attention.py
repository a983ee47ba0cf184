"""Documents of packed rows are attended to one by one, with the results of the stock mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from anchored.train.attention import DOCUMENT_ATTENTION, attend_within_documents

VOCABULARY = 50
ROWS = [[5, 1, 7], [13], [6, 7]]  # lengths of the documents in each row


def model(**fields: Any) -> PreTrainedModel:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{"model_type": "olmo2", **sizes, **fields})
    return AutoModelForCausalLM.from_config(config)


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    positions = [torch.cat([torch.arange(n) for n in lengths]) for lengths in ROWS]
    ids = torch.randint(3, VOCABULARY, (len(ROWS), sum(ROWS[0])))
    return {"input_ids": ids, "position_ids": torch.stack(positions)}


def logits_and_gradients(net: Any, rows: dict[str, torch.Tensor]) -> Any:
    net.zero_grad()
    logits = net(**rows, use_cache=False).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_logits_and_gradients_are_those_of_the_stock_mask(key_value_heads: int):
    net = model(num_key_value_heads=key_value_heads)
    stock = logits_and_gradients(net, batch())
    assert attend_within_documents(net)
    assert_close(logits_and_gradients(net, batch()), stock, atol=1e-5, rtol=0)


def test_a_document_in_a_row_has_the_logits_that_it_has_alone():
    net: Any = model().eval()
    rows = batch()
    alone = [
        net(input_ids=ids[None], use_cache=False).logits[0]
        for row, lengths in zip(rows["input_ids"], ROWS, strict=True)
        for ids in row.split(lengths)
    ]
    attend_within_documents(net)
    together = net(**rows, use_cache=False).logits.flatten(0, 1)
    assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_no_mask_of_whole_rows_is_made(monkeypatch: pytest.MonkeyPatch):
    net: Any = model()
    attend_within_documents(net)
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def seen(*tensors: torch.Tensor, attn_mask: torch.Tensor | None = None, **settings: Any):
        masks.append(attn_mask)
        return attend(*tensors, attn_mask=attn_mask, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    net(**batch(), use_cache=False)
    assert masks == [None] * net.config.num_hidden_layers * sum(map(len, ROWS))


def test_a_batch_with_a_mask_of_its_own_is_attended_to_as_before():
    net: Any = model().eval()
    padded = {"input_ids": batch()["input_ids"], "attention_mask": torch.ones(3, 13).long()}
    padded["attention_mask"][1, :4] = 0
    before = net(**padded, use_cache=False).logits
    attend_within_documents(net)
    assert_close(net(**padded, use_cache=False).logits, before, atol=0, rtol=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "eager"},
        {"model_type": "mistral", "sliding_window": 4},
        {"model_type": "olmo3", "layer_types": ["sliding_attention", "full_attention"]},
    ],
    ids=["eager", "sliding-window", "layers-of-two-types"],
)
def test_a_model_that_attends_otherwise_is_left_as_it_is(fields: dict[str, Any]):
    net = model(**fields)
    before = net.config._attn_implementation
    assert not attend_within_documents(net)
    assert net.config._attn_implementation == before


def test_a_saved_model_does_not_know_of_it(tmp_path: Path):
    net = model()
    attend_within_documents(net)
    net.save_pretrained(tmp_path)
    assert DOCUMENT_ATTENTION not in (tmp_path / "config.json").read_text(encoding="utf-8")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"
