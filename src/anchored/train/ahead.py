"""The data of a training run, prepared before it.

`pretrain` and `sft` prepare what they lack, but while they do their devices are idle.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from anchored.data.prepare import PrepareConfig, prepare
from anchored.errors import ConfigError
from anchored.files import claim, released_if_unused
from anchored.segments import OBJECTIVES
from anchored.train.config import SFTConfig, TrainConfig
from anchored.train.layout import MAY_CHANGE


def prepare_ahead(config: TrainConfig, console: Console) -> Path:
    """Prepares `config.data` where the run will look for it; returns that folder.

    Raises:
        ConfigError: there is nothing to prepare, `config.out` holds another run, or annotations
            are to be sampled first.
    """
    data, folder = _as_trained(config), config.out / "data"
    with released_if_unused(config.out):
        claim(config.out, config, free=(*MAY_CHANGE, "monitor"))
        if not folder.exists():
            prepare(data.model_copy(update={"out": folder}), console)
    return folder


def _as_trained(config: TrainConfig) -> PrepareConfig:
    data = config.data
    if isinstance(data, Path):
        raise ConfigError(f"data: {data}: a folder already; give the file that it is prepared from")
    tokenizer = data.tokenizer or config.model.init
    if not isinstance(config, SFTConfig):
        return data.model_copy(update={"tokenizer": tokenizer})
    if OBJECTIVES[config.objective].replay:
        raise ConfigError(
            f"objective: {config.objective} samples from model.init first, which `anchored sft` "
            "alone does: it prepares these data itself"
        )
    return data.model_copy(update={"tokenizer": tokenizer, "objective": config.objective})
