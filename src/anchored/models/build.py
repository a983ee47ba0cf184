"""Models to train: OLMo-2 presets, any configuration, or an existing checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)

from anchored.config import Config
from anchored.errors import ConfigError
from anchored.models.checkpoints import (
    initialise_rows,
    load_whole,
    quiet_transformers,
    renew_generation,
)
from anchored.models.lora import LoraSettings, attach, check_lora, four_bits, save_merged
from anchored.tokenizer import AnchoredTokenizer, loading

_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# The paper names only the totals 0.6B, 1B and 2.5B; the shapes are our choice. Below 190m, a name
# counts the parameters outside the embedding; above it, both (untied) embeddings of OLMo-2's 100k
# vocabulary as well. The 190m preset has roughly 267M with both of them and 190M with one.
PRESETS = {
    "0.5m": (128, 384, 2, 4),
    "1m": (160, 480, 3, 5),
    "3m": (192, 576, 6, 6),
    "6m": (256, 768, 7, 4),
    "16m": (384, 1152, 8, 6),
    "60m": (640, 1920, 11, 10),
    "190m": (768, 3072, 12, 12),
    "0.6b": (1344, 5376, 16, 21),
    "1b": (2048, 8192, 16, 16),
    "2.5b": (2560, 6912, 24, 20),
}

Attention = Literal[
    "sdpa",
    "eager",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
]


class ModelConfig(Config):
    """The model to train: exactly one of `preset`, `config` and `init`.

    Args:
        preset: an OLMo-2 model by its size, see `PRESETS`.
        config: fields of any `transformers` configuration, including `model_type`.
        init: a checkpoint to continue from, a folder or hub id.
        max_position_embeddings: context length of a preset.
        dtype: precision of the weights in training, whatever a checkpoint was saved in. Small steps
            are lost in bfloat16 weights; `trainer.bf16` computes in bfloat16 and keeps the weights
            in float32.
        attention: name of an attention implementation in `transformers`; None for its default.
        lora: train an adapter instead of all weights; only with `init`.
        quantize: hold the weights below the adapter in four bits (QLoRA).
    """

    preset: str | None = None
    config: dict[str, Any] | None = None
    init: str | None = None
    max_position_embeddings: int = 4096
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Attention | None = None
    lora: LoraSettings | None = None
    quantize: Literal["nf4"] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelConfig:
        given = [name for name in ("preset", "config", "init") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of preset, config, init; found {given or 'none'}")
        if self.preset and self.preset.lower() not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is not one of {', '.join(PRESETS)}")
        if self.lora and not self.init:
            raise ValueError("lora needs init: an adapter changes an existing checkpoint")
        if self.quantize and not self.lora:
            raise ValueError("quantize needs lora: weights in four bits cannot be trained")
        return self

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a torch type."""
        return getattr(torch, self.dtype)


def olmo2_config(preset: str, vocab_size: int, **fields: Any) -> Olmo2Config:
    """Return the OLMo-2 configuration of a preset, with every size set.

    The defaults of `Olmo2Config` belong to no published model.
    """
    sizes = dict(zip(_FIELDS, PRESETS[preset.lower()], strict=True))
    small = sizes["hidden_size"] < 768
    return Olmo2Config(
        vocab_size=vocab_size,
        num_key_value_heads=sizes["num_attention_heads"],
        tie_word_embeddings=small,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0 if small else 500_000.0},
        **sizes,
        **fields,
    )


def model_configuration(
    config: ModelConfig, vocab_size: int, **special: int | None
) -> PreTrainedConfig:
    """Return the configuration of the model that `build_model` builds.

    Args:
        config: the model to train.
        vocab_size: entries of the tokenizer; the model gets at least as many.
        special: ids of bos, eos and pad, for a fresh model.

    Raises:
        ConfigError: the checkpoint cannot be read or the architecture is unknown.
    """
    if config.init is not None:
        with loading("model", config.init):
            found = AutoConfig.from_pretrained(config.init, trust_remote_code=False)
            found.vocab_size = max(found.vocab_size, vocab_size)
        return found
    if config.preset is not None:
        fields = {"max_position_embeddings": config.max_position_embeddings, **special}
        return olmo2_config(config.preset, vocab_size, **fields)
    settings = {"vocab_size": vocab_size, **special, **(config.config or {})}
    try:
        return AutoConfig.for_model(**settings)
    except Exception as error:  # as in `loading`
        raise _wrong_configuration(error) from error


