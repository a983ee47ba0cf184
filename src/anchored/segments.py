"""Text to segments: what stands where in a sequence, of which kind, and which of it carries loss.

    document        bos  (open tags close)  chunk  (open tags close)  chunk ...  eos
    conversation    bos  system text  user text  assistant  (open tags close)  response  eos
    by a template   what the model's own chat template writes  (open tags close)  response  end

Annotation and text are encoded apart and their ids joined, in training and in sampling alike, so
that no token straddles the two. Control tokens are put here by id; text is encoded with them
disabled.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import chain, pairwise
from typing import Literal, NamedTuple

from anchored.annotation import Annotation, Schema, Tag
from anchored.chat import ChatTemplate
from anchored.errors import ConfigError
from anchored.tokenizer import AnchoredTokenizer

NO_LOSS = -100
KeyOrder = Literal["shuffled", "canonical"]


class Kind(IntEnum):
    """What a token is part of; the `kinds` column of a prepared dataset."""

    CONTROL = 0
    PROMPT = 1
    TAG_KEY = 2
    TAG_VALUE = 3
    TEXT = 4

    __hash__ = int.__hash__  # that of Enum is written in Python, and every piece is looked up


@dataclass(frozen=True)
class Objective:
    """Which kinds carry loss, as data.

    Args:
        name: as in the command line and configurations.
        annotated: do annotations stand before chunks and responses.
        loss: the kinds that are trained. Role tokens go with PROMPT, the two annotation tokens
            with TAG_KEY, eos with TEXT; bos is never learnt.
        format_share: share of examples in which the tag keys carry loss too (paper, section 3:
            0.3 %).
        replay: are examples of annotation replay added: a prompt and an annotation sampled before
            SFT, loss on the annotation alone (ours, not in the paper).
    """

    name: str
    annotated: bool
    loss: frozenset[Kind]
    format_share: float = 0.0
    replay: bool = False


_PLAN = frozenset({Kind.TAG_KEY, Kind.TAG_VALUE})
OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("plain", annotated=False, loss=frozenset({Kind.PROMPT, Kind.TEXT})),
        Objective("annotated", annotated=True, loss=_PLAN | {Kind.PROMPT, Kind.TEXT}),
        Objective("standard", annotated=False, loss=frozenset({Kind.TEXT})),
        Objective("anchored", annotated=True, loss=frozenset({Kind.TEXT}), format_share=0.003),
        Objective(
            "anchored-replay",
            annotated=True,
            loss=frozenset({Kind.TEXT}),
            format_share=0.003,
            replay=True,
        ),
        Objective("tagged", annotated=True, loss=_PLAN | {Kind.TEXT}),
        Objective("replay", annotated=True, loss=_PLAN),
    )
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a document and what is said about it; None where nobody annotated it.

    `text` keeps the white space that follows it.
    """

    text: str
    annotation: Annotation | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `annotation` is that of an assistant turn; None where nobody annotated it."""

    role: Literal["system", "user", "assistant"]
    content: str
    annotation: Annotation | None = None


class Piece(NamedTuple):
    """A segment before encoding: plain text or, for `Kind.CONTROL`, the name of a control token.

    A chat template's special tokens go by their spelling.
    """

    text: str
    kind: Kind
    supervised: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """Ids of one kind, with or without loss."""

    ids: Sequence[int]
    kind: Kind
    supervised: bool


@dataclass
class Example:
    """Equal-length columns of a training sequence.

    `labels` are unshifted, `NO_LOSS` where nothing is learnt.
    """

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)


BOS = Piece("bos", Kind.CONTROL, False)

_BLANK = re.compile(r"\n[ \t]*\r?\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n+")


def split_chunks(text: str, min_chars: int = 200, max_chars: int = 1500) -> list[str]:
    """`text` cut at blank lines; `"".join(split_chunks(text)) == text`, always.

    A chunk shorter than `min_chars` joins the next, one above `max_chars` is cut at sentence ends,
    or at `max_chars` where there is none. No chunk is blank unless the text is: white space goes
    with what it follows, even beyond `max_chars`.
    """
    paragraphs = _cut(text, _BLANK)
    chunks: list[str] = []
    for paragraph in paragraphs:
        if chunks and len(chunks[-1].strip()) < min_chars:
            chunks[-1] += paragraph
        else:
            chunks.append(paragraph)
    if len(chunks) > 1 and len(chunks[-1].strip()) < min_chars:
        last = chunks.pop()
        chunks[-1] += last
    parts: list[str] = []
    for part in (part for chunk in chunks for part in _split_long(chunk, max_chars)):
        if parts and not (part.strip() and parts[-1].strip()):
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def _cut(text: str, boundary: re.Pattern[str]) -> list[str]:
    ends = [match.end() for match in boundary.finditer(text)]
    edges = [0, *ends, len(text)] if not ends or ends[-1] < len(text) else [0, *ends]
    return [text[a:b] for a, b in pairwise(edges) if a < b]


def _split_long(chunk: str, max_chars: int) -> Iterator[str]:
    if len(chunk) <= max_chars:
        yield chunk
        return
    part = ""
    for sentence in _cut(chunk, _SENTENCE_END):
        if part and len(part) + len(sentence) > max_chars:
            yield part
            part = ""
        part += sentence
        while len(part) > max_chars:
            yield part[:max_chars]
            part = part[max_chars:]
    if part:
        yield part


def annotation_pieces(annotation: Annotation, objective: Objective) -> list[Piece]:
    """Opening token, keys and values, closing token."""
    opening, closing = _brackets(Kind.TAG_KEY in objective.loss)
    pieces = [opening]
    for i, tag in enumerate(annotation.tags):
        pieces += _tag_pieces(tag, i == 0, objective.loss)
    pieces.append(closing)
    return pieces


@cache
def _brackets(supervised: bool) -> tuple[Piece, Piece]:
    opening, closing = (Piece(name, Kind.CONTROL, supervised) for name in ("open", "close"))
    return opening, closing


@lru_cache(maxsize=1 << 14)
def _tag_pieces(tag: Tag, first: bool, loss: frozenset[Kind]) -> tuple[Piece, ...]:
    """Kept, because the same tags come all through a corpus."""
    kinds = {"key": Kind.TAG_KEY, "value": Kind.TAG_VALUE}
    return tuple([Piece(text, kinds[p], kinds[p] in loss) for p, text in tag.pieces(first)])


def document_pieces(chunks: Sequence[Chunk], objective: Objective) -> list[Piece]:
    """A document: bos, each chunk behind its annotation if the objective is annotated, eos."""
    supervised = Kind.TEXT in objective.loss
    pieces = [BOS]
    for i, chunk in enumerate(chunks):
        if objective.annotated:
            pieces.extend(annotation_pieces(chunk.annotation or Annotation(), objective))
        joint = "" if i == len(chunks) - 1 or chunk.text[-1:].isspace() else "\n\n"
        pieces.append(Piece(chunk.text + joint, Kind.TEXT, supervised))
    pieces.append(Piece("eos", Kind.CONTROL, supervised))
    return pieces


def conversation_pieces(
    messages: Sequence[Message], objective: Objective, chat: ChatTemplate | None = None
) -> list[Piece]:
    """A conversation whose last message is learnt if it is the assistant's.

    Earlier turns are prompt and go without their annotations, because clients send back what they
    saw. An assistant message with empty content ends after its annotation: a replay example, or a
    prefix to sample from.

    Args:
        messages: the turns.
        objective: what carries loss.
        chat: the template that writes the prompt; None for this package's own format.

    Raises:
        DataError: the template refuses these turns.
    """
    if chat is not None:
        return _template_pieces(messages, objective, chat)
    in_prompt = Kind.PROMPT in objective.loss
    pieces = [BOS]
    for i, message in enumerate(messages):
        learnt = i == len(messages) - 1 and message.role == "assistant"
        pieces.append(Piece(message.role, Kind.CONTROL, in_prompt))
        if learnt:
            pieces.extend(_response_pieces(message, objective, "eos"))
            continue
        pieces.append(Piece(message.content, Kind.PROMPT, in_prompt))
        if message.role == "assistant":
            pieces.append(Piece("eos", Kind.CONTROL, in_prompt))
    return pieces


def _template_pieces(
    messages: Sequence[Message], objective: Objective, chat: ChatTemplate
) -> list[Piece]:
    """The template's own prompt up to the answer, then as in our format.

    What a template puts before an answer only when it is a part of history (an empty thought) is
    left out: the prompt ends as it will when the model is asked.
    """
    in_prompt = Kind.PROMPT in objective.loss
    learnt = bool(messages) and messages[-1].role == "assistant"
    prompt = messages[:-1] if learnt else messages
    turns = [{"role": message.role, "content": message.content} for message in prompt]
    pieces = [
        Piece(text, Kind.CONTROL if special else Kind.PROMPT, in_prompt)
        for text, special in chat.stretches(turns, answer_next=learnt)
    ]
    if learnt:
        pieces.extend(_response_pieces(messages[-1], objective, "end"))
    return pieces


def _response_pieces(message: Message, objective: Objective, end: str) -> Iterator[Piece]:
    if objective.annotated:
        yield from annotation_pieces(message.annotation or Annotation(), objective)
    if message.content:
        supervised = Kind.TEXT in objective.loss
        yield Piece(message.content, Kind.TEXT, supervised)
        yield Piece(end, Kind.CONTROL, supervised)


def turns_to_learn(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """One prefix of the conversation for each assistant turn, ending with it: n give n examples."""
    for i, message in enumerate(messages):
        if message.role == "assistant":
            yield messages[: i + 1]


def format_variant(objective: Objective, seed: int, example_id: str) -> Objective:
    """`objective` itself or, for a seeded `format_share` of the ids, with loss on tag keys too."""
    if (
        objective.format_share
        and random.Random(f"{seed}:format:{example_id}").random() < objective.format_share
    ):
        return Objective(objective.name, objective.annotated, objective.loss | {Kind.TAG_KEY})
    return objective


def order_keys(annotation: Annotation, order: KeyOrder, seed: int, example_id: str) -> Annotation:
    """Key order of one annotation in one sequence.

    Shuffled (the default) makes the model meet every subset of keys as a prefix, so that any of
    them can later be pinned and the rest sampled given them. `canonical` keeps the order given.
    """
    if order == "canonical":
        return annotation
    # A hash, because seeding a generator takes longer than all else that is planned for a chunk.
    digest = blake2b(f"{seed}:order:{example_id}".encode()).digest()
    return annotation.shuffled(int.from_bytes(digest, "big"))


def encode_pieces(
    sequences: Sequence[Sequence[Piece]], tokenizer: AnchoredTokenizer
) -> list[list[Segment]]:
    """Encodes many sequences with one call into the tokenizer, each distinct text once.

    Equal pieces become the same segment.
    """
    distinct = dict.fromkeys(chain.from_iterable(sequences))
    ids = {name: [number] for name, number in tokenizer.control_ids.items()}
    segments = {p: Segment(ids[p.text], p.kind, p.supervised) for p in distinct if _is_control(p)}
    behind = {p: p.kind is Kind.PROMPT for p in distinct if not _is_control(p)}
    for encode, wanted in ((tokenizer.encode_batch, False), (tokenizer.encode_behind, True)):
        pieces = [p for p, is_behind in behind.items() if is_behind is wanted]
        texts = list(dict.fromkeys(p.text for p in pieces))
        found = dict(zip(texts, encode(texts), strict=True))
        segments |= {p: Segment(found[p.text], p.kind, p.supervised) for p in pieces}
    return [[segments[p] for p in pieces] for pieces in sequences]


def _is_control(piece: Piece) -> bool:
    return piece.kind is Kind.CONTROL


def document_segments(
    chunks: Sequence[Chunk], tokenizer: AnchoredTokenizer, objective: Objective
) -> list[Segment]:
    """`document_pieces`, encoded."""
    return encode_pieces([document_pieces(chunks, objective)], tokenizer)[0]


def conversation_segments(
    messages: Sequence[Message], tokenizer: AnchoredTokenizer, objective: Objective
) -> list[Segment]:
    """`conversation_pieces`, encoded."""
    return encode_pieces([conversation_pieces(messages, objective, tokenizer.chat)], tokenizer)[0]


def assemble(segments: Sequence[Segment]) -> Example:
    """Segments joined into columns.

    The first token never has a label: nothing in its own sequence predicts it.
    """
    example = Example()
    for segment in segments:
        example.input_ids.extend(segment.ids)
        example.labels.extend(segment.ids if segment.supervised else [NO_LOSS] * len(segment.ids))
        example.kinds.extend([int(segment.kind)] * len(segment.ids))
    if example.labels:
        example.labels[0] = NO_LOSS
    return example


def check_annotations_come_back(tokenizer: AnchoredTokenizer, schema: Schema | None) -> None:
    """Sees that annotations of two tags and more can be read from their ids again.

    Raises:
        ConfigError: the tokenizer loses line breaks, or a letter of the keys of `schema`.
    """
    names = schema.names if schema else ("topic",)
    annotation = Annotation(tuple(Tag(name, name) for name in (*names, names[0])))
    ids = [i for _, text in annotation.pieces() for i in tokenizer.encode(text)]
    text = tokenizer.decode_pieces(ids)
    if text != str(annotation):
        raise ConfigError(
            f"tokenizer {tokenizer.hf.name_or_path!r}: annotations do not come back from its ids: "
            f"{str(annotation)[:60]!r} reads {text[:60]!r}; use a tokenizer that keeps line breaks "
            "(a byte-level BPE does), or train without annotations (objective plain or standard)"
        )
