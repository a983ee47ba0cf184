"""From text to segments: the parts of a sequence, their order, kinds and weights in the loss.

    document        bos  (open tags close)  chunk  (open tags close)  chunk ...  eos
    conversation    bos  system text  user text  assistant  (open tags close)  response  eos
    by a template   prompt as the chat template writes it  (open tags close)  response  end

Annotation and text are encoded separately and their ids joined, in training and in sampling alike,
so that no token straddles the two. Control tokens are inserted by id; text is encoded with them
disabled.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache, cached_property, lru_cache
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
    """The part of a sequence that a token belongs to; the `kinds` column of a prepared dataset."""

    CONTROL = 0
    PROMPT = 1
    TAG_KEY = 2
    TAG_VALUE = 3
    TEXT = 4

    __hash__ = int.__hash__  # Enum's is slow Python, and every piece is hashed


@dataclass(frozen=True)
class Objective:
    """How much loss each kind carries, as data.

    Attributes:
        name: the name in the command line and in configurations.
        annotated: True if annotations precede chunks and responses.
        weights: weight of a token's loss, by kind; a kind that is not named carries no loss. Role
            tokens go with PROMPT, the two annotation tokens with TAG_KEY, eos with TEXT; bos never
            carries loss.
        format_share: share of examples in which the tag keys carry loss too (paper, section 3:
            0.3 %).
        replay: True if examples of annotation replay are added: a prompt and an annotation sampled
            before SFT, with loss on the annotation alone (ours, not in the paper).
    """

    name: str
    annotated: bool
    weights: Mapping[Kind, float]
    format_share: float = 0.0
    replay: bool = False

    def __post_init__(self) -> None:
        assert all(0 <= w < math.inf for w in self.weights.values()), self.weights

    def weight(self, kind: Kind) -> float:
        """Return the weight of the loss of a token of this kind."""
        return self.weights.get(kind, 0.0)

    @cached_property
    def loss(self) -> frozenset[Kind]:
        """The kinds that carry loss."""
        return frozenset(kind for kind, weight in self.weights.items() if weight)

    @property
    def is_weighted(self) -> bool:
        """True if any weight is neither 0 nor 1, so that labels alone cannot express it."""
        return not {0.0, 1.0}.issuperset(self.weights.values())


_TAGS = {Kind.TAG_KEY: 1.0, Kind.TAG_VALUE: 1.0}
_TEXT = {Kind.TEXT: 1.0}
_PROMPT = {Kind.PROMPT: 1.0}
OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("plain", annotated=False, weights=_PROMPT | _TEXT),
        Objective("annotated", annotated=True, weights=_TAGS | _PROMPT | _TEXT),
        Objective("standard", annotated=False, weights=_TEXT),
        Objective("anchored", annotated=True, weights=_TEXT, format_share=0.003),
        Objective(
            "anchored-replay", annotated=True, weights=_TEXT, format_share=0.003, replay=True
        ),
        Objective("tagged", annotated=True, weights=_TAGS | _TEXT),
        Objective("replay", annotated=True, weights=_TAGS),
    )
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document and its annotation, which is None if it was never annotated.

    `text` includes the white space that follows it.
    """

    text: str
    annotation: Annotation | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Only an assistant turn has an `annotation`; None if it was never annotated."""

    role: Literal["system", "user", "assistant"]
    content: str
    annotation: Annotation | None = None


class Segment(NamedTuple):
    """A part of a sequence with one kind and one weight: text until it is encoded, then ids.

    A tuple, because hashing and creating a dataclass take twice as long.

    Attributes:
        kind: the kind of its tokens.
        weight: weight of the loss of each of its tokens; 0 for no loss, usually 1.
        text: plain text or, for `Kind.CONTROL`, the name of a control token. A chat template's
            special tokens are named by their spelling. Empty once encoded.
        ids: token ids; empty until encoded.
    """

    kind: Kind
    weight: float
    text: str = ""
    ids: Sequence[int] = ()


@dataclass
class Example:
    """Equal-length columns of a training sequence.

    `labels` are unshifted, and `NO_LOSS` where `weights` are 0.
    """

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


BOS = Segment(Kind.CONTROL, 0.0, "bos")

_BLANK = re.compile(r"\n[ \t]*\r?\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n+")


def split_chunks(text: str, min_chars: int = 200, max_chars: int = 1500) -> list[str]:
    """Cut a text at blank lines; `"".join(split_chunks(text)) == text` always holds.

    A chunk shorter than `min_chars` is joined to the next. A chunk longer than `max_chars` is cut
    at sentence ends, or at `max_chars` if there are none. No chunk is blank unless the text is:
    white space stays with the text before it, even beyond `max_chars`.
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


