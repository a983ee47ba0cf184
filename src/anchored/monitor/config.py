"""What the collapse monitor is told, apart from its code, which needs the extra `evaluate`."""

from __future__ import annotations

from pydantic import Field

from anchored.config import Config


class CollapseConfig(Config):
    """How often, how much, and what follows.

    Args:
        every: steps between turns, at least; more where the budget asks for it.
        samples: answers to each prompt.
        max_new_tokens: of each answer.
        budget: share of the time of all training steps that the monitor may take, the baseline
            included; None for no limit.
        stop_below: ends training where less than this share of the baseline's semantic entropy is
            kept: where the whole 95 % interval lies below it.
        checkpoint_below: saves a checkpoint at the first turn of which the same is true.
        embedder: of `dissimilarity`; see `evaluate.embedders.load_embedder`.
        seed: of the samples.
        batch_size: answers sampled together, at most; they do not depend on it.
    """

    every: int = Field(default=50, ge=1)
    samples: int = Field(default=16, ge=2)
    max_new_tokens: int = Field(default=64, ge=1)
    budget: float | None = Field(default=0.05, gt=0)
    stop_below: float | None = Field(default=None, gt=0)
    checkpoint_below: float | None = Field(default=None, gt=0)
    embedder: str = "static"
    seed: int = 0
    batch_size: int = Field(default=128, ge=1)


class MonitorConfig(CollapseConfig):
    """The `monitor` of a training run.

    Args:
        prompts: what is asked, as the user; an empty one samples a document.
        attributes: `module:function` that reads `{attribute: value}` off a text; without it,
            answers are told apart by their words.
    """

    prompts: tuple[str, ...] = Field(min_length=1)
    attributes: str | None = None
