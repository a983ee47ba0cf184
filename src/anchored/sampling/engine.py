"""Sampling with `transformers`: first the annotation, then the response given it, in one pass.

The sampler writes the opening token and never leaves it to the model. Annotation and response have
their own temperature, top-p and min-p. Annotations are removed by token id, never by text search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from transformers import PreTrainedModel

from anchored.annotation import Annotation, Schema, parse_annotation
from anchored.config import Config
from anchored.errors import DataError
from anchored.sampling.decode import Row, Rules, decode
from anchored.sampling.keys import KeyConstraint
from anchored.sampling.logits import Sampling
from anchored.segments import (
    BOS,
    OBJECTIVES,
    Message,
    annotation_pieces,
    check_annotations_come_back,
    conversation_pieces,
    encode_pieces,
)
from anchored.tokenizer import AnchoredTokenizer

__all__ = ["Request", "Sample", "SampleConfig", "Sampling", "sample"]


class SampleConfig(Config):
    """Settings for sampling.

    Args:
        annotation, response: sampling of the two parts; both at temperature 1 by default, as in
            the paper.
        max_annotation_tokens: maximum length; an annotation that is still open is malformed.
        max_response_tokens: maximum length, without a prefill; a longer response is cut, and
            `finished` is False.
        retries: maximum number of new attempts after a malformed annotation.
        constrain_keys: sample only keys of the schema, each as often as the schema allows. This is
            always done if the schema has keys that are not anchored: they are left out of the
            annotation, because SFT is meant to change them.
        batch_size: sequences decoded together; samples do not depend on it.
        seed: a sample depends on this, its position among the requests, and the attempt.
    """

    annotation: Sampling = Sampling()
    response: Sampling = Sampling()
    max_annotation_tokens: int = Field(default=160, gt=0)
    max_response_tokens: int = Field(default=256, gt=0)
    retries: int = Field(default=3, ge=0)
    constrain_keys: bool = False
    batch_size: int = Field(default=128, gt=0)
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One sequence to sample.

    Args:
        messages: the conversation so far; empty for a plain document (base models).
        annotated: True if an annotation comes first.
        pinned: tags given by the caller; the model samples the others after them.
        prefill: text that the response starts with, after the annotation.
        complete: True if `pinned` is the whole annotation, to which the model adds nothing.
        annotation_only: stop after the annotation.
        prefix: ids to start from instead of `messages`.
    """

    messages: tuple[Message, ...] = ()
    annotated: bool = False
    pinned: Annotation = Annotation()  # noqa: RUF009 (frozen)
    prefill: str = ""
    complete: bool = False
    annotation_only: bool = False
    prefix: tuple[int, ...] | None = None

    @property
    def open(self) -> bool:
        """True if the model writes an annotation, or the rest of one."""
        return self.annotated and not self.complete


@dataclass
class Sample:
    """One sample.

    Args:
        response: the response, with the prefill, without the annotation.
        annotation: None if none was requested or none could be parsed.
        finished: True if the end token came within the limit.
        malformed: True if the annotation of the last attempt could not be parsed or violates the
            schema.
        attempts: number of times this request was sampled.
    """

    response: str
    annotation: Annotation | None = None
    finished: bool = True
    malformed: bool = False
    attempts: int = 1

    def as_row(self, prompt: str | None) -> dict[str, Any]:
        """Return the stored form, one line in a file of samples."""
        return {
            "prompt": prompt,
            "annotation": None if self.annotation is None else self.annotation.rows(),
            "response": self.response,
            "attempts": self.attempts,
            "malformed": self.malformed,
            "finished": self.finished,
        }


def sample(
    model: PreTrainedModel,
    tokenizer: AnchoredTokenizer,
    requests: Sequence[Request],
    config: SampleConfig = SampleConfig(),  # noqa: B008 (frozen)
    schema: Schema | None = None,
    progress: Callable[[int], None] = lambda done: None,
    first: int = 0,
) -> list[Sample]:
    """Return one sample per request, in order.

    With a `schema`, an annotation that violates it is malformed. `progress` is called with the
    number of sequences that became final since its last call. `first` is the position of the first
    request, if these requests are part of a longer list.

    Raises:
        ConfigError: annotations do not survive encoding and decoding by the tokenizer.
        DataError: the model's logits are not finite numbers.
    """
    model.eval()
    rules = _rules(model, tokenizer, requests, config, schema)
    prefixes = _prefixes(requests, tokenizer)
    forced = _forced(requests, tokenizer)
    samples: dict[int, Sample] = {}
    pending = sorted(range(len(requests)), key=lambda i: len(prefixes[i]))
    for attempt in range(1, config.retries + 2):
        failed = []
        for batch in _batches(pending, config.batch_size):
            rows = [
                _row(requests[i], prefixes[i], forced[i], f"{config.seed}:{first + i}:{attempt}")
                for i in batch
            ]
            outputs = decode(model, rows, rules)
            for i, ids in zip(batch, outputs, strict=True):
                samples[i] = replace(_read(requests[i], ids, tokenizer, schema), attempts=attempt)
            again = [i for i in batch if samples[i].malformed and attempt <= config.retries]
            failed += again
            progress(len(batch) - len(again))
        pending = failed
    return [samples[i] for i in range(len(requests))]


