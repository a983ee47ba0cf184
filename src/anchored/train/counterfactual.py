"""Counterfactual SFT examples (ours, not in the paper): the taught form with other values.

SFT data with a narrow range of annotations teaches Q*(y|x,z) for few z only. This does not carry
over to the annotations that the pretrained model still writes: given one of them, it falls back to
what it knew or garbles what it was taught. Therefore a share of the answers is retold: each value
of the annotation that the answer spells out is replaced, in both, by the value that the pretrained
model itself samples for the same prompt. Properties without such a value (tone, topic) stay.

Replacing words breaks what depends on them (a pronoun, an article). So several annotations are
drawn for each answer, and the retelling that the pretrained model finds most natural is kept.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anchored.annotation import Annotation, Schema, Tag
from anchored.data.prepare import PrepareConfig, SourceConfig
from anchored.data.readers import load_schema, read_items
from anchored.data.rows import Conversation, Item
from anchored.files import write_jsonl
from anchored.models.perplexity import ReferenceModel
from anchored.segments import (
    OBJECTIVES,
    Kind,
    Message,
    assemble,
    conversation_segments,
    split_chunks,
)
from anchored.train.replay import (
    ReplayConfig,
    is_learnt_as_sft,
    load_annotation_sampler,
    sample_annotations,
)

Turns = tuple[Message, ...]

_SENTENCE_START = re.compile(r"(?:^|[.!?][\"'”’)\]]*\s+|\n\s*)[\"'“‘(\[]*")


def write_counterfactuals(
    config: ReplayConfig,
    model: str,
    data: PrepareConfig,
    out: Path,
    seed: int,
    quiet: bool = False,
) -> tuple[SourceConfig, ...]:
    """Copy the SFT sources to `out`, with a share `config.counterfactual` of the answers retold.

    An existing file is kept. Only the last answer of a row is retold.

    Returns:
        The sources to read instead of `data.sources`.
    """
    sources = []
    for number, source in enumerate(data.sources):
        if not is_learnt_as_sft(source):
            sources.append(source)
            continue
        path = out / f"counterfactual-{number}.jsonl"
        if not path.is_file():
            rows = _retold(config, model, data, source, f"{seed}:{number}", quiet)
            write_jsonl(path, rows)
        sources.append(
            SourceConfig(path=str(path), weight=source.weight, objective=source.objective)
        )
    return tuple(sources)


def _retold(
    config: ReplayConfig,
    model: str,
    data: PrepareConfig,
    source: SourceConfig,
    seed: str,
    quiet: bool,
) -> list[dict[str, Any]]:
    split = partial(split_chunks, min_chars=data.min_chunk_chars, max_chars=data.max_chunk_chars)
    rows, chosen = [], {}
    for _, item in read_items(source, split):
        turns = _turns(item)
        lot = random.Random(f"{seed}:counterfactual:{item.id}").random()
        if lot < config.counterfactual and turns and _retellable(turns[-1]):
            chosen[len(rows)] = turns
        rows.append({**item.raw, "id": item.id})
    retold = _most_natural(config, model, data, list(chosen.values()), seed, quiet)
    for at, turns in zip(chosen, retold, strict=True):
        rows[at] = {"id": rows[at]["id"], "messages": [_row(message) for message in turns]}
    return rows


def _most_natural(
    config: ReplayConfig,
    model: str,
    data: PrepareConfig,
    conversations: Sequence[Turns],
    seed: str,
    quiet: bool,
) -> list[Turns]:
    """Retell the answer of each conversation in the way that has the least loss under `model`."""
    if not conversations:
        return []
    schema = load_schema(data.schema_name) if data.schema_name else None
    drawn = [_anchored(turns, schema) for turns in conversations for _ in range(config.candidates)]
    sampler = load_annotation_sampler(config, model, data)
    contexts = [turns[:-1] for turns in drawn]
    annotations = sample_annotations(config, sampler, contexts, seed, quiet)
    told = [
        turns if annotation is None else (*turns[:-1], retell(turns[-1], annotation))
        for turns, annotation in zip(drawn, annotations, strict=True)
    ]
    losses = _losses(model, told, data.max_length)
    for i, (before, after) in enumerate(zip(drawn, told, strict=True)):
        if before[-1].content == after[-1].content:
            losses[i] = math.inf  # an unchanged answer would always read best
    groups = range(0, len(told), config.candidates)
    return [told[min(range(i, i + config.candidates), key=losses.__getitem__)] for i in groups]


def _anchored(turns: Turns, schema: Schema | None) -> Turns:
    """Drop the tags that SFT is meant to change, which are not part of its examples."""
    answer = turns[-1]
    if schema is None or answer.annotation is None:
        return turns
    return (*turns[:-1], replace(answer, annotation=schema.anchored(answer.annotation)))


def _losses(model: str, conversations: Sequence[Turns], max_length: int) -> list[float]:
    """Return the nats per token of the last answer, given its annotation and all before it.

    The loss is infinite if the whole is longer than `max_length`, so that no example is made of it.
    """
    reference = ReferenceModel.load(model, "cuda" if torch.cuda.is_available() else "cpu")
    rows = {}
    for at, turns in enumerate(conversations):
        segments = conversation_segments(turns, reference.tokenizer, OBJECTIVES["anchored"])
        example = assemble(segments)
        if len(example.input_ids) <= max_length:
            start = example.kinds.index(Kind.TEXT)
            rows[at] = (example.input_ids[:start], example.input_ids[start:])
    found = dict(zip(rows, reference.losses_of_ids(list(rows.values())), strict=True))
    return [
        found[at].nats / found[at].tokens if at in found else math.inf
        for at in range(len(conversations))
    ]


def _turns(item: Item) -> Turns:
    """Return a conversation up to the answer to learn, or () for a document without a prompt."""
    if isinstance(item, Conversation):
        return item.messages
    if item.prompt is None:
        return ()
    answer = Message("assistant", item.text, item.whole_annotation)
    return (Message("user", item.prompt), answer)


def _row(message: Message) -> dict[str, Any]:
    annotation = {} if message.annotation is None else {"annotation": message.annotation.rows()}
    return {"role": message.role, "content": message.content, **annotation}


def _retellable(answer: Message) -> bool:
    return any(_spelt(tag.value).search(answer.content) for tag in answer.annotation or ())


def retell(answer: Message, other: Annotation) -> Message:
    """Retell `answer` with the values of `other`, key by key, where it spells out its own values.

    A value is spelt out if it occurs as whole words, capitalised at the start of a sentence. The
    first value of a repeating key is replaced by the first value in `other`, and so on. Two kinds
    of values stay: a value that two keys share, because the text does not say which one is meant,
    and a value whose substitute the answer already has, because the two would become one.
    """
    tags = answer.annotation or Annotation()
    known = Counter(tag.value for tag in tags)
    left = {key: [v for v in other.values(key) if v not in known] for key in other.keys}
    instead: dict[str, str] = {}
    for tag in tags:
        if known[tag.value] == 1 and left.get(tag.key) and _spelt(tag.value).search(answer.content):
            instead[tag.value] = left[tag.key].pop(0)
    if not instead:
        return answer
    annotation = Annotation(tuple(Tag(t.key, instead.get(t.value, t.value)) for t in tags))
    return Message("assistant", _replaced(answer.content, instead), annotation)


def _replaced(text: str, instead: Mapping[str, str]) -> str:
    """Replace all values (as whole words) in `text` in one pass, the longest first."""
    starts = {match.end() for match in _SENTENCE_START.finditer(text)}
    values = {spelling: value for value in instead for spelling in (_capital(value), value)}
    alternatives = "|".join(map(re.escape, sorted(values, key=len, reverse=True)))

    def new(match: re.Match[str]) -> str:
        value = values[match[0]]
        capital = match[0] != value or match.start() in starts
        return _capital(instead[value]) if capital else instead[value]

    return re.sub(rf"(?<!\w)(?:{alternatives})(?!\w)", new, text)


def _capital(value: str) -> str:
    return value[:1].upper() + value[1:]


def _spelt(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{re.escape(value)}|{re.escape(_capital(value))})(?!\w)")
