"""Documents of packed rows are attended to one by one, with the results of the stock mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    TrainingArguments,
    modeling_flash_attention_utils,
)

from anchored.errors import ConfigError
from anchored.step.attention import (
    DOCUMENT_ATTENTION,
    attend_within_documents,
    keeps_documents_apart,
    takes_flat_rows,
)
from anchored.step.collate import DataCollator
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.compose import compose

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
    attend_within_documents(net)
    assert takes_flat_rows(net)
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


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights in half"])
def test_short_documents_are_attended_to_in_float32_on_a_cpu_and_long_ones_in_half(
    monkeypatch: pytest.MonkeyPatch, autocast: bool
):
    net = model() if autocast else model().bfloat16()
    attend_within_documents(net)
    assert takes_flat_rows(net)
    attend, taken = torch.nn.functional.scaled_dot_product_attention, []

    def seen(query: torch.Tensor, *tensors: torch.Tensor, **settings: Any):
        output = attend(query, *tensors, **settings)
        taken.append((query.shape[2], output.dtype))
        return output

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    for lengths, dtype in (([100, 300], torch.float32), ([250, 270], torch.bfloat16)):
        taken.clear()
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            net(input_ids=positions % VOCABULARY, position_ids=positions, use_cache=False)
        assert taken == [(n, dtype) for n in lengths] * net.config.num_hidden_layers


def test_a_compiled_model_is_compiled_once_whatever_documents_the_batches_hold():
    net = model()
    attend_within_documents(net)
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(net, backend=counter)
    frames = []
    for n in range(2, 10):
        positions = torch.cat([torch.arange(n + k) for k in range(n)])[None]
        compiled(input_ids=positions, position_ids=positions, use_cache=False)
        frames.append(counter.frame_count)
    assert frames[1] > 0
    assert frames[-1] == frames[1]  # the second length is what makes the length free


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
    attend_within_documents(net)
    assert not takes_flat_rows(net)
    assert net.config._attn_implementation == before


@pytest.mark.parametrize("kind", ["gpt_bigcode", "persimmon"])
def test_a_model_that_does_not_tell_its_attention_where_documents_start_keeps_the_mask(kind: str):
    net: Any = model(model_type=kind, n_embd=32, n_layer=1, n_head=2).eval()
    rows = batch()
    before = net(**rows, use_cache=False).logits
    attend_within_documents(net)
    assert not takes_flat_rows(net)
    assert_close(net(**rows, use_cache=False).logits, before, atol=0, rtol=0)


LAYERS = {"layer_types": ["conv", "full_attention"]}
LEAKS = {
    "bloom": {"n_layer": 1, "n_head": 2}, "falcon": {"new_decoder_architecture": False},
    "mamba": {"state_size": 4}, "lfm2": LAYERS,
}  # fmt: skip


@pytest.mark.parametrize("kind", LEAKS)
def test_a_model_that_reads_documents_of_a_row_as_one_is_noticed_and_left_as_it_was(kind: str):
    net = model(model_type=kind, **LEAKS[kind])
    assert not keeps_documents_apart(net)
    assert net.training


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2},
        {"model_type": "mistral", "sliding_window": 4},
        {"model_type": "mixtral", "num_local_experts": 4},
    ],
    ids=["olmo2", "learnt-positions", "sliding-window", "experts"],
)
def test_one_that_keeps_them_apart_is_not(fields: dict[str, Any]):
    net = model(**fields)
    assert keeps_documents_apart(net)
    attend_within_documents(net)
    assert keeps_documents_apart(net)


def composed(kind: str, documents: list[int], out: Path) -> Any:
    net = model(model_type=kind, **LEAKS.get(kind, {}))
    ids = list(range(3, 3 + sum(documents)))
    row = {"input_ids": ids, "labels": ids, "kinds": [0] * len(ids), "seq_lengths": documents}
    arguments = TrainingArguments(output_dir=str(out), use_cpu=True, report_to=[])
    tokenizer = AnchoredTokenizer.train(["Mara sailed."], 270)
    return compose(net, Dataset.from_list([row]), tokenizer, arguments)


def test_it_is_refused_where_rows_hold_several_documents_and_only_there(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"bloom does not .* set data\.packing to false$"):
        composed("bloom", [4, 3], tmp_path)
    assert composed("bloom", [7], tmp_path)
    assert composed("olmo2", [4, 3], tmp_path)


def test_weights_that_are_no_numbers_are_not_taken_for_documents_that_run_together():
    net = model()
    with torch.no_grad():
        next(net.parameters())[:] = float("nan")
    assert keeps_documents_apart(net)


def test_a_saved_model_does_not_know_of_it(tmp_path: Path):
    net = model()
    attend_within_documents(net)
    net.save_pretrained(tmp_path)
    assert DOCUMENT_ATTENTION not in (tmp_path / "config.json").read_text(encoding="utf-8")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch):
    """Flash attention's two kernels, on a CPU: what `transformers` calls them with is its own."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def rows_of(q: Any, k: Any, v: Any, causal: bool = False, **_: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return attend(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)

    def varlen(
        q: Any, k: Any, v: Any, cu_seqlens_q: Any, causal: bool = False, **_: Any
    ) -> torch.Tensor:
        lengths = cu_seqlens_q.diff().tolist()
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat([rows_of(*(x[None] for x in part), causal)[0] for part in parts])

    module = modeling_flash_attention_utils
    kernels = (rows_of, varlen, None, None, None)
    monkeypatch.setattr(module, "_loaded_implementation", None)
    monkeypatch.setattr(module, "_lazy_imports", lambda *_, **__: kernels)


def test_flash_attention_gets_its_rows_flat_and_keeps_documents_apart(flash: None):
    net: Any = model()
    rows = [
        {
            "input_ids": ids.numpy(),
            "labels": ids.numpy(),
            "kinds": torch.full_like(ids, 4).numpy(),
            "seq_lengths": lengths,
        }
        for ids, lengths in zip(batch()["input_ids"], ROWS, strict=True)
    ]

    def results() -> Any:
        given = DataCollator(pad_id=0, flat=takes_flat_rows(net))(rows)
        fields = {name: given[name] for name in ("input_ids", "position_ids")}
        logits, gradients = logits_and_gradients(net, fields)
        return logits.flatten(0, 1), gradients

    stock = results()
    assert not takes_flat_rows(net)
    net.config._attn_implementation = "flash_attention_2"
    assert takes_flat_rows(net)
    assert_close(results(), stock, atol=1e-5, rtol=0)