def annotation_pieces(annotation: Annotation, objective: Objective) -> list[Segment]:
    """Return the opening token, the keys and values, and the closing token."""
    on_key, on_value = objective.weight(Kind.TAG_KEY), objective.weight(Kind.TAG_VALUE)
    opening, closing = _brackets(on_key)
    pieces = [opening]
    for i, tag in enumerate(annotation.tags):
        pieces += _tag_pieces(tag, i == 0, on_key, on_value)
    pieces.append(closing)
    return pieces


@cache
def _brackets(weight: float) -> tuple[Segment, Segment]:
    opening, closing = (Segment(Kind.CONTROL, weight, name) for name in ("open", "close"))
    return opening, closing


@lru_cache(maxsize=1 << 14)
def _tag_pieces(tag: Tag, first: bool, on_key: float, on_value: float) -> tuple[Segment, ...]:
    """Return the pieces of one tag; cached, because a corpus repeats its tags."""
    parts = {"key": (Kind.TAG_KEY, on_key), "value": (Kind.TAG_VALUE, on_value)}
    return tuple([Segment(*parts[part], text) for part, text in tag.pieces(first)])


def document_pieces(chunks: Sequence[Chunk], objective: Objective) -> list[Segment]:
    """Return a document: bos, each chunk after its annotation if the objective has any, eos."""
    weight = objective.weight(Kind.TEXT)
    pieces = [BOS]
    for i, chunk in enumerate(chunks):
        if objective.annotated:
            pieces.extend(annotation_pieces(chunk.annotation or Annotation(), objective))
        joint = "" if i == len(chunks) - 1 or chunk.text[-1:].isspace() else "\n\n"
        pieces.append(Segment(Kind.TEXT, weight, chunk.text + joint))
    pieces.append(Segment(Kind.CONTROL, weight, "eos"))
    return pieces


def conversation_pieces(
    messages: Sequence[Message], objective: Objective, chat: ChatTemplate | None = None
) -> list[Segment]:
    """Return a conversation, whose last message is the response if it is the assistant's.

    Earlier turns belong to the prompt and have no annotations, because clients send back only what
    they saw. An assistant message with empty content ends after its annotation: it is a replay
    example, or a prefix to sample from.

    Args:
        messages: the turns.
        objective: decides what carries loss.
        chat: the template that writes the prompt; None for this package's own format.

    Raises:
        DataError: the template refuses these turns.
    """
    if chat is not None:
        return _template_pieces(messages, objective, chat)
    weight = objective.weight(Kind.PROMPT)
    pieces = [BOS]
    for i, message in enumerate(messages):
        learnt = i == len(messages) - 1 and message.role == "assistant"
        pieces.append(Segment(Kind.CONTROL, weight, message.role))
        if learnt:
            pieces.extend(_response_pieces(message, objective, "eos"))
            continue
        pieces.append(Segment(Kind.PROMPT, weight, message.content))
        if message.role == "assistant":
            pieces.append(Segment(Kind.CONTROL, weight, "eos"))
    return pieces


def _template_pieces(
    messages: Sequence[Message], objective: Objective, chat: ChatTemplate
) -> list[Segment]:
    """Return the prompt as the template writes it, then the response as in our own format.

    Text that a template writes only before earlier answers (an empty thought) is left out, so that
    the prompt ends as it does at sampling.
    """
    weight = objective.weight(Kind.PROMPT)
    learnt = bool(messages) and messages[-1].role == "assistant"
    prompt = messages[:-1] if learnt else messages
    turns = [{"role": message.role, "content": message.content} for message in prompt]
    pieces = [
        Segment(Kind.CONTROL if special else Kind.PROMPT, weight, text)
        for text, special in chat.stretches(turns, answer_next=learnt)
    ]
    if learnt:
        pieces.extend(_response_pieces(messages[-1], objective, "end"))
    return pieces


def _response_pieces(message: Message, objective: Objective, end: str) -> Iterator[Segment]:
    if objective.annotated:
        yield from annotation_pieces(message.annotation or Annotation(), objective)
    if message.content:
        weight = objective.weight(Kind.TEXT)
        yield Segment(Kind.TEXT, weight, message.content)
        yield Segment(Kind.CONTROL, weight, end)


