"""`anchored preferences`: prompts or pairs to what TRL's DPO and GRPO trainers take.

The annotation is part of the prompt, and both answers of a pair stand behind the same one. So
preferences and rewards say how to tell a plan well, never which plan to take: they move Q and leave
R. A pair whose answers had plans of their own would teach which plan is liked.
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
from anchored.sampling.engine import Request, Sample, SampleConfig, sample
from anchored.sampling.run import Source, load

DATA, CANDIDATES = "data", "candidates.jsonl"
UNDECIDED = "without a better answer"
CHUNK = 32  # prompts that are sampled, and kept, together
# What TRL gives to a reward, or keeps from it, under these names itself.
_TRLS = {
    "prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra",
    "log_metric", "environments",
}  # fmt: skip

Reward = Callable[..., Sequence[float | None]]
Row = dict[str, Any]


class PreferencesConfig(Config):
    """What is built.

    Args:
        out: folder: config.yaml, candidates.jsonl, data/ (a `datasets.Dataset`), manifest.json.
        model: the anchored model that writes plans and answers, and is to be trained.
        source: rows `{prompt}` or `{messages}`, with or without an `annotation`, and for `dpo` with
            or without `chosen` and `rejected`. Other fields are given to the reward.
        trainer: `dpo`: pairs of answers; `grpo`: prompts.
        reward: `module:function`, a reward function as TRL calls it; for rows without answers.
        annotations: plans sampled for each prompt that has none.
        candidates: answers sampled under each plan; the best and the worst become the pair.
        annotation: where it stands: in the `prompt`, or, each answer's own, in the `answer`, where
            preferences move R too (for comparison; plans and answers are sampled, none is given).
        sample: how plans and answers are sampled.
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

    @model_validator(mode="after")
    def _for_grpo_in_the_prompt(self) -> PreferencesConfig:
        if self.trainer == "grpo" and self.annotation == "answer":
            raise ValueError("annotation: answer is for trainer: dpo; GRPO's prompts hold the plan")
        return self


@dataclass(frozen=True)
class Planned:
    """A prompt with the plan of its answers; None for a model that writes no annotations."""

    asked: Asked
    annotation: Annotation | None

    @property
    def prompt(self) -> list[Row]:
        """TRL's messages; the plan, if there is one, is the assistant's unfinished last turn."""
        turns: list[Row] = [
            {"role": turn.role, "content": turn.content, "annotation": None}
            for turn in self.asked.turns
        ]
        if self.annotation is None:
            return turns
        return [*turns, {"role": "assistant", "content": "", "annotation": self.annotation.rows()}]


