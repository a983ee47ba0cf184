"""Implements `anchored preferences`: makes datasets for TRL's DPO and GRPO trainers.

The annotation is part of the prompt, and both answers of a pair follow the same annotation. So
preferences and rewards teach how to write a given annotation well, never which annotation to
choose: they change Q and leave R. If each answer of a pair had its own annotation, the pair would
teach which annotation is preferred.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import track

from anchored.annotation import Annotation
from anchored.config import Config, load_function, versions
from anchored.data.readers import SourceConfig, read_rows
from anchored.data.rows import Asked, asked_row
from anchored.data.store import MANIFEST
from anchored.errors import ConfigError, DataError
from anchored.files import building, claim, released_if_unused, weights_digest, write_json
from anchored.journal import Journal, content_key
from anchored.models.precision import DeviceMap, Dtype
from anchored.sampling.engine import Request, Sample, SampleConfig
from anchored.sampling.sampler import Sampler, load

DATA, CANDIDATES = "data", "candidates.jsonl"
UNDECIDED = "without a better answer"
CHUNK = 32  # prompts that are sampled, and saved, together
# TRL uses these names itself: it passes them to a reward, or removes them.
_TRLS = {
    "prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra",
    "log_metric", "environments",
}  # fmt: skip

Reward = Callable[..., Sequence[float | None]]
Row = dict[str, Any]


class PreferencesConfig(Config):
    """Configuration of `anchored preferences`.

    Args:
        out: output folder for config.yaml, candidates.jsonl, data/ (a `datasets.Dataset`) and
            manifest.json.
        model: the anchored model that samples annotations and answers, and is to be trained.
        source: rows `{prompt}` or `{messages}`, with or without an `annotation`, and for `dpo` with
            or without `chosen` and `rejected`. Other fields are passed to the reward.
        trainer: `dpo` for pairs of answers, `grpo` for prompts.
        reward: `module:function`, a reward function as TRL calls it; required for rows without
            answers.
        annotations: number of annotations to sample for a prompt without one.
        candidates: number of answers to sample per annotation; the best and the worst form the
            pair.
        annotation: `prompt` if both answers share the annotation in the prompt; `answer` if each
            answer has its own, so that preferences change R too (for comparison; annotations and
            answers are then sampled, and must not be given).
        sample: how annotations and answers are sampled.
        dtype, device_map: how the model is loaded; see `anchored.sampling.sampler.load`.
    """

    out: Path
    model: str
    source: SourceConfig
    trainer: Literal["dpo", "grpo"] = "dpo"
    reward: str | None = None
    annotations: int = Field(default=1, ge=1)
    candidates: int = Field(default=4, ge=2)
    annotation: Literal["prompt", "answer"] = "prompt"
    sample: SampleConfig = SampleConfig()
    dtype: Dtype = "auto"
    device_map: DeviceMap | None = None

    @model_validator(mode="after")
    def _for_grpo_in_the_prompt(self) -> PreferencesConfig:
        if self.trainer == "grpo" and self.annotation == "answer":
            raise ValueError(
                "annotation: answer works only with trainer: dpo; use annotation: prompt for grpo"
            )
        return self


@dataclass(frozen=True)
class AnnotatedPrompt:
    """A prompt with the annotation of its answers; None for a model that writes no annotations."""

    asked: Asked
    annotation: Annotation | None

    @property
    def prompt(self) -> list[Row]:
        """TRL's messages; an annotation is the assistant's unfinished last turn."""
        turns: list[Row] = [
            {"role": turn.role, "content": turn.content, "annotation": None}
            for turn in self.asked.turns
        ]
        if self.annotation is None:
            return turns
        return [*turns, {"role": "assistant", "content": "", "annotation": self.annotation.rows()}]


def build(config: PreferencesConfig, quiet: bool = False) -> Path:
    """Build the dataset, or resume building it; return its folder for `datasets.load_from_disk`.

    Raises:
        ConfigError: the model writes another format; the reward is missing, cannot be loaded or
            does not return one number per answer; or `config.out` belongs to another run.
        DataError: a row is invalid, no row is left, or the existing dataset was made by other
            weights of `config.model`.
    """
    folder = config.out / DATA
    console = Console(stderr=True, quiet=quiet)
    with released_if_unused(config.out):
        claim(config.out, config)
        weights = weights_digest(config.model)
        if folder.exists():
            _check_weights(config, weights)
            return folder
        rows = [read_asked(row, place) for place, row in read_rows(config.source)]
        maker = Maker.of(config, rows)
    console.print(maker.cost(rows))
    found: list[Row] = []
    dropped = Counter[str]()
    with Journal(config.out / CANDIDATES) as journal:
        starts = range(0, len(rows), CHUNK)
        bar = {"console": console, "transient": True, "disable": not console.is_interactive}
        for start in track(starts, "preferences", **bar):
            chunk = rows[start : start + CHUNK]
            key = content_key([weights, start, *(row.as_json() for row in chunk)])
            if journal.get(key) is None:
                made, lost = maker.make(chunk, start)
                journal.put(key, {"rows": made, "dropped": lost})
            kept = journal[key]
            found += kept["rows"]
            dropped.update(kept["dropped"])
    _write(config, folder, found, dropped, {"weights": weights, "asked": len(rows)})
    console.print(f"{folder}: {len(found)} rows; dropped: {_listed(dropped)}")
    return folder


def _check_weights(config: PreferencesConfig, weights: str) -> None:
    manifest = json.loads((config.out / MANIFEST).read_text(encoding="utf-8"))
    if weights not in (manifest["weights"], config.model):  # there is no digest of a missing model
        raise DataError(
            f"{config.out}: made by other weights of {config.model}; choose another output folder "
            "or remove this one"
        )


def _write(
    config: PreferencesConfig,
    folder: Path,
    rows: list[Row],
    dropped: Counter[str],
    origin: Mapping[str, Any],
) -> None:
    if not rows:
        way_out = (
            "sample more candidates or use another reward"
            if dropped[UNDECIDED]
            else f"train {config.model} to annotate first, or for longer"
        )
        raise DataError(
            f"{config.out}: no row is left of {origin['asked']}; dropped: {_listed(dropped)}; "
            f"{way_out}"
        )
    names = dict.fromkeys(
        name for row in rows for name in row
    )  # `from_list` takes those of the first row
    try:
        dataset = Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{config.source.path}: a field has different types: {error}; fix or remove the field"
        ) from None
    counts = {**origin, "rows": len(rows), "dropped": dict(+dropped)}
    manifest = {"config": config.model_dump(mode="json"), "versions": versions(), **counts}
    write_json(config.out / MANIFEST, manifest)
    with building(folder) as partial:
        dataset.save_to_disk(str(partial))


def _listed(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {why}" for why, count in sorted((+dropped).items())) or "none"


def read_asked(row: Mapping[str, Any], place: str) -> Asked:
    """Parse one row of the source.

    Raises:
        DataError: the row has no prompt, one answer without the other, an answer that is not a
            string, or a field whose name TRL uses.
    """
    asked = asked_row(row, place)
    if taken := sorted(_TRLS & asked.fields.keys()):
        raise DataError(
            f"{place}: {taken[0]}: TRL passes something else by this name; rename the field"
        )
    # Values without a JSON type become text, so that a journal can keep them.
    return replace(asked, fields=json.loads(json.dumps(asked.fields, default=str)))


@dataclass(frozen=True)
class Maker:
    """Turns rows into TRL's rows; `sampler` is None if there is nothing to sample."""

    config: PreferencesConfig
    sampler: Sampler | None
    reward: Reward | None

    @classmethod
    def of(cls, config: PreferencesConfig, rows: Sequence[Asked]) -> Maker:
        """Load the model and the reward, if any row needs them.

        Raises:
            ConfigError: the model or the reward is missing or unusable.
            DataError: answers are given without their annotation, or either is given although each
                answer is to have its own.
        """
        _check_rows(config, rows)
        answers = config.trainer == "dpo" and any(row.pair is None for row in rows)
        annotations = any(row.annotation is None for row in rows)
        reward = load_function(config.reward, "reward") if config.reward else None
        if answers and reward is None:
            raise ConfigError(
                "reward: missing; answers are sampled for rows without chosen and rejected, and a "
                "reward must compare them; set reward: module:function"
            )
        return cls(config, _sampler(config) if answers or annotations else None, reward)

    def cost(self, rows: Sequence[Asked]) -> str:
        """Return what will be sampled, at most."""
        config = self.config
        open_rows = [row for row in rows if config.trainer == "grpo" or row.pair is None]
        bare = [row for row in open_rows if row.annotation is None]
        prompts = len(open_rows) + len(bare) * (config.annotations - 1)
        annotations = len(bare) * config.annotations if config.annotation == "prompt" else 0
        answers = prompts * config.candidates if config.trainer == "dpo" else 0
        tokens = answers * config.sample.max_response_tokens
        return (
            f"{len(rows)} rows: {annotations} annotations and {answers} answers to sample, at most "
            f"{tokens:,} tokens of answers"
        )

    def make(self, rows: Sequence[Asked], first: int) -> tuple[list[Row], Counter[str]]:
        """Return rows for TRL, and counts of dropped ones by reason, from row number `first` on."""
        dropped = Counter[str]()
        prompts = self._annotate(rows, first, dropped)
        if self.config.trainer == "grpo":
            return [{"prompt": one.prompt, **one.asked.fields} for one in prompts], dropped
        open_ones = [one for one in prompts if one.asked.pair is None]
        sampled = iter(self._pairs(open_ones, first, dropped))
        pairs = [_given(one) if one.asked.pair else next(sampled) for one in prompts]
        return [pair for pair in pairs if pair is not None], dropped

    def _annotate(
        self, rows: Sequence[Asked], first: int, dropped: Counter[str]
    ) -> list[AnnotatedPrompt]:
        """Return each row with each of its annotations, sampled if it has none."""
        each = [
            row
            for row in rows
            for _ in range(1 if row.annotation is not None else self.config.annotations)
        ]
        if self.config.annotation == "answer" or not self._annotated:
            return [AnnotatedPrompt(row, row.annotation) for row in each]
        bare = [row for row in each if row.annotation is None]
        requests = [Request(row.turns, annotated=True, annotation_only=True) for row in bare]
        sampled = iter(self._sample(requests, first * self.config.annotations, "plans"))
        found = [
            AnnotatedPrompt(
                row, next(sampled).annotation if row.annotation is None else row.annotation
            )
            for row in each
        ]
        kept = [one for one in found if one.annotation is not None]
        dropped["without a readable annotation"] += len(found) - len(kept)
        return kept

    def _pairs(
        self, prompts: Sequence[AnnotatedPrompt], first: int, dropped: Counter[str]
    ) -> list[Row | None]:
        """Return a pair of sampled answers per prompt; None if the reward prefers neither."""
        count = self.config.candidates
        each = [one for one in prompts for _ in range(count)]
        requests = [self._request(one) for one in each]
        start = first * self.config.annotations * count
        samples = self._sample(requests, start, "answers")
        scores = self._scores(each, samples)
        found = []
        for at in range(0, len(each), count):
            group = list(zip(samples, scores, strict=True))[at : at + count]
            found.append(self._pair(each[at], group))
        dropped[UNDECIDED] += found.count(None)
        return found

    def _request(self, one: AnnotatedPrompt) -> Request:
        if self.config.annotation == "answer" or one.annotation is None:
            return Request(one.asked.turns, annotated=self._annotated)
        return Request(one.asked.turns, annotated=True, pinned=one.annotation, complete=True)

    def _scores(
        self, each: Sequence[AnnotatedPrompt], samples: Sequence[Sample]
    ) -> list[float | None]:
        """Call the reward function as TRL does; return one score per sample."""
        if not each:
            return []
        assert self.reward is not None
        answers = [[{"role": "assistant", "content": one.response}] for one in samples]
        fields = {name: [one.asked.fields.get(name) for one in each] for name in _names(each)}
        given = self.reward(prompts=[one.prompt for one in each], completions=answers, **fields)
        scores = [None if score is None else float(score) for score in given]
        if len(scores) != len(each) or not all(s is None or math.isfinite(s) for s in scores):
            raise ConfigError(
                f"reward: {self.config.reward}: gave {len(scores)} scores for {len(each)} answers; "
                "return one finite number, or None, per answer"
            )
        return scores

    def _pair(
        self, one: AnnotatedPrompt, group: Sequence[tuple[Sample, float | None]]
    ) -> Row | None:
        """Return the best and the worst of the complete answers; the first of equals."""
        whole = [
            (score, answer)
            for answer, score in group
            if score is not None and answer.finished and answer.response and not answer.malformed
        ]
        if not whole:
            return None
        best, worst = (choose(whole, key=lambda pair: pair[0]) for choose in (max, min))
        if best[0] == worst[0]:
            return None
        shared = one.annotation if self.config.annotation == "prompt" else None
        own = self.config.annotation == "answer"
        return {
            "prompt": AnnotatedPrompt(one.asked, shared).prompt,
            "chosen": [_message(best[1], own)],
            "rejected": [_message(worst[1], own)],
            "chosen_reward": best[0],
            "rejected_reward": worst[0],
        }

    def _sample(self, requests: Sequence[Request], first: int, what: str) -> list[Sample]:
        if not requests:
            return []
        assert self.sampler is not None
        # Annotations ("plans", as the seed has always had it) and answers are seeded separately.
        seed = random.Random(f"{self.config.sample.seed}:{what}").getrandbits(32)
        settings = self.config.sample.model_copy(update={"seed": seed})
        return self.sampler.sample(requests, settings, first=first)

    @property
    def _annotated(self) -> bool:
        return self.sampler is None or self.sampler.annotated


