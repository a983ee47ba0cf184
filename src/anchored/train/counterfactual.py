"""Counterfactual SFT examples (ours, not in the paper): the taught form told about other values.

SFT data whose plans are narrow teaches Q*(y|x,z) on few z, and it does not carry over to the plans
that the pretrained model goes on making: asked for one of them, it falls back to what it knew or
garbles what it was taught. So a share of the answers is retold: each value of the annotation that
the answer spells out is replaced, in both, by the value that the pretrained model itself planned
for the same prompt. What no value spells out (tone, topic) stays as it was.

Replacing words breaks what hangs on them (a pronoun, an article). So several plans are drawn for
each answer, and the retelling that the pretrained model finds most natural is the one that is kept.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anchored.annotation import Annotation, Tag
from anchored.data.prepare import PrepareConfig, SourceConfig
from anchored.data.readers import Conversation, Item, load_schema, parse_row, read_rows
from anchored.evaluate.perplexity import ReferenceModel, TextLoss
from anchored.files import atomic_write
from anchored.segments import (
    OBJECTIVES,
    Kind,
    Message,
    assemble,
    conversation_segments,
    split_chunks,
)
from anchored.train.replay import ReplayConfig, is_learnt_as_sft, sample_annotations

Turns = tuple[Message, ...]


def write_counterfactuals(
    config: ReplayConfig,
    model: str,
    data: PrepareConfig,
    out: Path,
    seed: int,
    quiet: bool = False,
) -> tuple[SourceConfig, ...]:
    """Copies the SFT sources to `out`, `config.counterfactual` of their answers retold.

    A file that is there already is kept. Only a row's last answer is retold.

    Returns:
        What to read in place of `data.sources`.
    """
    sources = []
    for number, source in enumerate(data.sources):
        if not is_learnt_as_sft(source):
            sources.append(source)
            continue
        path = out / f"counterfactual-{number}.jsonl"
        if not path.is_file():
            rows = list(_retold(config, model, data, source, f"{seed}:{number}", quiet))
            atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
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
) -> Iterator[dict[str, Any]]:
    split = partial(split_chunks, min_chars=data.min_chunk_chars, max_chars=data.max_chunk_chars)
    rows, chosen = [], {}
    for place, row in read_rows(source):
        name = str(row.get("id", place))
        turns = _turns(parse_row(row, place, split))
        lot = random.Random(f"{seed}:counterfactual:{name}").random()
        if lot < config.counterfactual and turns and _retellable(turns[-1]):
            chosen[len(rows)] = turns
        rows.append({**row, "id": name})
    retold = _most_natural(config, model, data, list(chosen.values()), seed, quiet)
    for at, turns in zip(chosen, retold, strict=True):
        rows[at] = {"id": rows[at]["id"], "messages": [_row(message) for message in turns]}
    yield from rows


def _most_natural(
    config: ReplayConfig,
    model: str,
    data: PrepareConfig,
    conversations: Sequence[Turns],
    seed: str,
    quiet: bool,
) -> list[Turns]:
    """Each conversation with that retelling of its answer which `model` gives the least loss."""
    schema = load_schema(data.schema_name) if data.schema_name else None
    drawn = [turns for turns in conversations for _ in range(config.candidates)]
    plans = sample_annotations(config, model, data, [turns[:-1] for turns in drawn], seed, quiet)
    told = []
    for turns, plan in zip(drawn, plans, strict=True):
        anchored = schema.anchored(plan) if plan and schema else plan
        told.append((*turns[:-1], retell(turns[-1], anchored)) if anchored else turns)
    nats = [
        math.inf if turns is original else loss.nats / loss.tokens
        for turns, original, loss in zip(told, drawn, _losses(model, told), strict=True)
    ]
    groups = range(0, len(told), config.candidates)
    return [told[min(range(i, i + config.candidates), key=nats.__getitem__)] for i in groups]


def _losses(model: str, conversations: Sequence[Turns]) -> list[TextLoss]:
    """Of the last answer, given its annotation and all before it."""
    reference = ReferenceModel.load(model, "cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for turns in conversations:
        segments = conversation_segments(turns, reference.tokenizer, OBJECTIVES["anchored"])
        example = assemble(segments)
        start = example.kinds.index(Kind.TEXT)
        rows.append((example.input_ids[:start], example.input_ids[start:]))
    return reference.losses_of_ids(rows, batch_size=32)


def _turns(item: Item) -> Turns:
    """A conversation up to the answer to learn; nothing for a document without a prompt."""
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


def retell(answer: Message, plan: Annotation) -> Message:
    """`answer` about the values of `plan`, key by key, as far as it spells its own out.

    A value is spelt out where it stands as whole words, at a sentence's start with a capital. The
    first value of a key that may repeat is replaced by the first of the plan's, and so on.
    """
    left = {key: list(plan.values(key)) for key in plan.keys}
    instead: dict[str, str] = {}
    for tag in answer.annotation or ():
        spelt = _spelt(tag.value).search(answer.content)
        if spelt and tag.value not in instead and left.get(tag.key):
            instead[tag.value] = left[tag.key].pop(0)
    if not instead:
        return answer
    capitals = {_capital(old): _capital(new) for old, new in instead.items()}
    words = {**capitals, **instead}
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
    text = pattern.sub(lambda match: words[match[0]], answer.content)
    tags = (Tag(tag.key, instead.get(tag.value, tag.value)) for tag in answer.annotation or ())
    return Message("assistant", text, Annotation(tuple(tags)))


def _capital(value: str) -> str:
    return value[:1].upper() + value[1:]


def _spelt(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{re.escape(value)}|{re.escape(_capital(value))})(?!\w)")
