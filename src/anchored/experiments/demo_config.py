"""The configuration of the demo and of every storyworld study: bases, treatments, settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from anchored.config import Config
from anchored.data.readers import ObjectiveName
from anchored.models.build import ModelConfig
from anchored.train.replay import ReplayConfig

Regime = Literal["broad", "narrow"]
Strength = Literal["light", "hard"]


class Base(Config):
    """A pretrained base.

    Args:
        objective: `plain` or `annotated`.
        init: the base to continue from, instead of fresh weights.
        share: share of `pretrain.tokens` that the base is trained on.
        tag_noise: share of tags whose value is drawn at random, also in SFT that starts from it.
    """

    objective: Literal["plain", "annotated"]
    init: str | None = None
    share: float = Field(default=1.0, gt=0)
    tag_noise: float = Field(default=0.0, ge=0, le=1)


BASES = {"base": Base(objective="plain"), "annotated_base": Base(objective="annotated")}


class Treatment(Config):
    """A variant of SFT.

    Args:
        base: name of the base that it starts from.
        objective: see `segments.OBJECTIVES`.
        replay: replay settings, instead of the study's own.
        documents: share of the examples that are pretraining documents with their tags, learnt
            whole, in addition to the SFT data.
    """

    base: str = "annotated_base"
    objective: ObjectiveName
    replay: ReplayConfig | None = None
    documents: float = Field(default=0.0, ge=0, lt=1)


TREATMENTS = {
    "standard": Treatment(base="base", objective="standard"),
    "anchored": Treatment(objective="anchored"),
    "anchored_replay": Treatment(objective="anchored-replay"),
    "tagged": Treatment(objective="tagged"),
}


class PretrainSettings(Config):
    """Pretraining settings of both bases: equally many tokens, counting annotations."""

    tokens: int = Field(default=2_200_000, gt=0)
    batch_size: int = Field(default=4, gt=0)
    learning_rate: float = Field(default=1e-2, gt=0)
    muon_learning_rate: float = Field(default=2e-2, gt=0)


class SFTSettings(Config):
    """Light SFT settings of all treatments: the same examples and the same optimizer.

    Batches are small, because so short an SFT needs more updates: 250 updates of 16 examples teach
    the form to half as many stories as 1,000 updates of 4, in the same time.
    """

    examples: int = Field(default=2000, gt=0)
    epochs: float = Field(default=2, gt=0)
    learning_rate: float = Field(default=1.5e-3, gt=0)
    adam_beta2: float = Field(default=0.98, gt=0, lt=1)
    batch_size: int = Field(default=4, gt=0)


class HardSFT(SFTSettings):
    """Hard SFT settings: equally many updates at more than three times the learning rate."""

    learning_rate: float = Field(default=5e-3, gt=0)


class DemoConfig(Config):
    """The demo; every field can be overridden on the command line.

    Args:
        experiment: name of the study.
        size: size of the storyworld.
        preset: size of the models.
        vocab_size: maximum vocabulary size; the small world's words need fewer entries.
        max_length: tokens in a packed row.
        seeds: one run for each seed, with its own data, weights and samples.
        regime: `broad`: SFT's semantics cover everything, with a share of `narrow_mass` on two or
            three values per key (the paper's case); `narrow`: only those values.
        strength: `light` or `hard` SFT, with the settings below.
        narrow_mass: see `regime`.
        pretrain, light, hard, replay: settings of the stages.
        pretrained: bases by name; gaps and drift are measured from `base` and `annotated_base`.
        treatments: treatments by name; the others are compared with `standard`.
        samples_per_prompt: stories sampled per open prompt, for each seed and model.
        max_response_tokens: longer responses are cut.
        bases: folder of the pretrained bases; None keeps them in the output folder.
        workers: number of stages that run in parallel.
    """

    experiment: Literal["storyworld"] = "storyworld"
    size: Literal["small", "full"] = "small"
    preset: str = "0.5m"
    vocab_size: int = Field(default=1536, ge=300)
    max_length: int = Field(default=256, ge=64)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    regime: Regime = "broad"
    strength: Strength = "light"
    narrow_mass: float = Field(default=0.85, ge=0, le=1)
    pretrain: PretrainSettings = PretrainSettings()
    light: SFTSettings = SFTSettings()
    hard: HardSFT = HardSFT()
    replay: ReplayConfig = ReplayConfig()
    pretrained: dict[str, Base] = Field(default_factory=lambda: dict(BASES))
    treatments: dict[str, Treatment] = Field(default_factory=lambda: dict(TREATMENTS))
    samples_per_prompt: int = Field(default=44, ge=2)
    max_response_tokens: int = Field(default=192, gt=0)
    bases: Path | None = None
    workers: int = Field(default_factory=lambda: min(os.cpu_count() or 1, 6), ge=1)

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, preset: str) -> str:
        return ModelConfig(preset=preset).preset or preset

    @field_validator("pretrained")
    @classmethod
    def _with_bases(cls, pretrained: dict[str, Base]) -> dict[str, Base]:
        if not BASES.keys() <= pretrained.keys():
            raise ValueError("`base` and `annotated_base` are required; add both")
        known: set[str] = set()
        for name, base in pretrained.items():
            if base.init is not None and base.init not in known:
                raise ValueError(f"{name}.init: {base.init!r} is not one of the bases before it")
            known.add(name)
        return pretrained

    @model_validator(mode="after")
    def _treatments_fit(self) -> DemoConfig:
        treatments, bases = self.treatments, self.pretrained
        if "standard" not in treatments or not bases.keys().isdisjoint(treatments):
            raise ValueError(
                "treatments: `standard` is required, and no treatment may have the name of a base"
            )
        for name, treatment in treatments.items():
            if treatment.base not in bases:
                raise ValueError(
                    f"treatments.{name}.base: {treatment.base!r} is not one of {', '.join(bases)}"
                )
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are sampled and measured: two of the bases, and all treatments."""
        return (*BASES, *self.treatments)

    @property
    def sft(self) -> SFTSettings:
        """The settings of the chosen strength."""
        return self.light if self.strength == "light" else self.hard