def turns_to_learn(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Yield the prefix that ends with each assistant turn: n assistant turns give n examples."""
    for i, message in enumerate(messages):
        if message.role == "assistant":
            yield messages[: i + 1]


def format_variant(objective: Objective, seed: int, example_id: str) -> Objective:
    """Return `objective`; for a seeded `format_share` of the ids, with loss on tag keys too."""
    if (
        objective.format_share
        and random.Random(f"{seed}:format:{example_id}").random() < objective.format_share
    ):
        weights = {**objective.weights, Kind.TAG_KEY: 1.0}
        return Objective(objective.name, objective.annotated, weights)
    return objective


def order_keys(annotation: Annotation, order: KeyOrder, seed: int, example_id: str) -> Annotation:
    """Return an annotation with its keys in the order that they have in one sequence.

    With `shuffled`, the default, the model sees every subset of keys as a prefix, so that any of
    them can later be pinned and the rest sampled after them. `canonical` keeps the given order.
    """
    if order == "canonical":
        return annotation
    # A hash, because seeding a generator takes longer than all other work on a chunk.
    digest = blake2b(f"{seed}:order:{example_id}".encode()).digest()
    return annotation.shuffled(int.from_bytes(digest, "big"))


def encode_pieces(
    sequences: Sequence[Sequence[Segment]], tokenizer: AnchoredTokenizer
) -> list[list[Segment]]:
    """Encode many sequences in two calls to the tokenizer, each distinct text once.

    Equal segments share their ids.
    """
    distinct = dict.fromkeys(chain.from_iterable(sequences))
    ids = {name: [number] for name, number in tokenizer.control_ids.items()}
    encoded: dict[Segment, Segment] = {}
    plain: list[Segment] = []
    behind: list[Segment] = []
    for s in distinct:
        if s.kind is Kind.CONTROL:
            encoded[s] = Segment(s.kind, s.weight, ids=ids[s.text])
        else:
            (behind if s.kind is Kind.PROMPT else plain).append(s)
    for encode, segments in ((tokenizer.encode_batch, plain), (tokenizer.encode_behind, behind)):
        texts = list(dict.fromkeys([s.text for s in segments]))
        found = dict(zip(texts, encode(texts), strict=True))
        for s in segments:
            encoded[s] = Segment(s.kind, s.weight, ids=found[s.text])
    return [[encoded[s] for s in sequence] for sequence in sequences]


def document_segments(
    chunks: Sequence[Chunk], tokenizer: AnchoredTokenizer, objective: Objective
) -> list[Segment]:
    """Return the encoded `document_pieces`."""
    return encode_pieces([document_pieces(chunks, objective)], tokenizer)[0]


def conversation_segments(
    messages: Sequence[Message], tokenizer: AnchoredTokenizer, objective: Objective
) -> list[Segment]:
    """Return the encoded `conversation_pieces`."""
    return encode_pieces([conversation_pieces(messages, objective, tokenizer.chat)], tokenizer)[0]


def assemble(segments: Sequence[Segment]) -> Example:
    """Join segments into columns.

    The first token never has a label, because nothing in its sequence predicts it.
    """
    example = Example()
    for segment in segments:
        example.input_ids.extend(segment.ids)
        example.labels.extend(segment.ids if segment.weight else [NO_LOSS] * len(segment.ids))
        example.kinds.extend([int(segment.kind)] * len(segment.ids))
        example.weights.extend([segment.weight] * len(segment.ids))
    if example.labels:
        example.labels[0], example.weights[0] = NO_LOSS, 0.0
    return example


def check_annotations_come_back(tokenizer: AnchoredTokenizer, schema: Schema | None) -> None:
    """Check that an annotation survives encoding and decoding.

    Raises:
        ConfigError: the tokenizer loses line breaks, or a character of the schema's keys.
    """
    names = schema.names if schema else ("topic",)
    annotation = Annotation(tuple(Tag(name, name) for name in (*names, names[0])))
    ids = [i for _, text in annotation.pieces() for i in tokenizer.encode(text)]
    text = tokenizer.decode_pieces(ids)
    if text != str(annotation):
        raise ConfigError(
            f"tokenizer {tokenizer.hf.name_or_path!r}: annotations do not survive encoding and "
            f"decoding: {str(annotation)[:60]!r} becomes {text[:60]!r}; use a tokenizer that keeps "
            "line breaks (a byte-level BPE does), or train without annotations (objective plain or "
            "standard)"
        )
