"""A model as lm-eval asks it: likelihoods of continuations and generated answers, annotation first.

Each item's annotation is sampled once, before its choices are scored or its answer is written, and
all choices share it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from pydantic import Field

from anchored.annotation import Annotation
from anchored.benchmark.likelihood import log_likelihoods
from anchored.benchmark.prompting import (
    Encoder,
    Prompt,
    Row,
    read_context,
    shared_prompt,
    write_context,
)
from anchored.config import Config, validated
from anchored.errors import ConfigError, DataError
from anchored.sampling.engine import Request, SampleConfig, Sampling, sample
from anchored.sampling.run import Source

MAX_ANSWER_TOKENS = 256  # lm-eval's own, for tasks that state none
_HONOURED = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "min_p"}
_WITHOUT_EFFECT = {"num_beams": 1, "top_k": 0, "repetition_penalty": 1.0}

Place = tuple[int, int]


class AnnotationConfig(Config):
    """How annotations are sampled.

    Args:
        sampling: of the annotation; temperature 1 by default, as in the paper.
        max_tokens: one that has not closed by then is malformed.
        retries: how often a malformed one is sampled anew; then an empty one takes its place.
    """

    sampling: Sampling = Sampling()
    max_tokens: int = Field(default=160, gt=0)
    retries: int = Field(default=3, ge=0)


@dataclass(frozen=True)
class Plan:
    """What stands before a model's continuations.

    Args:
        mode: no annotation, one that the model samples after `pinned`, or `pinned` alone.
        pinned: tags given by the user.
        config: how the others are sampled.
    """

    mode: Literal["none", "sampled", "given"] = "none"
    pinned: Annotation = Annotation()  # noqa: RUF009 (frozen)
    config: AnnotationConfig = AnnotationConfig()  # noqa: RUF009 (frozen)


class AnchoredLM(LM):
    """lm-eval's view of a model; one task at a time.

    Args:
        source: the model and what is known of it.
        chat: tasks are put as conversations, otherwise as documents.
        plan: what stands before the continuations.
        width: entries of the vocabulary that count, see `log_likelihoods`.
        batch_size: sequences run together; results do not depend on it.
        seed: of annotations and of answers that a task wants sampled.
    """

    def __init__(
        self, source: Source, chat: bool, plan: Plan, width: int, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self.source, self.chat, self.plan = source, chat, plan
        limit = getattr(source.model.config.get_text_config(), "max_position_embeddings", None)
        self._encoder = Encoder(source, chat, limit)
        self._width, self._batch_size, self._seed = width, batch_size, seed
        self.begin("")

    def begin(
        self, task: str, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Starts a task: its name goes into the seeds, its counts and annotations start anew.

        `progress` is called with the annotations and requests done since its last call, and their
        number in all.
        """
        self._task, self._progress, self._total = task, progress, 0
        self.annotations: dict[int, list[Annotation]] = {}
        self.malformed = 0
        self.truncated = 0

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding would write it.

        Raises:
            DataError: a continuation is longer than what the model reads.
        """
        prompts = [read_context(str(request.arguments[0]), self.chat) for request in requests]
        places = [(int(r.doc_id or 0), int(r.arguments[0] == "")) for r in requests]
        self._expect(requests, places)
        plans = self._shared_plans(requests, prompts, places)
        rows = [
            self._fitted(self._encoder.to_score(prompt, str(request.arguments[1]), plans[place]))
            for request, prompt, place in zip(requests, prompts, places, strict=True)
        ]
        model = self.source.model.eval()
        return log_likelihoods(model, rows, self._batch_size, self._width, self._step)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers, each cut at the first of the task's `until` strings, without annotations.

        Raises:
            ConfigError: the task asks for a way of decoding that is not honoured.
        """
        options = _generation(self._task, requests[0].arguments[1])
        sampling = _sampling(self._task, options)
        prompts = [read_context(str(request.arguments[0]), self.chat) for request in requests]
        repeats = Counter[int]()
        places: list[Place] = []
        for request in requests:
            doc = int(request.doc_id or 0)
            places.append((doc, repeats[doc]))
            repeats[doc] += 1
        self._expect(requests, places)
        plans = self._plans(dict(zip(places, prompts, strict=True)))
        contexts = [
            self._encoder.to_continue(prompt, plans[place])
            for prompt, place in zip(prompts, places, strict=True)
        ]
        limit = options["max_gen_toks"]
        asked = [
            Request(prefix=self._room(context, limit, "generation_kwargs.max_gen_toks"))
            for context in contexts
        ]
        config = SampleConfig(
            response=sampling,
            max_response_tokens=limit,
            batch_size=self._batch_size,
            seed=self._seeded("answers"),
        )
        source = self.source
        found = sample(source.model, source.tokenizer, asked, config, progress=self._step)
        return [_until(answer.response, options["until"]) for answer in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not offered: `tasks.load_tasks` refuses the tasks that ask for it."""
        raise NotImplementedError("likelihoods of whole documents")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Messages as a context that keeps them apart; see `prompting.write_context`."""
        return write_context(chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval would tell cached requests apart by."""
        return self.source.tokenizer.fingerprint

    def _shared_plans(
        self, requests: Sequence[Instance], prompts: Sequence[Prompt], places: Sequence[Place]
    ) -> dict[Place, Annotation | None]:
        """One annotation for all choices of an item."""
        groups: dict[Place, list[Prompt]] = {}
        for request, prompt, place in zip(requests, prompts, places, strict=True):
            before, _ = self._encoder.with_space(prompt, str(request.arguments[1]))
            groups.setdefault(place, []).append(before)
        return self._plans({place: shared_prompt(group) for place, group in groups.items()})

    def _expect(self, requests: Sequence[Instance], places: Sequence[Place]) -> None:
        annotations = len(set(places)) if self.plan.mode == "sampled" else 0
        self._total = annotations + len(requests)

    def _step(self, done: int) -> None:
        self._progress(done, self._total)

    def _plans(self, prompts: dict[Place, Prompt]) -> dict[Place, Annotation | None]:
        if self.plan.mode == "none":
            return dict.fromkeys(prompts)
        if self.plan.mode == "given":
            found = dict.fromkeys(prompts, self.plan.pinned)
        else:
            found = dict(zip(prompts, self._sampled(list(prompts.values())), strict=True))
        for (doc, _), annotation in found.items():
            self.annotations.setdefault(doc, []).append(annotation)
        return dict(found)

    def _sampled(self, prompts: Sequence[Prompt]) -> list[Annotation]:
        config, source, pinned = self.plan.config, self.source, self.plan.pinned
        room = config.max_tokens + len(self._encoder.annotation(pinned))
        prefixes = [
            self._room(self._encoder.opening(prompt), room, "annotation.max_tokens")
            for prompt in prompts
        ]
        asked = [
            Request(prefix=prefix, annotated=True, pinned=pinned, plan_only=True)
            for prefix in prefixes
        ]
        options = SampleConfig(
            annotation=config.sampling,
            max_annotation_tokens=config.max_tokens,
            retries=config.retries,
            batch_size=self._batch_size,
            seed=self._seeded("annotations"),
        )
        found = sample(source.model, source.tokenizer, asked, options, source.schema, self._step)
        self.malformed += sum(answer.malformed for answer in found)
        return [answer.annotation or Annotation() for answer in found]

    def _seeded(self, part: str) -> int:
        """A seed of this task's own, so that annotation and answer draw different numbers."""
        text = f"{self._seed}:{self._task}:{part}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")

    def _fitted(self, row: Row) -> Row:
        # The last target token is predicted and never read.
        behind = max(0, len(row.target) - 1)
        if self._encoder.limit is not None and behind >= self._encoder.limit:
            raise DataError(
                f"task {self._task}: a continuation has {len(row.target)} tokens, and "
                f"{self.source.name} reads {self._encoder.limit}; use another model or task"
            )
        context = self._encoder.fitted(row.context, behind)
        self.truncated += context is not row.context
        return Row(context, row.target)

    def _room(self, context: list[int], wanted: int, what: str) -> tuple[int, ...]:
        """`context`, cut to leave room for `wanted` tokens that the model is to write."""
        limit = self._encoder.limit
        if limit is not None and wanted >= limit:
            raise ConfigError(
                f"task {self._task}: {what} takes {wanted} tokens, and {self.source.name} reads "
                f"{limit} in all; lower it"
            )
        fitted = self._encoder.fitted(context, wanted)
        self.truncated += fitted is not context
        return tuple(fitted)


def _generation(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """The task's `generation_kwargs`, by the names and defaults of lm-eval."""
    options: dict[str, Any] = dict(normalize_gen_kwargs(given, MAX_ANSWER_TOKENS))
    for name, value in options.items():
        if name not in _HONOURED and _WITHOUT_EFFECT.get(name) != value:
            raise ConfigError(
                f"task {task}: generation_kwargs.{name} = {value!r} is not honoured; known are "
                f"{', '.join(sorted(_HONOURED))}"
            )
    return options


def _sampling(task: str, options: dict[str, Any]) -> Sampling:
    if not options["do_sample"]:
        return Sampling(temperature=0)
    kept = {name: options[name] for name in ("temperature", "top_p", "min_p") if name in options}
    return validated(Sampling, kept, source=f"task {task}: generation_kwargs")


def _until(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of any of `stops`."""
    return text[
        : min(
            (place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text)
        )
    ]
