"""lm-eval's Hugging Face model, extended to answer after an annotation.

`HFLM` scores and batches. This module adds annotations: one is sampled per item, before its choices
are scored or its answer is written, and all choices share it. Control tokens are inserted by id.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from pydantic import Field

from anchored.annotation import Annotation
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
from anchored.sampling.engine import Request, SampleConfig, Sampling
from anchored.sampling.sampler import LocalSampler

_HONOURED = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "min_p"}
_WITHOUT_EFFECT = {"num_beams": 1, "top_k": 0, "repetition_penalty": 1.0}

Place = tuple[int, int]
_HFLM: Any = HFLM  # its decorator hides its type


class AnnotationConfig(Config):
    """How annotations are sampled.

    Args:
        sampling: sampling parameters of the annotation; temperature 1 by default, as in the paper.
        max_tokens: an annotation not closed within this many tokens is malformed.
        retries: how often a malformed annotation is sampled again before an empty one replaces it.
    """

    sampling: Sampling = Sampling()
    max_tokens: int = Field(default=160, gt=0)
    retries: int = Field(default=3, ge=0)


@dataclass(frozen=True)
class Lead:
    """What precedes a model's continuations.

    Args:
        mode: `none`: no annotation; `sampled`: the model samples one after `pinned`; `given`:
            only `pinned`.
        pinned: tags given by the user.
        config: how the other tags are sampled.
    """

    mode: Literal["none", "sampled", "given"] = "none"
    pinned: Annotation = Annotation()  # noqa: RUF009 (frozen)
    config: AnnotationConfig = AnnotationConfig()  # noqa: RUF009 (frozen)


class AnchoredLM(_HFLM):
    """lm-eval's Hugging Face model with the encoding and the annotations of this package.

    Args:
        source: the model with its tokenizer and schema.
        chat: True if tasks are put as conversations, False if as documents.
        lead: what precedes the continuations.
        width: vocabulary entries that count. The control tokens that were added to a foreign
            model's tokenizer come after them; its probabilities must leave these out.
        batch_size: sequences per batch, or `auto`; results do not depend on it.
        seed: seed of annotations, and of answers if a task samples them.
    """

    def __init__(
        self,
        source: LocalSampler,
        chat: bool,
        lead: Lead,
        width: int,
        batch_size: int | Literal["auto"],
        seed: int,
    ) -> None:
        limit = getattr(source.model.config.get_text_config(), "max_position_embeddings", None)
        with without_notices():  # it would warn that the model is already loaded
            super().__init__(
                source.model,
                backend="causal",
                tokenizer=source.tokenizer.hf,
                max_length=limit or sys.maxsize,  # 2048 otherwise
                batch_size=batch_size,
                softmax_dtype="float32",  # not rounded to a bfloat16's 8 bits
            )
        self.source, self.chat, self.lead = source, chat, lead
        self._encoder = Encoder(source, chat, limit)
        self._width, self._seed = width, seed
        self._scored = self.max_length
        self.cache_hook.add_partial = lambda *answer: self._step(1)  # once per answer scored
        self.begin("")

    def begin(
        self, task: str, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Start a task: put its name into the seeds, and reset counts and annotations.

        `progress` is called with the number of annotations and requests done since its last call,
        and their total.
        """
        self._task, self._progress, self._total = task, progress, 0
        self.annotations: dict[int, list[Annotation]] = {}
        self.malformed = 0
        self.truncated = 0

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-probability, and whether greedy decoding would write it.

        An empty continuation has log-probability 0.

        Raises:
            DataError: a continuation is longer than the model's context.
        """
        prompts = [read_context(str(request.arguments[0]), self.chat) for request in requests]
        places = [(int(r.doc_id or 0), int(r.arguments[0] == "")) for r in requests]
        self._expect(requests, places)
        shared = self._shared_annotations(requests, prompts, places)
        rows = [
            self._fitted(self._encoder.to_score(prompt, str(request.arguments[1]), shared[place]))
            for request, prompt, place in zip(requests, prompts, places, strict=True)
        ]
        asked = {i: row for i, row in enumerate(rows) if row.target}
        self.logits_cache = _ends_apart(asked.values())
        self._scored = max((len(row.target) for row in asked.values()), default=0)
        found = self._loglikelihood_tokens(
            [(requests[i].arguments, row.context, row.target) for i, row in asked.items()],
            disable_tqdm,
        )
        answers = dict(zip(asked, found, strict=True))
        return [answers.get(i, (0.0, True)) for i in range(len(rows))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return answers without their annotations, cut at the first of the task's `until` strings.

        Raises:
            ConfigError: the task asks for a decoding option that is not supported.
        """
        options = _generation(self._task, requests[0].arguments[1], self.max_gen_toks)
        sampling = _sampling(self._task, options)
        prompts = [read_context(str(request.arguments[0]), self.chat) for request in requests]
        repeats = Counter[int]()
        places: list[Place] = []
        for request in requests:
            doc = int(request.doc_id or 0)
            places.append((doc, repeats[doc]))
            repeats[doc] += 1
        self._expect(requests, places)
        annotations = self._annotations(dict(zip(places, prompts, strict=True)))
        contexts = [
            self._encoder.to_continue(prompt, annotations[place])
            for prompt, place in zip(prompts, places, strict=True)
        ]
        limit = options["max_gen_toks"]
        prefixes = [
            self._room(context, limit, "generation_kwargs.max_gen_toks") for context in contexts
        ]
        config = SampleConfig(
            response=sampling,
            max_response_tokens=limit,
            batch_size=self._batch(prefixes, limit),
            seed=self._seeded("answers"),
        )
        asked = [Request(prefix=prefix) for prefix in prefixes]
        found = self.source.sample(asked, config, progress=self._step)
        return [
            postprocess_generated_text(answer.response, options["until"], None) for answer in found
        ]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Raise: not supported; `tasks.load_tasks` rejects the tasks that need it."""
        raise NotImplementedError("likelihoods of whole documents")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a context that keeps the messages apart; see `prompting.write_context`."""
        return write_context(chat_history, add_generation_prompt)

    @torch.inference_mode()
    def _model_call(self, inps: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K, V) of the last K positions, which cover all scored ones of (B, T).

        `HFLM` counts a row's positions from the end. The projection to the vocabulary takes most
        of the memory.
        """
        # Rows are padded with 0 on the right. Ids of 0 that are not padding only increase K.
        places = torch.arange(inps.shape[1], device=inps.device)
        shortest = int(places.where(inps != 0, 0).amax(1).min()) + 1
        kept = min(inps.shape[1] - shortest + self._scored, inps.shape[1])
        logits = self.model(input_ids=inps, use_cache=False, logits_to_keep=kept).logits
        return logits[..., : self._width]

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        """Measure it as `HFLM` does, with all logits: rows of a later batch may be very unequal."""
        scored, self._scored = self._scored, self.max_length
        found = super()._detect_batch_size(requests, pos)
        self._scored = scored
        return found

    def _batch(self, prefixes: Sequence[tuple[int, ...]], room: int) -> int:
        """Return how many sequences, each a prefix and `room` more tokens, to sample together."""
        if self.batch_size != "auto":
            return self.batch_size
        longest = max(prefixes, key=len)
        return self._detect_batch_size([("", longest, (0,) * room)])

    def _shared_annotations(
        self, requests: Sequence[Instance], prompts: Sequence[Prompt], places: Sequence[Place]
    ) -> dict[Place, Annotation | None]:
        """Return one annotation for all choices of an item."""
        groups: dict[Place, list[Prompt]] = {}
        for request, prompt, place in zip(requests, prompts, places, strict=True):
            before, _ = self._encoder.with_space(prompt, str(request.arguments[1]))
            groups.setdefault(place, []).append(before)
        return self._annotations({place: shared_prompt(group) for place, group in groups.items()})

    def _expect(self, requests: Sequence[Instance], places: Sequence[Place]) -> None:
        annotations = len(set(places)) if self.lead.mode == "sampled" else 0
        self._total = annotations + len(requests)

    def _step(self, done: int) -> None:
        self._progress(done, self._total)

    def _annotations(self, prompts: dict[Place, Prompt]) -> dict[Place, Annotation | None]:
        if self.lead.mode == "none":
            return dict.fromkeys(prompts)
        if self.lead.mode == "given":
            found = dict.fromkeys(prompts, self.lead.pinned)
        else:
            found = dict(zip(prompts, self._sampled(list(prompts.values())), strict=True))
        for (doc, _), annotation in found.items():
            self.annotations.setdefault(doc, []).append(annotation)
        return dict(found)

    def _sampled(self, prompts: Sequence[Prompt]) -> list[Annotation]:
        config, pinned = self.lead.config, self.lead.pinned
        room = config.max_tokens + len(self._encoder.annotation(pinned))
        prefixes = [
            self._room(self._encoder.opening(prompt), room, "annotation.max_tokens")
            for prompt in prompts
        ]
        asked = [
            Request(prefix=prefix, annotated=True, pinned=pinned, annotation_only=True)
            for prefix in prefixes
        ]
        options = SampleConfig(
            annotation=config.sampling,
            max_annotation_tokens=config.max_tokens,
            retries=config.retries,
            batch_size=self._batch(prefixes, room),
            seed=self._seeded("annotations"),
        )
        found = self.source.sample(asked, options, progress=self._step)
        self.malformed += sum(answer.malformed for answer in found)
        return [answer.annotation or Annotation() for answer in found]

    def _seeded(self, part: str) -> int:
        """Return a seed for this task and part: annotations and answers draw different numbers."""
        text = f"{self._seed}:{self._task}:{part}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")

    def _fitted(self, row: Row) -> Row:
        # The last target token is predicted and never read.
        behind = max(0, len(row.target) - 1)
        if self._encoder.limit is not None and behind >= self._encoder.limit:
            raise DataError(
                f"task {self._task}: a continuation has {len(row.target)} tokens, but "
                f"{self.source.name} reads at most {self._encoder.limit}; use another model or task"
            )
        context = self._encoder.fitted(row.context, behind)
        self.truncated += context is not row.context
        return Row(context, row.target)

    def _room(self, context: list[int], wanted: int, what: str) -> tuple[int, ...]:
        """Return `context`, cut to leave room for `wanted` tokens that the model will write."""
        limit = self._encoder.limit
        if limit is not None and wanted >= limit:
            raise ConfigError(
                f"task {self._task}: {what} takes {wanted} tokens, but {self.source.name} reads at "
                f"most {limit} in all; lower it"
            )
        fitted = self._encoder.fitted(context, wanted)
        self.truncated += fitted is not context
        return tuple(fitted)


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Suppress lm-eval's notices."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _ends_apart(rows: Iterable[Row]) -> bool:
    """Return True if rows that differ only in the last token have continuations of one length.

    `HFLM` runs such rows once (`logits_cache`). If their lengths differ, it reads the shorter
    continuation's log-probabilities at the positions of the longer one (lm-eval 0.4.13).
    """
    lengths: dict[tuple[int, ...], int] = {}
    return all(
        lengths.setdefault(tuple(row.context + row.target[:-1]), len(row.target)) == len(row.target)
        for row in rows
    )


def _generation(task: str, given: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """Return the task's `generation_kwargs` with lm-eval's names and defaults."""
    options: dict[str, Any] = dict(normalize_gen_kwargs(given, max_tokens))
    for name, value in options.items():
        if name not in _HONOURED and _WITHOUT_EFFECT.get(name) != value:
            raise ConfigError(
                f"task {task}: generation_kwargs.{name} = {value!r} is not supported; use only "
                f"{', '.join(sorted(_HONOURED))}"
            )
    return options


def _sampling(task: str, options: dict[str, Any]) -> Sampling:
    if not options["do_sample"]:
        return Sampling(temperature=0)
    kept = {name: options[name] for name in ("temperature", "top_p", "min_p") if name in options}
    return validated(Sampling, kept, source=f"task {task}: generation_kwargs")
