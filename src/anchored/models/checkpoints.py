"""Foreign checkpoints: the checks before any work, and the settings renewed on loading."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from anchored.errors import ConfigError
from anchored.tokenizer import AnchoredTokenizer, ControlIds, load_error, loading

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_NOISE = 0.1


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and notices of `transformers`: a run shows its own progress."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_checkpoint(source: str, quiet: bool = False) -> PreTrainedModel:
    """Check that a folder or hub id holds a causal language model that can be trained.

    A hub id is downloaded first; the weights are read once.

    Returns:
        The model on the meta device: the names and shapes of its weights.

    Raises:
        ConfigError: it is only an adapter or not a causal language model; its weights are pickled,
            quantized, missing, truncated, not finite or of another shape than configured; it needs
            custom code; its tokenizer belongs to another model; or its chat template opens a
            thought.
    """
    folder = _fetched(source)
    name = f"model {source!r}"
    _check_kind(name, folder)
    weights = _weight_files(name, folder)
    tokenizer = AnchoredTokenizer.load(source)
    _check_tokenizer(name, tokenizer, folder)
    _check_template(name, tokenizer)
    _check_weights(name, weights, quiet)
    with quiet_transformers():
        return load_whole(source, device_map="meta")


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
        raise ConfigError(f"{path}: no such file; name the folder of a whole model") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}; download it again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds {type(found).__name__}, not an object; download it again")
    return found


def _check_kind(name: str, folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{name}: holds an adapter (adapter_config.json), not a whole model; merge it into its "
            "base (peft's merge_and_unload) and save that"
        )
    config = _read(folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise ConfigError(
                f"{name}: config.json asks for custom code (auto_map), which is never run; use a "
                "model that transformers itself supports"
            )
        raise ConfigError(
            f"{name}: config.json has model_type {kind!r}, which transformers does not know; use a "
            "causal language model that it supports"
        )
    expected = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    known = {expected} if isinstance(expected, str) else set(expected or ())
    architectures = config.get("architectures") or [*known]
    if not known & set(architectures):
        raise ConfigError(
            f"{name}: is a {', '.join(architectures) or kind}, not a causal language model; use one"
            + (f" ({', '.join(sorted(known))})" if known else "")
        )
    if "quantization_config" in config:
        raise ConfigError(
            f"{name}: its weights are quantized (quantization_config) and cannot be trained; use "
            "the original checkpoint, with model.quantize and model.lora to hold it in four bits"
        )
    if "text_config" in config:
        raise ConfigError(
            f"{name}: {kind} reads more than text; save only its language model as a causal "
            "language model, or use a text-only model"
        )


def _weight_files(name: str, folder: Path) -> list[Path]:
    """List the files that `transformers` loads; a single file takes precedence over an index."""
    named = _read(folder / "config.json").get("transformers_weights")
    known = [folder / str(file) for file in (named, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)]
    first = next((file for file in known if file.is_file()), None)
    if first is None:
        raise _not_safe(name, folder)
    return _shards(name, first) if first.suffix == ".json" else [first]


def _not_safe(name: str, folder: Path) -> ConfigError:
    pickled = [file.name for pattern in _PICKLED for file in sorted(folder.glob(pattern))]
    found = f"only pickled weights ({pickled[0]}), which can run code" if pickled else "none"
    return ConfigError(
        f"{name}: needs weights as safetensors but has {found}; if you trust their source, convert "
        "them with save_pretrained"
    )


def check_safe(name: str, source: str | Path) -> None:
    """Check that a model's folder has weights as safetensors.

    A hub id passes: with `use_safetensors=True` no other weights are downloaded.

    Args:
        name: name of the model in an error.
        source: folder or hub id.

    Raises:
        ConfigError: it has only pickled weights, or none.
    """
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise _not_safe(name, folder)


def _shards(name: str, index: Path) -> list[Path]:
    shards = _read(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
        raise ConfigError(f"{index}: weight_map names no file for a weight; download it again")
    files = [index.parent / shard for shard in sorted(set(shards.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ConfigError(f"{name}: {missing[0]} is missing; download the checkpoint again")
    return files


def _check_weights(name: str, files: Sequence[Path], quiet: bool) -> None:
    console = Console(stderr=True)
    hidden = quiet or not console.is_interactive
    for file in track(files, "weights", console=console, transient=True, disable=hidden):
        try:
            bad = next(_not_finite(file), None)
        except SafetensorError as error:
            raise ConfigError(
                f"{name}: {file.name} is damaged or cut short ({error}); download it again"
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
    """Check that the ids of text have rows; no published model has very many spare rows."""
    rows = _read(folder / "config.json").get("vocab_size")
    if not isinstance(rows, int):
        return
    entries = tokenizer.hf.vocab_size
    if entries > rows or rows > 2 * len(tokenizer):
        raise ConfigError(
            f"{name}: its tokenizer has {entries:,} entries and its embedding {rows:,} rows, so "
            "they belong to different models; put the right tokenizer beside it"
        )


def _check_template(name: str, tokenizer: AnchoredTokenizer) -> None:
    """Refuse a template that opens a thought: the annotation would be inside, never closed."""
    opened = tokenizer.chat and tokenizer.chat.opened_thought()
    if opened:
        raise ConfigError(
            f"{name}: its chat template opens a thought ({opened}) before the answer and leaves it "
            "open; if the template reads enable_thinking, put "
            "{%- set enable_thinking = false %} at its top, else remove the tag from its end"
        )


def load_whole(source: str | Path, **options: Any) -> PreTrainedModel:
    """Load a causal LM whose weights match its configuration exactly.

    Args:
        source: folder or hub id; weights are read from safetensors only, and no code is run.
        options: passed to `from_pretrained`.

    Raises:
        ConfigError: it cannot be loaded, or weights and configuration do not belong together.
    """
    check_safe(f"model {str(source)!r}", source)
    with loading("model", source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(source),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with a better message
            **options,
        )
    model, found = loaded
    others = [key for key, *_ in found["mismatched_keys"]]
    _refuse(source, "has no weights for", found["missing_keys"])
    _refuse(source, "its config.json gives another shape to", others)
    _refuse(source, "its config.json leaves out", _left_out(model, found["unexpected_keys"]))
    return model


def _refuse(source: str | Path, fault: str, keys: Collection[str]) -> None:
    if keys:
        first, more = sorted(keys)[0], len(keys) - 1
        raise ConfigError(
            f"model {str(source)!r}: {fault} {first}{f' and {more} more' if more else ''}; "
            "use a complete checkpoint with its own config.json"
        )


def _left_out(model: PreTrainedModel, unexpected: Collection[str]) -> list[str]:
    """Return the weights of missing layers or known parts; an unknown head may be left out."""
    parts = {_any_layer(key.rpartition(".")[0]) for key in model.state_dict()}
    return [key for key in unexpected if _any_layer(key.rpartition(".")[0]) in parts]


def _any_layer(key: str) -> str:
    return re.sub(r"\d+", "N", key)


def renew_generation(model: PreTrainedModel, control: ControlIds) -> None:
    """Make `generate` and servers stop at our end tokens, in addition to the model's own.

    No sampling setting is kept: it was chosen for answers without annotations, and a server that
    uses it as a default would cut off the breadth that annotations provide.
    """
    before: Any = model.generation_config
    known = before.eos_token_id
    ends = sorted({*([known] if isinstance(known, int) else known or []), *control.ends})
    model.generation_config = GenerationConfig(
        bos_token_id=before.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=control.pad if before.pad_token_id is None else before.pad_token_id,
    )


@torch.no_grad()
def initialise_rows(
    model: PreTrainedModel, fresh: Sequence[int], trained: torch.Tensor, seed: int
) -> None:
    """Set the rows of new control tokens in the embedding and, if untied, in the projection.

    Each row is the mean of the rows of the `trained` ids plus a little noise. The mean almost
    preserves the model's distribution over its old tokens (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models"). The noise, a tenth of the rows' standard deviation
    in each dimension, is our choice and distinguishes the tokens. The rows of reserved tokens are
    set too, because they were never trained.
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
