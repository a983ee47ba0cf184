"""LoRA by `peft`: low-rank changes to all linear layers, and the rows of our control tokens.

These rows are trained in full, because the model has never seen the tokens; other rows stay fixed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from transformers import PreTrainedModel

from anchored.config import Config
from anchored.errors import ConfigError

ADAPTER = "adapter"


class LoraSettings(Config):
    """Settings of the adapter, named as in `peft.LoraConfig`.

    Args:
        r: rank.
        alpha: the adapter's output is scaled by `alpha / r`.
        dropout: dropout before the adapter.
        target_modules: names of layers, or their last parts (after a dot); `all-linear` for all
            linear layers except the projection to the vocabulary.
    """

    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) and given != "all-linear" else given


def check_lora(quantize: bool) -> None:
    """Check that the packages for an adapter are installed.

    Raises:
        ConfigError: one is missing.
    """
    if find_spec("peft") is None:
        raise ConfigError("model.lora: needs peft; pip install 'anchored[lora]'")
    if quantize and find_spec("bitsandbytes") is None:
        raise ConfigError(
            "model.quantize: needs bitsandbytes; pip install 'anchored[qlora]', or leave it out"
        )


def check_targets(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Check that the target layers can take an adapter; the weights of `model` are not read.

    Raises:
        ConfigError: a name matches no layer, or matches the embedding or the projection to the
            vocabulary, whose rows are trained in full and whose tied weights could not be saved.
    """
    if settings.target_modules == "all-linear":
        return
    field, embeddings = "model.lora.target_modules", _embeddings(model).keys()
    names = [name for name, _ in model.named_modules()]
    for target in settings.target_modules:
        found = {name for name in names if f".{name}".endswith(f".{target}")}
        if not found:
            raise ConfigError(f"{field}: {target!r}: no layer has this name; use a layer's name")
        if taken := found & embeddings:
            raise ConfigError(
                f"{field}: {target!r}: {min(taken)} cannot take an adapter, because some of its "
                "rows are trained; leave it out"
            )
    if not settings.target_modules:
        raise ConfigError(f"{field}: names no layer; name some, or write all-linear")


def attach(
    model: PreTrainedModel, settings: LoraSettings, rows: Sequence[int], quantized: bool
) -> Any:
    """Wrap `model` in a `peft.PeftModel` that trains an adapter and `rows` of its embeddings.

    Raises:
        ConfigError: `settings.target_modules` names a layer that cannot take an adapter.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if quantized:
        _keep_differentiable(model)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    check_targets(model, settings)
    targets = settings.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        trainable_token_indices={name: list(rows) for name in _with_weights_of_their_own(model)},
    )
    try:
        with _names_that_will_go():
            return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"model.lora: {' '.join(str(error).split())[:200]}") from None


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from using a CPU kernel that has no backward.

    With AVX512-BF16, the first pass in eval mode converts a four-bit layer for that kernel, for
    good: from then on, no gradient would pass through the layer.
    """
    layers: Any = model.modules()
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


@contextmanager
def _names_that_will_go() -> Iterator[None]:
    """Silence warnings about deprecated `transformers` names in `peft`, which users cannot fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _embeddings(model: PreTrainedModel) -> dict[str, Any]:
    """Return the embedding and the projection to the vocabulary, by module name."""
    wanted = (model.get_input_embeddings(), model.get_output_embeddings())
    modules = model.named_modules()
    return {name: module for name, module in modules if any(module is w for w in wanted)}


def _with_weights_of_their_own(model: PreTrainedModel) -> list[str]:
    """Return the names of `_embeddings`, without a tied projection."""
    embedding: Any = model.get_input_embeddings()
    found = _embeddings(model).items()
    return [name for name, it in found if it is embedding or it.weight is not embedding.weight]


def has_adapter(model: Any) -> bool:
    """Return True if `model` was made by `attach`."""
    return hasattr(model, "merge_and_unload")


def without_adapter(model: Any) -> PreTrainedModel:
    """Return the model inside the `peft` wrapper, with the adapter in its layers, or `model`."""
    return model.get_base_model() if has_adapter(model) else model


def save_merged(model: Any, folder: Path, base: PreTrainedModel | None = None) -> None:
    """Write the adapter to `folder`/adapter and the merged model to `folder`.

    Args:
        model: a model made by `attach`; unusable afterwards.
        folder: the folder to write to.
        base: the base model in full precision, if `model` is quantized: merging into four bits
            would round the changes away.
    """
    from peft import PeftModel

    model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
    form = folder / ADAPTER / "README.md"  # peft's empty template; the model has its own card
    form.unlink(missing_ok=True)
    if base is not None:
        with _names_that_will_go():
            model = PeftModel.from_pretrained(base, str(folder / ADAPTER))
    merged = model.merge_and_unload()
    merged.save_pretrained(str(folder))


def four_bits(dtype: torch.dtype) -> Any:
    """Return settings for NF4 weights with nested scales (QLoRA), computing in bfloat16 on GPUs."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else dtype,
    )