def _message(answer: Sample, own: bool) -> Row:
    turn: Row = {"role": "assistant", "content": answer.response}
    if own and answer.annotation is not None:
        turn["annotation"] = answer.annotation.rows()
    return turn


def _given(one: AnnotatedPrompt) -> Row:
    assert one.asked.pair is not None
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in one.asked.pair)
    return {"prompt": one.prompt, "chosen": chosen, "rejected": rejected}


def _names(each: Sequence[AnnotatedPrompt]) -> list[str]:
    return list(dict.fromkeys(name for one in each for name in one.asked.fields))


def _check_rows(config: PreferencesConfig, rows: Sequence[Asked]) -> None:
    if not rows:
        raise DataError(f"{config.source.path}: has no rows")
    for row in rows:
        if config.annotation == "answer" and (row.pair or row.annotation is not None):
            raise DataError(
                f"{row.place}: annotation: answer samples an annotation with each answer; remove "
                "annotation, chosen and rejected from the rows, or set annotation: prompt"
            )
        if config.trainer == "dpo" and row.pair and row.annotation is None:
            raise DataError(
                f"{row.place}: chosen and rejected have no annotation, and a sampled one would fit "
                "neither; add their annotation, or remove both answers to have a pair sampled"
            )


def _sampler(config: PreferencesConfig) -> Sampler:
    sampler = load(config.model, config.dtype, config.device_map)
    if sampler.chat != "anchored":
        raise ConfigError(
            f"model: {config.model}: has its own chat format and no annotations; use a model of "
            "`anchored sft`"
        )
    return sampler
