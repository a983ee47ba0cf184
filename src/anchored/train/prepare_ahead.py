"""Checks and preparation before a training run: its checkpoint, its tokenizers and its data.

`pretrain` and `sft` prepare missing data themselves, but meanwhile their devices are idle.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from anchored.data.prepare import NewTokenizer, PrepareConfig, prepare
from anchored.errors import ConfigError
from anchored.files import claim, released_if_unused
from anchored.models.checkpoints import check_checkpoint
from anchored.models.lora import check_lora, check_targets
from anchored.segments import OBJECTIVES
from anchored.tokenizer import AnchoredTokenizer
from anchored.train import DATA_FOLDER
from anchored.train.config import SFTConfig, TrainConfig, to_prepare
from anchored.train.layout import MAY_CHANGE


def prepare_ahead(config: TrainConfig, console: Console) -> Path:
    """Prepare `config.data` where the run will look for it and return that folder.

    Raises:
        ConfigError: there is nothing to prepare, `config.out` holds another run, annotations must
            be sampled first, or `model.init` cannot be trained on this data.
    """
    data, folder = to_prepare(config), config.out / DATA_FOLDER
    if data is None:
        raise ConfigError(
            f"data: {config.data}: already a prepared folder; give the file it is prepared from"
        )
    if isinstance(config, SFTConfig) and OBJECTIVES[config.objective].replay:
        raise ConfigError(
            f"objective: {config.objective} samples from model.init first, which only `anchored "
            "sft` does; run that, it prepares the data itself"
        )
    with released_if_unused(config.out):
        claim(config.out, config, free=(*MAY_CHANGE, "monitor"))
        if not folder.exists():
            check_init(config, console.quiet)
            check_encoding(config, data)
            prepare(data, console)
    return folder


def check_init(config: TrainConfig, quiet: bool) -> None:
    """Check that the initial checkpoint of a run can be trained.

    Raises:
        ConfigError: it cannot be trained, SFT has no checkpoint, or packages or layers for an
            adapter are missing.
    """
    if config.model.init is None:
        if isinstance(config, SFTConfig):
            raise ConfigError(
                "model.init: missing; SFT starts from a pretrained model folder or hub id"
            )
        return
    if config.model.lora:
        check_lora(config.model.quantize is not None)
    model = check_checkpoint(config.model.init, quiet)
    if config.model.lora:
        check_targets(model, config.model.lora)


def check_encoding(config: TrainConfig, data: PrepareConfig) -> None:
    """Check that `data` uses the tokenizer of the run's initial checkpoint.

    Raises:
        ConfigError: it uses a new tokenizer.
        TokenizerMismatch: it uses another tokenizer.
    """
    if config.model.init is None:
        return
    if isinstance(data.tokenizer, NewTokenizer):
        raise ConfigError(
            f"data.tokenizer: a new tokenizer does not fit {config.model.init}; leave it out"
        )
    if data.tokenizer is not None:
        check_tokenizer(config.model.init, AnchoredTokenizer.load(data.tokenizer))


def check_tokenizer(init: str | None, tokenizer: AnchoredTokenizer) -> None:
    """Check that `tokenizer` is the tokenizer of `init`.

    Raises:
        TokenizerMismatch: it is not.
    """
    if init is not None:
        tokenizer.check(AnchoredTokenizer.load(init).fingerprint, init)
