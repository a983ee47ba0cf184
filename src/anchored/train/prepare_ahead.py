"""What is seen to before a training run: its checkpoint, its tokenizers, and if asked its data.

`pretrain` and `sft` prepare what they lack, but while they do their devices are idle.
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
    """Prepares `config.data` where the run will look for it; returns that folder.

    Raises:
        ConfigError: there is nothing to prepare, `config.out` holds another run, annotations are
            to be sampled first, or `model.init` cannot be trained on these data.
    """
    data, folder = to_prepare(config), config.out / DATA_FOLDER
    if data is None:
        raise ConfigError(
            f"data: {config.data}: a folder already; give the file that it is prepared from"
        )
    if isinstance(config, SFTConfig) and OBJECTIVES[config.objective].replay:
        raise ConfigError(
            f"objective: {config.objective} samples from model.init first, which `anchored sft` "
            "alone does: it prepares these data itself"
        )
    with released_if_unused(config.out):
        claim(config.out, config, free=(*MAY_CHANGE, "monitor"))
        if not folder.exists():
            check_init(config, console.quiet)
            check_encoding(config, data)
            prepare(data, console)
    return folder


def check_init(config: TrainConfig, quiet: bool) -> None:
    """Sees that what a run starts from can be trained.

    Raises:
        ConfigError: it cannot, SFT has nothing to start from, or an adapter lacks its packages or
            layers.
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
    """Sees that `data` are encoded by the tokenizer of what the run starts from.

    Raises:
        ConfigError: by a new one.
        TokenizerMismatch: by another.
    """
    if config.model.init is None:
        return
    if isinstance(data.tokenizer, NewTokenizer):
        raise ConfigError(
            f"data.tokenizer: a new one cannot be that of {config.model.init}; leave it out"
        )
    if data.tokenizer is not None:
        check_tokenizer(config.model.init, AnchoredTokenizer.load(data.tokenizer))


def check_tokenizer(init: str | None, tokenizer: AnchoredTokenizer) -> None:
    """Sees that `tokenizer` is that of `init`.

    Raises:
        TokenizerMismatch: it is another.
    """
    if init is not None:
        tokenizer.check(AnchoredTokenizer.load(init).fingerprint, init)
