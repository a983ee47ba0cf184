"""Measure how good texts are, beside how diverse: scores from 1 to 10, or a perplexity.

NoveltyBench's `utility_k` and the mean `quality` are computed from scores. Scores of different
sources are on different scales, so each has a `Stamp`. A perplexity is not a score and is reported
by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anchored.chat import undated
from anchored.data.generations import Generations, given_stamp, own
from anchored.errors import ConfigError, DataError
from anchored.metrics import noveltybench
from anchored.metrics.noveltybench import Stamp

REWARD_MODEL = "Skywork/Skywork-Reward-Gemma-2-27B-v0.2"  # the thresholds are for its rewards


@dataclass(frozen=True, slots=True)
class Grades:
    """The quality of one prompt's texts, as far as it is known.

    Attributes:
        scores: from 1 to 10; None if the first text of a class has no score.
        perplexity: perplexity of all texts together; None without a reference model or words.
    """

    scores: Sequence[float | None] | None = None
    perplexity: float | None = None


class Quality(Protocol):
    """A backend that grades texts; `results.json` names it with its version."""

    def as_json(self, sets: Sequence[Generations]) -> dict[str, Any]:
        """Return name and version.

        Raises:
            DataError: the sets' own scores are of different versions.
        """
        ...

    def read(self, found: Generations, p: int, partition: Sequence[int] | None) -> Grades:
        """Read the quality of prompt `p`; scores are None if a text that needs one lacks it."""
        ...


class GivenScores:
    """The files' own `generation_scores`."""

    def as_json(self, sets: Sequence[Generations]) -> dict[str, Any]:
        """See `Quality`."""
        return given_stamp(sets, "score").as_json()

    def read(self, found: Generations, p: int, partition: Sequence[int] | None) -> Grades:
        """See `Quality`.

        Raises:
            DataError: the first text of a class has no score in the file.
        """
        scores = own(found, p, found.scores[p], "generation_scores")
        try:
            for i in noveltybench.firsts(partition or ()):
                noveltybench.first_score(scores, i)
        except DataError as error:
            raise DataError(f"{found.name}: prompt {found.prompts[p][:60]!r}: {error}") from None
        return Grades(scores)


@dataclass(frozen=True)
class MadeScores:
    """Scores computed now: `score(prompt, texts)` returns one per text, None where it failed."""

    stamp: Stamp
    score: Callable[[str, Sequence[str]], Sequence[int | None]]

    def as_json(self, sets: Sequence[Generations]) -> dict[str, Any]:
        """See `Quality`."""
        return self.stamp.as_json()

    def read(self, found: Generations, p: int, partition: Sequence[int] | None) -> Grades:
        """See `Quality`."""
        scores = self.score(found.prompts[p], found.texts[p])
        unscored = any(scores[i] is None for i in noveltybench.firsts(partition or ()))
        return Grades() if unscored else Grades(scores)


class PerplexityUnder:
    """Perplexity of a prompt's texts under a reference model, over all their tokens together.

    Texts that contain nothing but white space are left out; `empty_rate` counts them.

    Raises:
        ConfigError: the model or its tokenizer cannot be loaded.
    """

    def __init__(self, source: str) -> None:
        from anchored.models.perplexity import ReferenceModel

        self.source = source
        self._model = ReferenceModel.load(source, _device())

    def as_json(self, sets: Sequence[Generations]) -> dict[str, Any]:
        """See `Quality`."""
        return {"perplexity": f"under {_label(self.source, self._model.model)}"}

    def read(self, found: Generations, p: int, partition: Sequence[int] | None) -> Grades:
        """See `Quality`."""
        from anchored.models.perplexity import pooled_perplexity

        texts = [text for text in found.texts[p] if text.strip()]
        if not texts:
            return Grades()
        losses = self._model.losses(texts, [found.prompts[p]] * len(texts))
        return Grades(perplexity=pooled_perplexity(losses))


class RewardModel:
    """A sequence classifier with one label that scores answers in its chat format.

    `score` maps rewards to v1.0's scale from 1 to 10 with the thresholds for `REWARD_MODEL`.

    Raises:
        ConfigError: the model cannot be loaded, has more than one label, or has no chat template.
    """

    def __init__(self, source: str, batch_size: int = 8) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from anchored.models.checkpoints import check_safe, quiet_transformers

        check_safe(f"quality reward:{source}", source)
        self.batch_size = batch_size
        try:
            with quiet_transformers():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(
                    source, trust_remote_code=False
                )
                model: Any = AutoModelForSequenceClassification.from_pretrained(
                    source, use_safetensors=True, trust_remote_code=False
                )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"quality reward:{source}: {reason}") from None
        if model.config.num_labels != 1 or not self._tokenizer.chat_template:
            raise ConfigError(
                f"quality reward:{source}: has {model.config.num_labels} labels and "
                f"{'a' if self._tokenizer.chat_template else 'no'} chat template; it needs one "
                "label, the reward, and a chat template"
            )
        self._model = model.to(_device()).eval()
        scale = "" if source == REWARD_MODEL else f" on the thresholds of {REWARD_MODEL}"
        self.stamp = Stamp("1.0", f"reward of {_label(source, model)}{scale}")

    def score(self, prompt: str, texts: Sequence[str]) -> list[int]:
        """Return each answer's score, 1 to 10."""
        return [noveltybench.reward_to_score(reward) for reward in self.rewards(prompt, texts)]

    def rewards(self, prompt: str, texts: Sequence[str]) -> list[float]:
        """Return raw rewards; all answers of a batch have one length, so none is padded."""
        ids = [self._ids(prompt, text) for text in texts]
        by_length: dict[int, list[int]] = {}
        for i, row in enumerate(ids):
            by_length.setdefault(len(row), []).append(i)
        rewards = [math.nan] * len(ids)
        for places in by_length.values():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                found = self._forward([ids[i] for i in batch])
                for i, reward in zip(batch, found, strict=True):
                    rewards[i] = reward
        return rewards

    def _ids(self, prompt: str, text: str) -> list[int]:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        template = undated(self._tokenizer)
        return list(self._tokenizer.apply_chat_template(turns, chat_template=template)["input_ids"])

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor(rows, device=self._model.device)).logits
        return logits[:, 0].float().tolist()


def load_quality(name: str) -> Quality | None:
    """Load `none`, `given`, `perplexity:<folder or hub id>` or `reward:<folder or hub id>`.

    Raises:
        ConfigError: the backend is unknown, or its model cannot be loaded.
    """
    kind, _, source = name.partition(":")
    if name == "none":
        return None
    if name == "given":
        return GivenScores()
    if kind == "perplexity" and source:
        return PerplexityUnder(source)
    if kind == "reward" and source:
        model = RewardModel(source)
        return MadeScores(model.stamp, model.score)
    raise ConfigError(
        f"quality {name!r}: unknown; use given, judge, perplexity:<folder or hub id>, "
        "reward:<folder or hub id> or none"
    )


def _label(source: str, model: Any) -> str:
    name = Path(source).resolve().name if Path(source).is_dir() else source
    revision = getattr(model.config, "_commit_hash", None)
    return f"{name}@{revision}" if revision else name


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
