"""What the demo, and every study on the storyworld, is told: bases, treatments, settings."""

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
    """One way of pretraining.

    Args:
        objective: `plain` or `annotated`.
        init: the base that it goes on from, in the place of fresh weights.
        share: of `pretrain.tokens` that it is trained on.
        tag_noise: share of tags, in SFT that starts from it too, whose value was drawn at random.
    """

    objective: Literal["plain", "annotated"]
    init: str | None = None
    share: float = Field(default=1.0, gt=0)
    tag_noise: float = Field(default=0.0, ge=0, le=1)


BASES = {"base": Base(objective="plain"), "annotated_base": Base(objective="annotated")}


class Treatment(Config):
    """One way of SFT.

    Args:
        base: what it starts from, by name.
        objective: see `segments.OBJECTIVES`.
        replay: instead of the study's own.
        documents: share of the examples that are pretraining documents with their tags, learnt
            whole, on top of the SFT data.
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
    """Pretraining of both bases: the same tokens, annotations included."""

    tokens: int = Field(default=2_200_000, gt=0)
    batch_size: int = Field(default=4, gt=0)
    learning_rate: float = Field(default=1e-2, gt=0)
    muon_learning_rate: float = Field(default=2e-2, gt=0)


class SFTSettings(Config):
    """Light SFT of all treatments: the same examples, the same optimizer.

    Small batches, because updates are what so short an SFT lacks: 250 of 16 examples each teach the
    form to half as many stories as 1,000 of 4, in the same time.
    """

    examples: int = Field(default=2000, gt=0)
    epochs: float = Field(default=2, gt=0)
    learning_rate: float = Field(default=1.5e-3, gt=0)
    adam_beta2: float = Field(default=0.98, gt=0, lt=1)
    batch_size: int = Field(default=4, gt=0)


class HardSFT(SFTSettings):
    """Hard SFT: as many updates at more than three times the rate."""

    learning_rate: float = Field(default=5e-3, gt=0)


class DemoConfig(Config):
    """The demo; every field can be overridden on the command line.

    Args:
        experiment: its name.
        size: of the storyworld.
        preset: of the models.
        vocab_size: at most; the small world's words need fewer.
        max_length: tokens in a packed row.
        seeds: one run each: data, weights, samples.
        regime: `broad`: SFT's semantics cover everything, `narrow_mass` of them on two or three
            values a key (the paper's case); `narrow`: nothing but those values.
        strength: `light` or `hard` SFT, with its settings below.
        narrow_mass: see `regime`.
        pretrain, light, hard, replay: settings of the stages.
        pretrained: by name; `base` and `annotated_base` are what gaps and drift are measured from.
        treatments: by name; `standard` is what the others are compared with.
        samples_per_prompt: stories sampled for each open prompt, for each seed and model.
        max_response_tokens: longer responses are cut.
        bases: where the pretrained bases are kept or found; inside the output folder if None.
        workers: stages that run at once.
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
            raise ValueError("needs `base` and `annotated_base`")
        known: set[str] = set()
        for name, base in pretrained.items():
            if base.init is not None and base.init not in known:
                raise ValueError(f"{name}.init: {base.init!r} is no base that stands before it")
            known.add(name)
        return pretrained

    @model_validator(mode="after")
    def _treatments_fit(self) -> DemoConfig:
        treatments, bases = self.treatments, self.pretrained
        if "standard" not in treatments or not bases.keys().isdisjoint(treatments):
            raise ValueError(
                "treatments: needs a treatment `standard`, and none named as a base is"
            )
        for name, treatment in treatments.items():
            if treatment.base not in bases:
                raise ValueError(
                    f"treatments.{name}.base: {treatment.base!r} is not one of {', '.join(bases)}"
                )
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """All that is sampled and measured: of the bases, the two that others are compared with."""
        return (*BASES, *self.treatments)

    @property
    def sft(self) -> SFTSettings:
        """The settings of the chosen strength."""
        return self.light if self.strength == "light" else self.hard
