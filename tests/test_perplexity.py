from __future__ import annotations

import math

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

from anchored.errors import DataError
from anchored.models.perplexity import ReferenceModel, TextLoss, pooled_perplexity
from anchored.tokenizer import AnchoredTokenizer

TEXTS = ["a fox", "The king saw the sea, and the sea saw the king.", "x", "one two three four"]
PROMPTS = ["Tell a story:", "", "<|user|>", "Count."]


@pytest.fixture(scope="module")
def reference() -> ReferenceModel:
    torch.manual_seed(0)
    tokenizer = AnchoredTokenizer.train(TEXTS + PROMPTS, vocab_size=300)
    config = Olmo2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return ReferenceModel("tiny", Olmo2ForCausalLM(config), tokenizer)


def brute_force(reference: ReferenceModel, text: str, prompt: str) -> TextLoss:
    context = [reference.tokenizer.control.bos, *reference.tokenizer.encode(prompt)]
    target = reference.tokenizer.encode(text)
    nats = 0.0
    for i, token in enumerate(target):
        with torch.no_grad():
            logits = reference.model(input_ids=torch.tensor([context + target[:i]])).logits
        nats -= float(torch.log_softmax(logits[0, -1].double(), -1)[token])
    return TextLoss(nats, len(target))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batched_losses_equal_one_token_at_a_time(
    reference: ReferenceModel, batch_size: int
) -> None:
    found = reference.losses(TEXTS, PROMPTS, batch_size)
    for loss, text, prompt in zip(found, TEXTS, PROMPTS, strict=True):
        expected = brute_force(reference, text, prompt)
        assert loss.tokens == expected.tokens
        assert loss.nats == pytest.approx(expected.nats, rel=1e-5)


def test_pooled_perplexity_weighs_texts_by_their_tokens() -> None:
    losses = [TextLoss(3.0, 1), TextLoss(1.0, 9)]
    assert losses[1].perplexity == pytest.approx(math.exp(1 / 9))
    assert pooled_perplexity(losses) == pytest.approx(math.exp(0.4))


def test_bad_input_is_refused(reference: ReferenceModel) -> None:
    with pytest.raises(DataError, match="text 1 is empty"):
        reference.losses(["a", ""], ["", ""])
    with pytest.raises(DataError, match="2 texts but 1 prompts"):
        reference.losses(["a", "b"], [""])
    with pytest.raises(DataError, match=r"text 0 and its prompt have \d+ tokens; tiny reads 64"):
        reference.losses(["qz" * 100], [""])
    with pytest.raises(DataError, match="no texts"):
        pooled_perplexity([])
