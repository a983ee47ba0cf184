"""The configuration of `anchored evaluate`: models, benchmarks, roles, sampling and readers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from anchored.benchmark.compare import Margins, Roles
from anchored.benchmark.generate import ENDPOINT, ModelSource
from anchored.config import Config
from anchored.errors import ConfigError
from anchored.sampling.engine import SampleConfig
from anchored.scoring.backends import ReadersConfig

BASE, SFT = "base", "sft"


class EvaluateConfig(Config):
    """What to sample, how to read it and what to compare.

    Args:
        out: folder for samples, results.json and table.md.
        models: models by name; those called `base` and `sft` have these roles by default.
        benchmarks: see `load_benchmark`.
        base, sft: names of the models between which a collapse is measured.
        seeds: one set of samples is made for each seed.
        temperatures: response temperatures, with one set of samples each. Tables show temperature 1
            if it is among them, else the first; several temperatures give a frontier.
        samples: samples per prompt; by default the benchmark's own number.
        limit: use only this many prompts of each benchmark, from the first on.
        max_tokens: most tokens of a response; by default the benchmark's own number.
        sample: all other sampling options. Seed, response temperature and response limit come from
            the fields above.
        concurrency: most concurrent requests to an endpoint.
        readers: backends of `anchored score`.
        margins: how far a treatment may fall behind SFT.
    """

    out: Path
    models: dict[str, ModelSource] = Field(min_length=1)
    benchmarks: tuple[str, ...] = Field(min_length=1)
    base: str | None = None
    sft: str | None = None
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    temperatures: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    samples: int | None = Field(default=None, ge=2)
    limit: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    sample: SampleConfig = SampleConfig()
    concurrency: int = Field(default=64, ge=1)
    readers: ReadersConfig = ReadersConfig()
    margins: Margins = Margins()

    @field_validator("models")
    @classmethod
    def _names_of_folders(cls, models: dict[str, ModelSource]) -> dict[str, ModelSource]:
        for name in models:
            if not name.strip(".") or any(c in '/\\:*?"<>|' or ord(c) < 32 for c in name):
                raise ValueError(f"{name!r} is not a valid folder name; rename the model")
        return models

    @field_validator("seeds", "temperatures")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values) or min(values) < 0:
            raise ValueError("give each value once, and none below 0")
        if not all(map(math.isfinite, values)):
            raise ValueError("give finite numbers")
        return values

    @field_validator("readers")
    @classmethod
    def _no_given_scores(cls, readers: ReadersConfig) -> ReadersConfig:
        if "given" in (readers.quality, readers.equivalence):
            raise ValueError("new samples have no scores or partition; choose another backend")
        return readers

    @field_validator("sample")
    @classmethod
    def _nothing_twice(cls, sample: SampleConfig) -> SampleConfig:
        fresh = SampleConfig()
        if (sample.seed, sample.response.temperature, sample.max_response_tokens) != (
            fresh.seed,
            fresh.response.temperature,
            fresh.max_response_tokens,
        ):
            raise ValueError("set seed, temperature and limit with seeds, temperatures, max_tokens")
        return sample

    @model_validator(mode="after")
    def _known_roles(self) -> EvaluateConfig:
        for role, name in (("base", self.base), ("sft", self.sft)):
            if name is not None and name not in self.models:
                known = ", ".join(self.models)
                raise ValueError(f"{role}: no model is called {name!r}; use one of {known}")
        if self.base is not None and self.base == self.sft:
            raise ValueError(f"base and sft are both {self.base!r}; name two models")
        given = [name for name in (self.base, self.sft) if name is not None]
        if given and self.roles is None:
            raise ValueError("a collapse is measured between two models; name both base and sft")
        return self

    @property
    def roles(self) -> Roles | None:
        """The models named for the roles, or those called `base` and `sft`."""
        base, sft = self.base or BASE, self.sft or SFT
        return Roles(base, sft) if {base, sft} <= self.models.keys() and base != sft else None

    @property
    def main_temperature(self) -> float:
        """The temperature that tables show."""
        return 1.0 if 1.0 in self.temperatures else self.temperatures[0]

    @property
    def order(self) -> list[str]:
        """The models' names, base and SFT first."""
        first = [self.roles.base, self.roles.sft] if self.roles else []
        return [*first, *(name for name in self.models if name not in first)]


def named_models(
    words: Sequence[str], ask: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Turn `NAME=MODEL` words into the `models` field of an `EvaluateConfig`.

    A model without a name is called by its folder (`runs/my/anchored/model` is `anchored`), the
    last part of its hub id, or its name at the endpoint.

    Args:
        words: the models.
        ask: `NAME=chat` or `NAME=prefill`.
        settings: fields of every `ModelSource`.

    Raises:
        ConfigError: a name is given twice, or `ask` names an unknown model.
    """
    asked = {name: how for name, _, how in (word.partition("=") for word in ask)}
    models: dict[str, dict[str, Any]] = {}
    for word in words:
        name, source = _named(word)
        if name in models:
            raise ConfigError(f"model {name!r} is given twice; rename one with NAME=MODEL")
        own = {"ask": asked.pop(name)} if name in asked else {}
        models[name] = {"source": source, **settings, **own}
    if asked:
        raise ConfigError(
            f"--ask {next(iter(asked))}: no model has this name; use one of {', '.join(models)}"
        )
    return models


def _named(word: str) -> tuple[str, str]:
    name, separator, source = word.partition("=")
    if separator and "/" not in name:
        return name, source
    path = word.rpartition("#")[2] if word.startswith(ENDPOINT) else word
    parts = [part for part in path.split("/") if part not in ("", "model")]
    return (parts or [path])[-1], word
