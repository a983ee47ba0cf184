"""OLMo-2 models from presets, configurations or checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import model_validator
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.utils import logging

from anchored.config import Config
from anchored.errors import ConfigError
from anchored.tokenizer import AnchoredTokenizer, load_error

_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# The paper names only the totals 0.6B, 1B and 2.5B; the shapes are our choice. Below 190M a name
# counts the parameters outside the embedding, above it both (untied) embeddings of OLMo-2's 100k
# vocabulary too, roughly: 190m has 267M with them, 190M with one.
PRESETS = {
    "0.5m": (128, 384, 2, 4),
    "1m": (160, 480, 3, 5),
    "3m": (192, 576, 6, 6),
    "6m": (256, 768, 7, 4),
    "16m": (384, 1152, 8, 6),
    "60m": (640, 1920, 11, 10),
    "190m": (768, 3072, 12, 12),
    "0.6b": (1344, 5376, 16, 16),
    "1b": (2048, 8192, 16, 16),
    "2.5b": (2560, 6912, 24, 20),
}


class ModelConfig(Config):
    """What to train: exactly one of `preset`, `config` and `init`.

    Args:
        preset: an OLMo-2 model by its size, see `PRESETS`.
        config: fields of any `transformers` configuration, `model_type` among them.
        init: a checkpoint to continue from, a folder or hub id.
        max_position_embeddings: of a preset.
    """

    preset: str | None = None
    config: dict[str, Any] | None = None
    init: str | None = None
    max_position_embeddings: int = 4096

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelConfig:
        given = [name for name in ("preset", "config", "init") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of preset, config, init; found {given or 'none'}")
        if self.preset and self.preset.lower() not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is not one of {', '.join(PRESETS)}")
        return self


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no notices of `transformers` for a while: a run shows its own progress."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def olmo2_config(preset: str, vocab_size: int, **fields: Any) -> Olmo2Config:
    """The OLMo-2 configuration of a preset, every size set.

    The class's own defaults are no published model.
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
    """The configuration of what `build_model` builds, with at least `vocab_size` entries.

    Args:
        config: what to train.
        vocab_size: entries of the tokenizer.
        special: ids of bos, eos and pad, for a fresh model.

    Raises:
        ConfigError: the checkpoint cannot be read or the architecture is unknown.
    """
    if config.init is not None:
        try:
            found = AutoConfig.from_pretrained(config.init)
        except (OSError, ValueError) as error:
            raise load_error("model", config.init, error) from None
        found.vocab_size = max(found.vocab_size, vocab_size)
        return found
    if config.preset is not None:
        fields = {"max_position_embeddings": config.max_position_embeddings, **special}
        return olmo2_config(config.preset, vocab_size, **fields)
    settings = {"vocab_size": vocab_size, **special, **(config.config or {})}
    try:
        return AutoConfig.for_model(**settings)
    except (TypeError, ValueError, KeyError) as error:
        raise _wrong_configuration(error) from None


def build_model(config: ModelConfig, tokenizer: AnchoredTokenizer, seed: int) -> PreTrainedModel:
    """A fresh model with weights drawn by `seed`, or a checkpoint grown for new control tokens.

    Raises:
        ConfigError: the checkpoint cannot be loaded or the architecture is unknown.
    """
    set_seed(seed)
    if config.init is not None:
        return load_model(config.init, tokenizer)
    ids = tokenizer.control
    special = {"bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad}
    settings = model_configuration(config, len(tokenizer), **special)
    try:
        return AutoModelForCausalLM.from_config(settings)
    except (TypeError, ValueError, KeyError) as error:
        raise _wrong_configuration(error) from None


def _wrong_configuration(error: Exception) -> ConfigError:
    return ConfigError(f"model.config: {' '.join(str(error).split())[:200]}")


def load_model(source: str | Path, tokenizer: AnchoredTokenizer) -> PreTrainedModel:
    """A causal LM from a folder or hub id, in the precision it was saved in.

    Raises:
        ConfigError: nothing there that can be loaded.
    """
    with quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(str(source))
        except (OSError, ValueError) as error:
            raise load_error("model", source, error) from None
    if model.get_input_embeddings().num_embeddings < len(tokenizer):  # pyright: ignore
        model.resize_token_embeddings(len(tokenizer))
    return model
