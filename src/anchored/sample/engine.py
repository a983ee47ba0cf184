"""Sampling with `transformers`: the annotation first, then the response given it, in one pass.

The opening token is put by the sampler, never left to the model. Annotation and response have their own temperature,
top-p and min-p; temperature comes first, then min-p, then top-p. Annotations are cut away by token id.
Shapes: B sequences, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from pydantic import Field
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from anchored.annotation import Annotation, Schema, parse_annotation
from anchored.config import Config
from anchored.errors import DataError
from anchored.segments import (
    OBJECTIVES,
    Message,
    annotation_pieces,
    conversation_pieces,
    encode_pieces,
)
from anchored.tokenizer import AnchoredTokenizer


class Sampling(Config):
    """How one part is sampled. Temperature 0 takes the most likely token."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, lt=1)


class SampleConfig(Config):
    """Args:
    annotation, response: sampling of the two parts; both at temperature 1 by default, as in the paper.
    max_annotation_tokens: a longer annotation is malformed.
    max_response_tokens: a longer response is cut and `finished` is False.
    retries: how often a malformed annotation is sampled anew before it is given up.
    batch_size: sequences generated together; part of what a seed reproduces.
    """

    annotation: Sampling = Sampling()
    response: Sampling = Sampling()
    max_annotation_tokens: int = Field(160, gt=0)
    max_response_tokens: int = Field(256, gt=0)
    retries: int = Field(3, ge=0)
    batch_size: int = Field(64, gt=0)
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One sequence to be sampled.

    Args:
        messages: the conversation so far; empty for a plain document (base models).
        annotated: does an annotation come first.
        pinned: tags given by the caller; the model samples the others after them.
        prefill: text that the response starts with, put after the annotation.
        complete: `pinned` is the whole annotation; nothing is added to it.
        plan_only: stop after the annotation.
    """

    messages: tuple[Message, ...] = ()
    annotated: bool = False
    pinned: Annotation = Annotation()
    prefill: str = ""
    complete: bool = False
    plan_only: bool = False


@dataclass
class Sample:
    """What came out. `annotation` is None where none was asked for or none could be read; `response` includes the
    prefill and never holds an annotation; `attempts` counts samplings, `malformed` says the last one failed too.
    """

    response: str
    annotation: Annotation | None = None
    finished: bool = True
    malformed: bool = False
    attempts: int = 1


@dataclass
class _Sequence:
    request: Request
    prefix: list[int]
    prefill: list[int] = field(default_factory=list)


class _TwoPhases(LogitsProcessor):
    """Applies each part's sampling, forces the prefill between them, and lets no other control token through."""

    def __init__(
        self, sequences: Sequence[_Sequence], config: SampleConfig, tokenizer: AnchoredTokenizer
    ) -> None:
        self._config = config
        self._control = tokenizer.control
        self._in_annotation = torch.tensor([_open(s.request) for s in sequences])
        self._annotation_left = torch.full((len(sequences),), config.max_annotation_tokens)
        self._to_force = [_forced(s, tokenizer.control.eos) for s in sequences]
        self._forcing = any(self._to_force)
        self._fresh = True

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """`input_ids` (B, T), `scores` (B, V) -> (B, V)."""
        device, control = scores.device, self._control
        inside = self._in_annotation.to(device)
        if not self._fresh:
            inside &= input_ids[:, -1] != control.close
            inside &= input_ids[:, -1] != control.eos
        self._fresh, self._in_annotation = False, inside
        scores = scores.clone()
        eos, close = scores[:, control.eos].clone(), scores[:, control.close].clone()
        scores[:, list(set(vars(control).values()))] = -torch.inf
        scores[:, control.close] = close.masked_fill(~inside, -torch.inf)
        scores[:, control.eos] = eos.masked_fill(inside, -torch.inf)
        for rows, sampling in ((inside, self._config.annotation), (~inside, self._config.response)):
            if rows.any():
                scores[rows] = truncate(scores[rows], sampling)
        self._end_overlong(scores, inside)
        if self._forcing:
            self._force(scores, inside)
        return scores  # pyright: ignore[reportReturnType]

    def _end_overlong(self, scores: torch.Tensor, inside: torch.Tensor) -> None:
        self._annotation_left = self._annotation_left.to(inside.device) - inside.long()
        overlong = inside & (self._annotation_left < 0)
        scores[overlong] = -torch.inf
        scores[overlong, self._control.eos] = 0.0

    def _force(self, scores: torch.Tensor, inside: torch.Tensor) -> None:
        for b, ids in enumerate(self._to_force):
            if ids and not inside[b]:
                scores[b] = -torch.inf
                scores[b, ids.pop(0)] = 0.0


def _forced(sequence: _Sequence, eos: int) -> list[int]:
    return [eos] if sequence.request.plan_only else list(sequence.prefill)


