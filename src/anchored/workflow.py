"""Training runs as users start them: with a collapse monitor if configured, and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer

from anchored.publish.card import write_card
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.config import MonitorConfig, PretrainConfig, SFTConfig
from anchored.train.run import Hooks, run


def pretrain(config: PretrainConfig, quiet: bool = False) -> Path:
    """Prepare the data if needed, train or resume, and return the folder of the final model.

    Raises:
        ConfigError: `config.trainer` is refused, or `config.out` holds another run.
        AnchoredError: see `anchored.train.run.train`.
    """
    return run(config, _HOOKS, quiet)


def sft(config: SFTConfig, quiet: bool = False) -> Path:
    """Train like `pretrain`, on conversations under `config.objective`.

    For `anchored-replay`, annotations are sampled from `model.init` first.

    Raises:
        ConfigError: `model.init` is missing; see `pretrain` too.
        AnchoredError: see `anchored.train.run.train`.
    """
    return run(config, _HOOKS, quiet)


def _watch(
    config: MonitorConfig, tokenizer: AnchoredTokenizer, manifest: dict[str, Any], trainer: Trainer
) -> None:
    from anchored.monitor.callback import monitor_of  # needs the extra `evaluate`

    monitor_of(config, tokenizer, manifest).attach(trainer)


_HOOKS = Hooks(watch=_watch, describe=write_card)