def build_model(
    config: ModelConfig, tokenizer: AnchoredTokenizer, seed: int, trained: str | None = None
) -> PreTrainedModel:
    """Build a fresh model with random weights, or load a checkpoint ready for training.

    In a checkpoint, new control tokens get their rows; with `config.lora` it gets its adapter.

    Args:
        config: the model to start from.
        tokenizer: the tokenizer whose entries need rows.
        seed: seed of all random weights.
        trained: a checkpoint of this run, whose weights are used instead.

    Raises:
        ConfigError: the checkpoint cannot be loaded or the architecture is unknown.
    """
    set_seed(seed)
    if trained is not None and config.lora is None:
        return load_model(trained, tokenizer, dtype=config.torch_dtype)
    if config.init is not None:
        return _from_checkpoint(config, config.init, tokenizer, seed, trained)
    ids = tokenizer.control
    special = {"bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad}
    settings = model_configuration(config, len(tokenizer), **special)
    options = {"dtype": config.torch_dtype, "attn_implementation": config.attention}
    try:
        return AutoModelForCausalLM.from_config(settings, trust_remote_code=False, **options)
    except Exception as error:  # as in `loading`
        raise _wrong_configuration(error) from error


def _wrong_configuration(error: Exception) -> ConfigError:
    return ConfigError(f"model.config: {' '.join(str(error).split())[:200]}")


def _from_checkpoint(
    config: ModelConfig, init: str, tokenizer: AnchoredTokenizer, seed: int, trained: str | None
) -> Any:
    if config.lora:
        check_lora(config.quantize is not None)
    options: dict[str, Any] = {"attn_implementation": config.attention}
    if config.quantize:
        options["quantization_config"] = four_bits(config.torch_dtype)
    model = full_model(config, init, tokenizer, seed, **options)
    if config.lora is None:
        return model
    rows = sorted(tokenizer.control_ids[name] for name in tokenizer.tokens)
    adapted = attach(model, config.lora, rows, quantized=config.quantize is not None)
    if trained is not None:
        adapted.load_adapter(trained, adapted.active_adapter, is_trainable=True)
    return adapted


def save_adapted(
    model: Any, folder: Path, config: ModelConfig, tokenizer: AnchoredTokenizer, seed: int
) -> None:
    """Write a model with an adapter from `build_model` to `folder`, merged, and the adapter.

    If the weights are quantized, the checkpoint is loaded again: four bits would round the changes
    away.
    """
    assert config.init is not None
    base = full_model(config, config.init, tokenizer, seed) if config.quantize else None
    save_merged(model, folder, base)


def full_model(
    config: ModelConfig, init: str, tokenizer: AnchoredTokenizer, seed: int, **options: Any
) -> PreTrainedModel:
    """Load the checkpoint `init` as training starts from it, with rows for new control tokens.

    Raises:
        ConfigError: it cannot be loaded, or weights are missing.
    """
    model = load_model(init, tokenizer, dtype=config.torch_dtype, **options)
    if fresh := AnchoredTokenizer.load(init).fresh:
        special = torch.tensor(sorted({*tokenizer.control_ids.values(), *fresh}))
        entries = torch.arange(len(tokenizer))
        trained = entries[~torch.isin(entries, special)]
        initialise_rows(model, fresh, trained, seed)
    renew_generation(model, tokenizer.control)
    return model


def load_model(source: str | Path, tokenizer: AnchoredTokenizer, **options: Any) -> PreTrainedModel:
    """Load a causal LM from a folder or hub id, by default in its saved precision.

    Args:
        source: folder or hub id; weights are read from safetensors only.
        tokenizer: its tokenizer; the embedding grows if entries lack rows.
        options: passed to `from_pretrained`.

    Raises:
        ConfigError: it cannot be loaded, or is not a whole model.
    """
    with quiet_transformers():
        model: Any = load_whole(source, **options)
        if model.get_input_embeddings().num_embeddings < len(tokenizer):
            model.resize_token_embeddings(len(tokenizer))
    return model