def truncate(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Temperature, then min-p, then top-p, on logits (B, V); what is cut off becomes -inf."""
    if sampling.temperature == 0:
        return scores.masked_fill(scores < scores.amax(-1, keepdim=True), -torch.inf)
    scores = scores / sampling.temperature
    if sampling.min_p > 0:
        probabilities = scores.softmax(-1)
        floor = sampling.min_p * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(probabilities < floor, -torch.inf)
    if sampling.top_p < 1:
        ordered, indices = scores.softmax(-1).sort(-1, descending=True)
        cut = ordered.cumsum(-1) - ordered >= sampling.top_p
        scores = scores.masked_fill(cut.scatter(-1, indices, cut), -torch.inf)
    return scores


def sample(
    model: PreTrainedModel,
    tokenizer: AnchoredTokenizer,
    requests: Sequence[Request],
    config: SampleConfig = SampleConfig(),  # noqa: B008 (frozen)
    schema: Schema | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Sample]:
    """One sample a request, in order. With a `schema`, an annotation that breaks it is malformed too.

    `progress` is called with the number of sequences that became final since its last call.
    """
    torch.manual_seed(config.seed)
    model.eval()
    sequences = _encode(requests, tokenizer)
    samples: list[Sample | None] = [None] * len(requests)
    pending = sorted(range(len(requests)), key=lambda i: len(sequences[i].prefix))
    for attempt in range(1, config.retries + 2):
        failed = []
        for batch in _batches(pending, config.batch_size):
            outputs = _generate(model, tokenizer, [sequences[i] for i in batch], config)
            for i, ids in zip(batch, outputs, strict=True):
                result = _read(sequences[i], ids, tokenizer, schema)
                samples[i] = replace(result, attempts=attempt)
                if result.malformed:
                    failed.append(i)
            progress(
                len(batch)
                if attempt > config.retries
                else len(batch) - len(set(batch) & set(failed))
            )
        pending = failed
    return [s for s in samples if s is not None]


def _batches(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _open(request: Request) -> bool:
    return request.annotated and not request.complete


def _encode(requests: Sequence[Request], tokenizer: AnchoredTokenizer) -> list[_Sequence]:
    """Prefixes as ids: the conversation, the role token, the opening token, pinned tags, and the prefill apart."""
    anchored = OBJECTIVES["anchored"]
    drafts = []
    for request in requests:
        pieces = conversation_pieces(
            (*request.messages, Message("assistant", "")), OBJECTIVES["standard"]
        )
        if not request.messages:
            pieces = pieces[:1]
        if request.annotated:
            tags = list(annotation_pieces(request.pinned, anchored))
            pieces = [*pieces, *(tags if request.complete else tags[:-1])]
        drafts.append(pieces)
    prefills = tokenizer.encode_batch([request.prefill for request in requests])
    return [
        _Sequence(request, [i for segment in segments for i in segment.ids], prefill)
        for request, segments, prefill in zip(
            requests, encode_pieces(drafts, tokenizer), prefills, strict=True
        )
    ]


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    tokenizer: AnchoredTokenizer,
    sequences: Sequence[_Sequence],
    config: SampleConfig,
) -> list[list[int]]:
    """New ids of each sequence up to and without eos; left-padded as `generate` wants it."""
    control = tokenizer.control
    width = max(len(s.prefix) for s in sequences)
    input_ids = torch.tensor(
        [[control.pad] * (width - len(s.prefix)) + s.prefix for s in sequences]
    )
    mask = torch.tensor([[0] * (width - len(s.prefix)) + [1] * len(s.prefix) for s in sequences])
    longest = config.max_response_tokens + max(len(s.prefill) for s in sequences)
    longest += config.max_annotation_tokens + 1 if any(_open(s.request) for s in sequences) else 0
    generated: Any = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=longest,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=control.eos,
        pad_token_id=control.pad,
        logits_processor=LogitsProcessorList([_TwoPhases(sequences, config, tokenizer)]),
    )
    return [row[width:] for row in generated.tolist()]


def _read(
    sequence: _Sequence, ids: list[int], tokenizer: AnchoredTokenizer, schema: Schema | None
) -> Sample:
    """Splits new ids at the closing token and at eos."""
    control = tokenizer.control
    finished = control.eos in ids
    ids = ids[: ids.index(control.eos)] if finished else ids
    request = sequence.request
    if not request.annotated:
        return Sample(tokenizer.decode(ids), finished=finished)
    if request.complete:
        return Sample(tokenizer.decode(ids), request.pinned, finished)
    if control.close not in ids:
        return Sample("", finished=False, malformed=True)
    end = ids.index(control.close)
    response = tokenizer.decode(ids[end + 1 :])
    try:
        annotation = parse_annotation(str(request.pinned) + tokenizer.decode(ids[:end]))
        if schema:
            schema.check(annotation)
    except DataError:
        return Sample(response, finished=finished, malformed=True)
    return Sample(response, annotation, finished)


def dump(samples: Sequence[Sample]) -> str:
    """Samples as JSON, annotations in their stored form."""
    rows = [
        {**asdict(s), "annotation": s.annotation.rows() if s.annotation is not None else None}
        for s in samples
    ]
    return json.dumps(rows, ensure_ascii=False, indent=2)
