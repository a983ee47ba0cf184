"""Five families of checkpoints, tiny and random, with tokenizers of the kinds the real ones have.

The vocabularies are learnt in-process; normalisers, pre-tokenizers, special tokens, their flags and
the shape of the chat templates are those of the published models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

TEXTS = [
    "Once upon a time, Mara's 2 ships sailed.\n\nThe end? hero: Mara\nplace: desert\nmood: glad",
    "Tell me a story about 1234 foxes. You are a helpful assistant.\nuser system model assistant",
    "def f(x):\n    return x**2  # 3.14  Größe\tnaïve — “quoted”",
] * 4

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")

# What they render has the form that the published ones give.
LLAMA_TEMPLATE = (
    "{% macro head(role) %}"
    "{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}"
    "{% endmacro %}"
    "{{ bos_token }}"
    "{% for turn in messages %}"
    "{{ head(turn.role) ~ turn.content | trim ~ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}"
)
# Thoughts are cut from answers, and the last one gets an empty one.
QWEN_TEMPLATE = (
    "{% for turn in messages %}"
    "{{ '<|im_start|>' ~ turn.role ~ '\n' }}"
    "{% if turn.role == 'assistant' %}"
    "{{ '<think>\n\n</think>\n\n' if loop.last else '' }}"
    "{% set parts = turn.content.split('</think>') %}"
    "{{ parts[-1].lstrip('\n') if parts | length > 1 else turn.content }}"
    "{% else %}{{ turn.content }}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A system message goes into the first turn; user and model take turns.
GEMMA_TEMPLATE = (
    "{% set opens = messages[0].role == 'system' %}"
    "{{ bos_token }}"
    "{% for turn in (messages[1:] if opens else messages) %}"
    "{% if (turn.role == 'user') == (loop.index0 % 2 == 1) %}"
    "{{ raise_exception('user and assistant take turns') }}"
    "{% endif %}"
    "{{ '<start_of_turn>' ~ ('model' if turn.role == 'assistant' else turn.role) ~ '\n' }}"
    "{{ messages[0].content ~ '\n\n' if opens and loop.first else '' }}"
    "{{ turn.content | trim ~ '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Roles are plain text; eos ends answers, and a line break follows all but the last of these.
OLMO_TEMPLATE = (
    "{{ bos_token }}"
    "{% for turn in messages %}"
    "{{ '<|' ~ turn.role ~ '|>\n' ~ turn.content }}"
    "{{ eos_token if turn.role == 'assistant' else '' }}"
    "{{ '' if turn.role == 'assistant' and loop.last else '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def _special(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def byte_level(pattern: str | None, size: int = 420) -> Any:
    """A byte-level BPE: the split before it as in `pattern`, or GPT-2's own."""
    backend: Any = Tokenizer(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if pattern is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def llama3() -> PreTrainedTokenizerFast:
    """`<|begin_of_text|>` before all, headers, `<|eot_id|>`, reserved special tokens."""
    backend = byte_level(CL100K)
    names = [
        "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
        *(f"<|reserved_special_token_{i}|>" for i in range(2, 12)),
    ]  # fmt: skip
    backend.add_special_tokens(_special(*names))
    bos = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, backend.token_to_id(bos))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="<|eot_id|>",
        chat_template=LLAMA_TEMPLATE,
    )  # fmt: skip


def qwen3() -> PreTrainedTokenizerFast:
    """NFC, ChatML, no bos, `<think>` an added token that is not special."""
    backend = byte_level(QWEN)
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(_special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    plain = [AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")]
    backend.add_tokens(plain)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=QWEN_TEMPLATE,
    )  # fmt: skip


def gemma3() -> PreTrainedTokenizerFast:
    """SentencePiece's kind: `▁` for a space, bytes to fall back on, bos always, unused tokens."""
    backend: Any = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    names = ["<pad>", "<eos>", "<bos>", "<unk>"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    unused = [f"<unused{i}>" for i in range(8)]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=[*names, *unused, *turns, *bytes_], show_progress=False
    )
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.train_from_iterator([*TEXTS, "\n", "\n\n"], trainer)
    backend = Tokenizer.from_str(_only_special(backend, [*names, *turns]))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", backend.token_to_id("<bos>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        unk_token="<unk>", chat_template=GEMMA_TEMPLATE,
    )  # fmt: skip


def _only_special(backend: Any, names: list[str]) -> str:
    """As published: unused tokens are added but not special, bytes are plain vocabulary."""
    import json

    state = json.loads(backend.to_str())
    kept = []
    for token in state["added_tokens"]:
        if not token["content"].startswith("<0x"):
            kept.append({**token, "special": token["content"] in names, "normalized": False})
    return json.dumps({**state, "added_tokens": kept})


def olmo2() -> PreTrainedTokenizerFast:
    """cl100k's kind: `<|endoftext|>` is bos and eos, roles are plain text, spare extra ids."""
    backend = byte_level(CL100K)
    backend.add_special_tokens(_special("<|endoftext|>", "<|pad|>"))
    extra = [AddedToken(f"<|extra_id_{i}|>", special=False, normalized=False) for i in range(4)]
    backend.add_tokens(extra)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>",
        pad_token="<|pad|>", chat_template=OLMO_TEMPLATE,
    )  # fmt: skip


def gpt_neox() -> PreTrainedTokenizerFast:
    """No chat template, no token to spare."""
    backend = byte_level(None)
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(_special("<|endoftext|>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    Args:
        spare: rows that the embedding has beyond the tokenizer's entries.
        fields: of its configuration, over the common sizes.
        new: control tokens for which the tokenizer has no entry of its own.
    """

    name: str
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    config: Callable[..., Any]
    fields: dict[str, Any] = field(default_factory=dict)
    spare: int = 0
    new: int = 0

    def save(self, folder: Path, **changes: Any) -> Path:
        """Writes model and tokenizer as `save_pretrained` does; returns the folder."""
        torch.manual_seed(0)
        hf = self.tokenizer()
        special = {
            "bos_token_id": hf.bos_token_id,
            "eos_token_id": hf.eos_token_id,
            "pad_token_id": hf.pad_token_id,
        }
        fields = {**_SIZES, **self.fields, **special, **changes}
        model = AutoModelForCausalLM.from_config(
            self.config(**{"vocab_size": len(hf) + self.spare, **fields})
        )
        for weight in model.parameters():  # wide enough for logits that tell places apart
            if weight.dim() > 1:
                weight.data *= 4
        model.save_pretrained(folder)
        hf.save_pretrained(folder)
        return folder


FAMILIES = {
    family.name: family
    for family in (
        Family("llama3", llama3, LlamaConfig, {"tie_word_embeddings": False}),
        Family("qwen3", qwen3, Qwen3Config, {"head_dim": 8, "tie_word_embeddings": True}, 5, 2),
        Family(
            "gemma3", gemma3, Gemma3TextConfig,
            {"head_dim": 8, "sliding_window": 8, "tie_word_embeddings": True,
             "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8},
        ),
        Family("olmo2", olmo2, Olmo2Config, {"tie_word_embeddings": False}),
        Family("gpt_neox", gpt_neox, GPTNeoXConfig, {"tie_word_embeddings": False}, 0, 5),
    )
}  # fmt: skip