def build(config: PreferencesConfig, quiet: bool = False) -> Path:
    """Builds the dataset, or goes on with it; returns its folder, for `datasets.load_from_disk`.

    Raises:
        ConfigError: the model writes another format, the reward is missing, cannot be loaded or
            gives something else than a number an answer, or `config.out` holds another run.
        DataError: a row is not what it has to be, no row is left, or `config.model` has other
            weights than the dataset that is there was made by.
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
    if weights not in (manifest["weights"], config.model):  # a model that is gone has no digest
        raise DataError(
            f"{config.out}: made by other weights of {config.model}; choose another output folder, "
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
            "more candidates or another reward may tell answers apart"
            if dropped[UNDECIDED]
            else f"{config.model} has to learn to annotate first, or longer"
        )
        raise DataError(
            f"{config.out}: no row is left of {origin['asked']}; dropped: {_listed(dropped)}; "
            f"{way_out}"
        )
    names = dict.fromkeys(name for row in rows for name in row)  # `from_list` takes the first's
    try:
        dataset = Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{config.source.path}: a field has not one type in all rows: {error}; mend or drop it"
        ) from None
    counts = {**origin, "rows": len(rows), "dropped": dict(+dropped)}
    manifest = {"config": config.model_dump(mode="json"), "versions": versions(), **counts}
    write_json(config.out / MANIFEST, manifest)
    with building(folder) as partial:
        dataset.save_to_disk(str(partial))


def _listed(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {why}" for why, count in sorted((+dropped).items())) or "none"


def read_asked(row: Mapping[str, Any], place: str) -> Asked:
    """One row of the source.

    Raises:
        DataError: no prompt, one answer without the other, an answer that is no text, or a field
            with a name of TRL's.
    """
    asked = asked_row(row, place)
    if taken := sorted(_TRLS & asked.fields.keys()):
        raise DataError(
            f"{place}: {taken[0]}: TRL gives rewards something else by that name; rename the field"
        )
    # What JSON has no type for becomes text: a journal keeps it.
    return replace(asked, fields=json.loads(json.dumps(asked.fields, default=str)))


@dataclass(frozen=True)
class Maker:
    """What turns rows into TRL's; `source` is None where nothing is to be sampled."""

    config: PreferencesConfig
    source: Source | None
    reward: Reward | None

    @classmethod
    def of(cls, config: PreferencesConfig, rows: Sequence[Asked]) -> Maker:
        """The model and the reward, if any row needs them.

        Raises:
            ConfigError: one of them is missing or of no use.
            DataError: answers are given without the annotation that they stand behind, or either is
                given where each answer is to have its own.
        """
        _check_rows(config, rows)
        answers = config.trainer == "dpo" and any(row.pair is None for row in rows)
        plans = any(row.annotation is None for row in rows)
        reward = load_function(config.reward, "reward") if config.reward else None
        if answers and reward is None:
            raise ConfigError(
                "reward: missing; rows without chosen and rejected are sampled, and a reward says "
                "which answer is better: reward: module:function"
            )
        return cls(config, _source(config.model) if answers or plans else None, reward)

    def cost(self, rows: Sequence[Asked]) -> str:
        """What will be sampled, at most."""
        config = self.config
        open_rows = [row for row in rows if config.trainer == "grpo" or row.pair is None]
        unplanned = [row for row in open_rows if row.annotation is None]
        prompts = len(open_rows) + len(unplanned) * (config.annotations - 1)
        plans = len(unplanned) * config.annotations if config.annotation == "prompt" else 0
        answers = prompts * config.candidates if config.trainer == "dpo" else 0
        tokens = answers * config.sample.max_response_tokens
        return (
            f"{len(rows)} rows: {plans} annotations and {answers} answers to sample, at most "
            f"{tokens:,} tokens of answers"
        )

    def make(self, rows: Sequence[Asked], first: int) -> tuple[list[Row], Counter[str]]:
        """Rows for TRL, and what was dropped and why; `first` is the place of the first row."""
        dropped = Counter[str]()
        planned = self._planned(rows, first, dropped)
        if self.config.trainer == "grpo":
            return [{"prompt": one.prompt, **one.asked.fields} for one in planned], dropped
        open_ones = [one for one in planned if one.asked.pair is None]
        sampled = iter(self._pairs(open_ones, first, dropped))
        pairs = [_given(one) if one.asked.pair else next(sampled) for one in planned]
        return [pair for pair in pairs if pair is not None], dropped

    def _planned(self, rows: Sequence[Asked], first: int, dropped: Counter[str]) -> list[Planned]:
        """Each row with each of its plans."""
        each = [
            row
            for row in rows
            for _ in range(1 if row.annotation is not None else self.config.annotations)
        ]
        if self.config.annotation == "answer" or not self._annotated:
            return [Planned(row, row.annotation) for row in each]
        unplanned = [row for row in each if row.annotation is None]
        requests = [Request(row.turns, annotated=True, plan_only=True) for row in unplanned]
        plans = iter(self._sample(requests, first * self.config.annotations, "plans"))
        found = [
            Planned(row, row.annotation if row.annotation is not None else next(plans).annotation)
            for row in each
        ]
        kept = [one for one in found if one.annotation is not None]
        dropped["without a readable annotation"] += len(found) - len(kept)
        return kept

    def _pairs(
        self, planned: Sequence[Planned], first: int, dropped: Counter[str]
    ) -> list[Row | None]:
        """A pair of sampled answers for each prompt; None where the reward tells none apart."""
        count = self.config.candidates
        each = [one for one in planned for _ in range(count)]
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

    def _request(self, one: Planned) -> Request:
        if self.config.annotation == "answer" or one.annotation is None:
            return Request(one.asked.turns, annotated=self._annotated)
        return Request(one.asked.turns, annotated=True, pinned=one.annotation, complete=True)

    def _scores(self, each: Sequence[Planned], samples: Sequence[Sample]) -> list[float | None]:
        """Rewards, as TRL asks for them."""
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
                "it has to return one finite number, or None, for each"
            )
        return scores

    def _pair(self, one: Planned, group: Sequence[tuple[Sample, float | None]]) -> Row | None:
        """The best and the worst of the whole answers; the first of equals."""
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
        plan = one.annotation if self.config.annotation == "prompt" else None
        own = self.config.annotation == "answer"
        return {
            "prompt": Planned(one.asked, plan).prompt,
            "chosen": [_message(best[1], own)],
            "rejected": [_message(worst[1], own)],
            "chosen_reward": best[0],
            "rejected_reward": worst[0],
        }

    def _sample(self, requests: Sequence[Request], first: int, what: str) -> list[Sample]:
        if not requests:
            return []
        assert self.source is not None
        # Plans and answers take numbers of their own.
        seed = random.Random(f"{self.config.sample.seed}:{what}").getrandbits(32)
        settings = self.config.sample.model_copy(update={"seed": seed})
        source = self.source
        return sample(
            source.model, source.tokenizer, requests, settings, source.schema, first=first
        )

    @property
    def _annotated(self) -> bool:
        return self.source is None or self.source.annotated


def _message(answer: Sample, own: bool) -> Row:
    turn: Row = {"role": "assistant", "content": answer.response}
    if own and answer.annotation is not None:
        turn["annotation"] = answer.annotation.rows()
    return turn


def _given(one: Planned) -> Row:
    assert one.asked.pair is not None
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in one.asked.pair)
    return {"prompt": one.prompt, "chosen": chosen, "rejected": rejected}


def _names(each: Sequence[Planned]) -> list[str]:
    return list(dict.fromkeys(name for one in each for name in one.asked.fields))


def _check_rows(config: PreferencesConfig, rows: Sequence[Asked]) -> None:
    if not rows:
        raise DataError(f"{config.source.path}: no rows")
    for row in rows:
        if config.annotation == "answer" and (row.pair or row.annotation is not None):
            raise DataError(
                f"{row.place}: annotation: answer has each answer sampled with its own; leave "
                "annotation, chosen and rejected out of the rows, or set annotation: prompt"
            )
        if config.trainer == "dpo" and row.pair and row.annotation is None:
            raise DataError(
                f"{row.place}: chosen and rejected without the annotation that both stand behind; "
                "a sampled one would fit neither. Add it, or leave both answers out to have a pair "
                "sampled"
            )


def _source(model: str) -> Source:
    source = load(model)
    if source.chat != "anchored":
        raise ConfigError(
            f"model: {model}: has a chat format of its own, and no annotations; use a model of "
            "`anchored sft`"
        )
    return source
