"""Checkpoints that others made: what is refused before any work, what is set anew on loading."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from anchored.errors import ConfigError
from anchored.tokenizer import AnchoredTokenizer, ControlIds, load_error

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_INDEX = "model.safetensors.index.json"
_NOISE = 0.1


def check_checkpoint(source: str, quiet: bool = False) -> None:
    """Sees that a folder or hub id holds a causal language model that can be trained.

    A hub id is fetched first; the weights are read once.

    Raises:
        ConfigError: it holds an adapter alone, weights that are pickled, missing, cut short or not
            finite, needs code of its own, is no causal language model, or its tokenizer is of
            another model.
    """
    folder = _fetched(source)
    name = f"model {source!r}"
    _check_kind(name, folder)
    weights = _weight_files(name, folder)
    _check_tokenizer(name, AnchoredTokenizer.load(source), folder)
    _check_weights(name, weights, quiet)


def _fetched(source: str) -> Path:
    if Path(source).exists():
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=_WANTED, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        raise load_error("model", source, error) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name a folder with a whole model") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}; fetch it again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds {type(found).__name__}, not an object; fetch it again")
    return found


def _check_kind(name: str, folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{name}: holds an adapter (adapter_config.json), not a whole model; merge it into its "
            "base (peft's merge_and_unload) and save that"
        )
    config = _read(folder / "config.json")
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise ConfigError(
                f"{name}: config.json names code of its own (auto_map), which is never run; use a "
                "model that transformers knows by itself"
            )
        raise ConfigError(
            f"{name}: config.json has model_type {kind!r}, which transformers does not know; use a "
            "causal language model that it does"
        )
    expected = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    known = {expected} if isinstance(expected, str) else set(expected or ())
    architectures = config.get("architectures") or [*known]
    if not known & set(architectures):
        raise ConfigError(
            f"{name}: is a {', '.join(architectures) or kind}, not a causal language model; use one"
            + (f" ({', '.join(sorted(known))})" if known else "")
        )
    if "text_config" in config:
        raise ConfigError(
            f"{name}: {kind} reads more than text; save its language model alone as a causal "
            "language model, or use a text-only one"
        )


def _weight_files(name: str, folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        shards = _read(folder / _INDEX).get("weight_map", {})
        files = [folder / shard for shard in sorted(set(shards.values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if missing := [file.name for file in files if not file.is_file()]:
        raise ConfigError(f"{name}: {missing[0]} is missing; fetch the checkpoint again")
    if not files:
        pickled = [file.name for pattern in _PICKLED for file in sorted(folder.glob(pattern))]
        found = f"only pickled weights ({pickled[0]}), which can run code" if pickled else "none"
        raise ConfigError(
            f"{name}: needs weights as safetensors and holds {found}; convert them where you trust "
            "their source, with save_pretrained"
        )
    return files


def _check_weights(name: str, files: Sequence[Path], quiet: bool) -> None:
    console = Console(stderr=True)
    hidden = quiet or not console.is_interactive
    for file in track(files, "weights", console=console, transient=True, disable=hidden):
        try:
            bad = next(_not_finite(file), None)
        except SafetensorError as error:
            raise ConfigError(
                f"{name}: {file.name} is damaged or cut short ({error}); fetch it again"
            ) from None
        if bad is not None:
            raise ConfigError(
                f"{name}: {bad} in {file.name} holds NaN or infinite weights; use an earlier "
                "checkpoint"
            )


def _not_finite(file: Path) -> Iterator[str]:
    with safe_open(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (not a mapping)
            tensor = tensors.get_tensor(key)
            if tensor.is_floating_point() and not tensor.float().isfinite().all():
                yield key


def _check_tokenizer(name: str, tokenizer: AnchoredTokenizer, folder: Path) -> None:
    """Ids that text can yield must have rows; spare rows are many in no published model."""
    rows = _read(folder / "config.json").get("vocab_size")
    if not isinstance(rows, int):
        return
    entries = tokenizer.hf.vocab_size
    if entries > rows or rows > 2 * len(tokenizer):
        raise ConfigError(
            f"{name}: its tokenizer has {entries:,} entries and its embedding {rows:,} rows, so "
            "they are not of one model; put the right tokenizer beside it"
        )


def check_loaded(name: str, missing: Collection[str]) -> None:
    """Sees that no weight of a model was made up on loading.

    Raises:
        ConfigError: the checkpoint lacks some of them.
    """
    if missing:
        first, more = sorted(missing)[0], len(missing) - 1
        raise ConfigError(
            f"model {name!r}: holds no weights for {first}{f' and {more} more' if more else ''}; "
            "it is another architecture, or not whole"
        )


def set_end_tokens(model: PreTrainedModel, control: ControlIds) -> None:
    """`generate` and servers end where training did; the ids that ended it before still do."""
    settings: Any = model.generation_config
    before = settings.eos_token_id
    known = [before] if isinstance(before, int) else before or []
    ends = sorted({*known, *control.ends})
    settings.eos_token_id = ends[0] if len(ends) == 1 else ends
    if settings.pad_token_id is None:
        settings.pad_token_id = control.pad


@torch.no_grad()
def initialise_rows(
    model: PreTrainedModel, fresh: Sequence[int], trained: torch.Tensor, seed: int
) -> None:
    """Sets the rows of new control tokens in the embedding and, untied, in the projection.

    Each is the mean of the rows of `trained` ids and a little noise. The mean keeps the model's
    distribution over its old tokens nearly as it was (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models"); the noise, a tenth of the rows' standard deviation
    in each dimension, is our choice and tells the tokens apart. Rows of reserved tokens are set
    too: they were never trained.
    """
    generator = torch.Generator().manual_seed(seed)
    embedding: Any = model.get_input_embeddings()
    projection: Any = model.get_output_embeddings()
    weights = [embedding.weight]
    if projection.weight is not embedding.weight:
        weights.append(projection.weight)
    for weight in weights:
        rows = weight[trained.to(weight.device)].float()
        noise = torch.randn(len(fresh), weight.shape[1], generator=generator).to(weight.device)
        weight[list(fresh)] = (rows.mean(0) + _NOISE * rows.std(0) * noise).to(weight.dtype)