def _batches(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _row(request: Request, prefix: Sequence[int], forced: Sequence[int], seed: str) -> Row:
    pinned = Counter(tag.key for tag in request.pinned)
    return Row(prefix, seed, request.open, pinned, forced)


def _rules(
    model: PreTrainedModel,
    tokenizer: AnchoredTokenizer,
    requests: Sequence[Request],
    config: SampleConfig,
    schema: Schema | None,
) -> Rules:
    width, device = model.config.get_text_config().vocab_size, model.device
    barred = torch.zeros(width, dtype=torch.bool, device=device)
    barred[list(tokenizer.control_ids.values())] = True
    barred[len(tokenizer) :] = True
    names = _sampled_keys(schema, config)
    opens = [request for request in requests if request.open]
    if opens:
        check_annotations_come_back(tokenizer, schema)
    texts: list[str] = []
    if opens and (names is not None or any(request.pinned for request in opens)):
        texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    starts = [i for i, text in enumerate(texts) if text.startswith("\n")]
    before = [tokenizer.encode(f"\n{name}:")[0] for name in names or "x"] if texts else []
    breaks, leads = torch.zeros_like(barred), torch.zeros_like(barred)
    breaks[starts], leads[before] = True, True
    return Rules(
        control=tokenizer.control,
        annotation=config.annotation,
        response=config.response,
        annotation_limit=config.max_annotation_tokens,
        response_limit=config.max_response_tokens,
        barred=barred,
        breaks=breaks if texts else None,
        leads=leads & ~breaks if texts else None,
        keys=KeyConstraint(schema, names, tokenizer, texts, width, device)
        if schema and names is not None and texts
        else None,
    )


def _sampled_keys(schema: Schema | None, config: SampleConfig) -> tuple[str, ...] | None:
    """Return the keys that the model may choose from, or None for any key."""
    if schema is None:
        return None
    leaves_out = schema.anchored_names != schema.names
    return schema.anchored_names if leaves_out or config.constrain_keys else None


def _prefixes(requests: Sequence[Request], tokenizer: AnchoredTokenizer) -> list[list[int]]:
    """Encode the conversation, the role token, the opening token and pinned tags."""
    drafts = []
    for request in requests:
        pieces = [] if request.prefix is not None else [BOS]
        if request.messages and request.prefix is None:
            turns = (*request.messages, Message("assistant", ""))
            pieces = conversation_pieces(turns, OBJECTIVES["standard"], tokenizer.chat)
        if request.annotated:
            tags = list(annotation_pieces(request.pinned, OBJECTIVES["anchored"]))
            pieces = [*pieces, *(tags if request.complete else tags[:-1])]
        drafts.append(pieces)
    return [
        [*(request.prefix or ()), *(i for segment in segments for i in segment.ids)]
        for request, segments in zip(requests, encode_pieces(drafts, tokenizer), strict=True)
    ]


def _forced(requests: Sequence[Request], tokenizer: AnchoredTokenizer) -> list[list[int]]:
    """Return the ids that each response starts with; an immediate eos leaves the annotation."""
    prefills = tokenizer.encode_batch([request.prefill for request in requests])
    return [
        [tokenizer.control.eos] if request.annotation_only else prefill
        for request, prefill in zip(requests, prefills, strict=True)
    ]


def _read(
    request: Request, ids: list[int], tokenizer: AnchoredTokenizer, schema: Schema | None
) -> Sample:
    """Split new ids at the closing token and at the end token."""
    control = tokenizer.control
    finished = bool(ids) and ids[-1] in control.ends
    ids = ids[:-1] if finished else ids
    if not request.open:
        annotation = request.pinned if request.annotated else None
        return Sample(tokenizer.decode(ids), annotation, finished)
    if control.close not in ids:
        return Sample("", finished=False, malformed=True)
    end = ids.index(control.close)
    response = tokenizer.decode(ids[end + 1 :])
    try:
        annotation = parse_annotation(str(request.pinned) + tokenizer.decode_pieces(ids[:end]))
        if schema:
            schema.check(annotation)
    except DataError:
        return Sample(response, finished=finished, malformed=True)
    return Sample(response, annotation, finished)
